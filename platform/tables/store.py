"""The store: one folder or URI that holds every table, run and report of a project."""

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from echostill.platform.errors import UsageError, nearest
from echostill.platform.names import check_name, is_name
from echostill.platform.processes import submission
from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint, code_version
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import FORMAT_VERSION, MANIFEST, Table, check_format
from echostill.platform.tables.table_folder import RECORDS, TableFolder
from echostill.platform.tables.versions import version_with
from echostill.platform.withdrawal.state import check_not_pending

if TYPE_CHECKING:
    from echostill.platform.config import StageConfig

CONFIGURATION = "configuration.json"
FORMAT = "format.json"  # of the store; those written before it was kept have format 1
_READABLE: set[str] = set()  # remote stores whose format was looked at in this process


class Store:
    """Names of the tables and runs inside a store."""

    def __init__(self, root: str, *, withdrawing: bool = False) -> None:
        """Open a store.

        Args:
            root: Folder or URI.
            withdrawing: Whether it may be one from which something is just being withdrawn.

        Raises:
            UsageError: A relative path inside a submitted Ray job, whose folder is thrown away.
            EchostillError: A later release wrote it in a format that this one does not read, or a
                withdrawal from it has begun and not ended.
        """
        if submission() is not None and "://" not in root and not os.path.isabs(root):
            raise UsageError(
                f"store '{root}' is relative, and a submitted job's folder is thrown away: give an "
                "absolute path that every node sees, or an s3:// or gs:// URI."
            )
        self.storage = Storage(root)
        self._check_format()
        if not withdrawing:
            check_not_pending(self.storage)

    def _check_format(self) -> None:
        if self.root in _READABLE:
            return
        with suppress(PermissionError):  # whatever reads or writes a table says so, and why
            kept = read_format(self.storage)
            if kept is not None:
                check_format(self.storage.locate(FORMAT), kept)
        if not self.storage.is_local:  # a look there takes a round trip
            _READABLE.add(self.root)

    def record_format(self) -> None:
        """Note the format that the store is written in, for earlier releases to refuse a later."""
        kept = read_format(self.storage)
        if kept is None or kept["format_version"] < FORMAT_VERSION:
            values = {"format_version": FORMAT_VERSION, "written_by": code_version()}
            self.storage.write(FORMAT, json.dumps(values, indent=1).encode())

    @property
    def root(self) -> str:
        """Absolute path or URI, with its options; opens the same store again."""
        return self.storage.uri

    def pool(self) -> Storage:
        """The pool table."""
        return self.table("pool")

    def sources(self) -> Storage:
        """The list of files that the pool was made from."""
        return self.table("sources")

    def scores(self) -> Storage:
        """The scores table."""
        return self.table("scores")

    def duplicates(self) -> Storage:
        """The table of copies inside the pool."""
        return self.table("duplicates")

    def leaks(self) -> Storage:
        """The table of pool images that are copies of benchmark images."""
        return self.table("leaks")

    def pins(self) -> Storage:
        """The table of pins and bans."""
        return self.table("pins")

    def contributors(self) -> Storage:
        """The table of stores that the pool was merged from."""
        return self.table("contributors")

    def read_contributors(self) -> list[dict[str, Any]]:
        """Read the stores that the pool was merged from; none of a pool that was not."""
        if not self.contributors().exists(MANIFEST):
            return []
        rows: list[dict[str, Any]] = Table.open(self.contributors(), "merge").read().to_pylist()
        return rows

    def origins(self) -> Storage:
        """The table that says from which of these stores an image is."""
        return self.table("origins")

    def coreset(self, name: str) -> Storage:
        """A coreset table; a UsageError where the name would be a path."""
        return self.table(f"coresets/{check_name(name)}")

    def run(self, name: str) -> Storage:
        """A training run."""
        return self._named("runs", name)

    def report(self, name: str) -> Storage:
        """An evaluation and its report."""
        return self._named("reports", name)

    def predictions(self, name: str) -> Storage:
        """The table of an evaluation's predictions."""
        return self.table(f"predictions/{check_name(name)}")

    def teacher_cache(self, name: str) -> Storage:
        """A cache of the teacher's outputs."""
        return self._named("teacher-cache", name)

    def sweep(self, name: str) -> Storage:
        """A sweep's comparison."""
        return self._named("sweeps", name)

    def benchmark(self, name: str) -> Storage:
        """Results on the sets of a benchmark, and their report."""
        return self._named("benchmarks", name)

    def _named(self, folder: str, name: str) -> Storage:
        """One of several results of a kind; a UsageError where the name would be a path."""
        return self.storage.at(f"{folder}/{check_name(name)}")

    def quarantine(self, stage: str) -> Storage:
        """The quarantine of a stage."""
        return self.table(f"quarantine/{stage}")

    def table(self, name: str) -> Storage:
        """A table by its place in the store, such as ``pool`` or ``coresets/default``."""
        return TableFolder(self.root, name)

    def events(self) -> Storage:
        """The event logs, one per stage."""
        return self.storage.at("events")

    def open_pool(self) -> Table:
        """Open the pool; a UsageError says how to make one."""
        return Table.open(self.pool(), "ingest")

    def open_scores(self) -> Table:
        """Open the scores; a UsageError says how to make them."""
        return Table.open(self.scores(), "score")

    def open_coreset(self, name: str) -> Table:
        """Open a coreset; a UsageError names the nearest existing one."""
        storage = self.coreset(name)
        if not storage.exists(MANIFEST):
            known = self.coreset_names()
            if known:
                raise UsageError(
                    f"no coreset '{name}' in '{self.root}'.{nearest(name, known)} "
                    f"There are: {', '.join(known)}."
                )
        return Table.open(storage, "select")

    def made_from(self, digest: str) -> list[str]:
        """Return the tables and runs that were made from a table of that digest."""
        names = []
        for name in self.storage.list(recursive=True):
            folder, _, file = name.rpartition("/")
            if file == FINGERPRINT:
                inputs = json.loads(self.storage.read(name)).get("inputs", {})
                names += [table_of(folder)] if digest in inputs.values() else []
        return names

    def coreset_names(self) -> list[str]:
        """Names of the finished coresets."""
        parts = [entry.split("/")[1:-1] for entry in self.storage.list("coresets", recursive=True)]
        names = {*self._finished("coresets"), *self._finished(f"{RECORDS}/coresets")}
        return sorted(name for name in names if [name] in parts)  # others have been deleted

    def prediction_names(self) -> list[str]:
        """Names of the evaluations that have a table of predictions."""
        return self._finished(f"{RECORDS}/predictions")

    def run_names(self) -> list[str]:
        """Names of the finished training runs."""
        return self._finished("runs")

    def _finished(self, folder: str) -> list[str]:
        """Names in a folder that have a manifest and can be names."""
        names = [
            entry.removeprefix(f"{folder}/").removesuffix(f"/{MANIFEST}")
            for entry in self.storage.list(folder, recursive=True)
            if entry.endswith(f"/{MANIFEST}")
        ]
        return sorted(name for name in names if is_name(name))


