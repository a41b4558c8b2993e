"""Files that questions need and that are derived from a store's tables, in the user's cache.

Reading a store does not write into it. The folder's name, and that of each file in it, contains
the digest of the tables that they were built from, and it is set only when the file is complete:
files of replaced tables are never read, and a store that was moved or copied finds its own again.
All of them may be deleted at any time; the next question builds them again.
"""

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from echostill.curation.service import children
from echostill.curation.service.data.columns import open_columns, write_columns
from echostill.platform.errors import UsageError
from echostill.platform.tables.atomic import UNFINISHED, atomic_write, atomic_write_bytes, locked
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.user_cache import user_cache

if TYPE_CHECKING:
    from echostill.curation.service.data.neighbours import Report

FORMAT = "1"  # part of every name; a new layout needs a new number
FOLDER, STORES = "derived", "stores"  # in the user's cache: files by key, and the key by store
LOCK = "lock"
QUIET_SECONDS = 1.0  # what takes less shows no progress
KINDS = ("catalogue", "neighbours", "map")


@dataclass(frozen=True)
class Derived:
    """The folder, and the file names for the current tables.

    Attributes:
        folder: local.
        key: of pool and scores.
        scored: whether there are scores, and rows in them.
        store: key of the store: several may share the folder, each with coresets of its own.
    """

    folder: Path
    key: str
    scored: bool
    store: str

    @property
    def catalogue(self) -> Path:
        """An Arrow file (``catalogue``)."""
        return self.folder / f"catalogue-{self.key}.arrow"

    @property
    def neighbours(self) -> Path:
        """A folder (``neighbours``)."""
        return self.folder / f"neighbours-{self.key}"

    @property
    def map(self) -> Path:
        """A NumPy file (``projection``)."""
        return self.folder / f"map-{self.key}.npy"

    def coreset(self, name: str, digest: str) -> Path:
        """An Arrow file (``coresets``)."""
        return self.folder / f"coreset-{name}-{self.store}-{digest[:16]}-{self.key}.arrow"

    def replaced_coresets(self, name: str, digest: str) -> list[Path]:
        """Files of what had a coreset's name in this store before."""
        kept, before = self.coreset(name, digest), f"coreset-{name}-{self.store}-"
        return [
            path for path in self.folder.iterdir() if path.name.startswith(before) and path != kept
        ]

    def missing(self) -> list[str]:
        """Kinds that are still to be built."""
        wanted = KINDS if self.scored else KINDS[:1]
        return [kind for kind in wanted if not getattr(self, kind).exists()]


def derived_folder(store: Store, folder: str | None = None) -> Path:
    """Return the folder of derived files: the given one, or the tables' own in the user's cache.

    Raises:
        UsageError: The store has no pool, or the cache cannot be written.
    """
    if folder is not None:
        return Path(folder).absolute()
    return user_cache(FOLDER, _key(store))


def derived_of(store: Store, folder: Path) -> Derived:
    """Return the file names for the store's current tables.

    Raises:
        UsageError: The store has no pool.
    """
    scores = open_scores(store)
    return Derived(folder, _key(store), scores is not None and scores.rows > 0, store_key(store))


def _key(store: Store) -> str:
    """The key of the store's current tables."""
    pool, scores = store.open_pool(), open_scores(store)
    text = "\n".join([FORMAT, pool.digest, scores.digest if scores else ""])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_key(store: Store) -> str:
    """A key of where the store is."""
    return hashlib.sha256(store.root.encode()).hexdigest()[:16]


def open_scores(store: Store) -> Table | None:
    """Open the scores if they are finished."""
    return store.open_scores() if store.scores().exists(MANIFEST) else None