def read_format(storage: Storage) -> dict[str, Any] | None:
    """Return what a store says of its format; None where nothing was noted."""
    if not storage.exists(FORMAT):
        return None
    values: dict[str, Any] = json.loads(storage.read(FORMAT))
    return values


def table_of(folder: str) -> str:
    """Return the table or run whose manifest and fingerprint are in a folder of the store."""
    return folder.removeprefix(f"{RECORDS}/")


def finish_run(
    storage: Storage,
    *,
    stage: str,
    files: list[str],
    fingerprint: Fingerprint,
    extra: dict[str, Any] | None = None,
) -> None:
    """Declare a run finished: its manifest names its files with their checksums."""
    entries = []
    for name in files:
        data = storage.read(name)
        entries.append({"file": name, "bytes": len(data), "sha256": sha256(data)})
    manifest = {
        "format_version": FORMAT_VERSION,
        "stage": stage,
        "files": entries,
        "fingerprint": fingerprint.as_dict(),
        **(extra or {}),
    }
    storage.write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def read_manifest(storage: Storage) -> dict[str, Any] | None:
    """Return a run's manifest, or None where it is not finished."""
    if not storage.exists(MANIFEST):
        return None
    manifest: dict[str, Any] = json.loads(storage.read(MANIFEST))
    if "format_version" in manifest:
        check_format(storage.locate(MANIFEST), manifest)
    return manifest


def check_origin(store: Store, coreset: Table) -> None:
    """Check that a coreset was selected from the pool and the scores that the store holds.

    They may have grown since: what the coreset was selected from is in them. A coreset that does
    not say what it was selected from is taken as it is, and so is one whose scores are not in the
    store.

    Raises:
        UsageError: One of them was made again since; the message says what to run.
    """
    made, kept = coreset.manifest["fingerprint"].get("inputs", {}), coreset.storage
    about = json.loads(kept.read(FINGERPRINT)).get("about", {}) if kept.exists(FINGERPRINT) else {}
    for name, made_by in (("pool", "ingest"), ("scores", "score")):
        storage = store.table(name)
        if name not in made or not storage.exists(MANIFEST):
            continue
        table = Table.open(storage, made_by)
        if version_with(table, made[name]) is None:
            then = about.get(f"inputs.{name}", "")
            counts = f" ({then} then, {table.rows} now)" if then else f" ({table.rows} rows now)"
            raise UsageError(
                f"coreset '{kept.root.rpartition('/')[2]}' was selected from another "
                f"{name}{counts}: run `echostill score` and `echostill select` again, with "
                "--overwrite where they refuse."
            )


def selected_ids(coreset: Table) -> tuple[str, ...]:
    """Return the ids that a coreset holds, sorted."""
    table = coreset.read(["image_id", "selected"])
    return tuple(sorted(table.filter(table["selected"])["image_id"].to_pylist()))


def save_configuration(storage: Storage, config: "StageConfig") -> None:
    """Keep the resolved configuration beside a result, with what its last digits depend on."""
    from echostill.platform.config import result_relevant

    text = json.dumps(result_relevant(config, rounding=True), indent=1, sort_keys=True)
    storage.write(CONFIGURATION, text.encode())


def read_configuration(storage: Storage) -> dict[str, Any]:
    """Return the configuration that a result was made with; empty where none was kept."""
    if not storage.exists(CONFIGURATION):
        return {}
    values: dict[str, Any] = json.loads(storage.read(CONFIGURATION))
    return values


def describe_bytes(count: float) -> str:
    """Return a size in words, e.g. ``3.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