def prepare(store: Store, folder: Path, report: "Report", kinds: Sequence[str] = KINDS) -> Derived:
    """Build what is missing, the most useful first; other processes wait for it.

    Args:
        store: the store.
        folder: of the derived files.
        report: called with the stage ("neighbours: adding") and the fraction of all work.
        kinds: what is needed; the catalogue is always built.

    Returns:
        The names; everything needed exists.

    Raises:
        UsageError: The folder cannot be written, or the scores are of another pool.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write '{folder}' ({error.strerror}): choose another folder with "
            "--index-folder."
        ) from None
    with locked(folder / LOCK):
        derived, built = derived_of(store, folder), False
        _sweep(derived)
        _sweep_replaced(store, derived)
        if not derived.catalogue.exists():
            from echostill.curation.service.data.catalogue import build_catalogue

            within = _within(report, "catalogue", 0.0, 0.05)
            table = build_catalogue(store.open_pool(), open_scores(store), within)
            write_columns(derived.catalogue, table)
            built = True
        scores = open_scores(store)
        missing = [kind for kind in derived.missing() if kind in kinds]
        if scores is not None and missing:
            _build(store, derived, scores, missing, report)
            built = True
        if built:
            report("ready", 1.0)
        return derived


def _build(
    store: Store, derived: Derived, scores: Table, missing: list[str], report: "Report"
) -> None:
    """Build the kinds that are missing, the most useful first."""
    from echostill.curation.service.data.neighbours import build_neighbours
    from echostill.curation.service.data.projection import build_map
    from echostill.platform.tables.ids import pool_rows

    catalogue = open_columns(derived.catalogue)
    rows = pool_rows(scores.read(["image_id"])["image_id"], catalogue["image_id"])
    if "neighbours" in missing:
        with atomic_write(derived.neighbours) as partial:
            partial.mkdir()
            build_neighbours(scores, rows, partial, _within(report, "neighbours", 0.05, 0.85))
    if "map" in missing:
        size = catalogue.num_rows
        build_map(scores, rows, size, derived.map, _within(report, "map", 0.85, 1.0))


def _within(report: "Report", name: str, low: float, high: float) -> "Report":
    return lambda stage, fraction: report(f"{name}: {stage}", low + (high - low) * fraction)


def _sweep(derived: Derived) -> None:
    """Delete files of replaced tables, and what a killed build left behind."""
    for entry in derived.folder.iterdir():
        whole = derived.key in entry.name and not entry.name.endswith(UNFINISHED)
        if whole or entry.name == LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _sweep_replaced(store: Store, derived: Derived) -> None:
    """Delete the folder of tables that the store no longer holds, unless another store does."""
    if derived.folder != derived_folder(store):
        return  # a folder that was asked for, which its own sweep keeps clean
    mark = user_cache(STORES) / derived.store
    former = mark.read_text() if mark.exists() else ""
    if former == derived.key:
        return
    atomic_write_bytes(mark, derived.key.encode())
    used = {other.read_text() for other in mark.parent.iterdir() if other.suffix != UNFINISHED}
    if former and former not in used:
        shutil.rmtree(derived.folder.with_name(former), ignore_errors=True)


class ProgressLine:
    """Shows the progress of preparations in a line on standard error, while they take a while."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._shown = False

    def __call__(self, stage: str, fraction: float) -> None:
        """Show a stage and the fraction of all work that is done; 1 ends the line."""
        now = time.monotonic()
        self._started = now if self._started is None else self._started
        if self._shown or now - self._started >= QUIET_SECONDS:
            self._shown = True
            print(f"\r{fraction:>6.1%}  {stage:<40}", end="", file=sys.stderr, flush=True)
        if fraction >= 1:
            if self._shown:
                print(file=sys.stderr)
            self._started, self._shown = None, False


def main(root: str, folder: str) -> None:
    """Prepare in a child process of the service."""

    def work(send: children.Send) -> None:
        last = ("", -1.0)

        def report(stage: str, fraction: float) -> None:
            nonlocal last
            if stage != last[0] or fraction - last[1] >= 0.01:
                last = (stage, fraction)
                send(stage=stage, fraction=round(fraction, 4))

        prepare(Store(root), Path(folder), report)
        send(done=True)

    children.in_child(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
