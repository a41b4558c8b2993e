"""What names or shows withdrawn images outside of the tables: pictures, arrays, logs, texts.

Files that only hold what can be made again are deleted: staged arrays, teacher caches, contact
sheets, pages of reports, derived files of the service. Texts lose the names and stay.
"""

import json
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from echostill.curation.deidentification.review import PICTURES
from echostill.platform.shards.records import READS_AT_ONCE
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST
from echostill.platform.training.mlflow_files import ARTIFACTS, DATABASE, RUN_FILE
from echostill.platform.withdrawal import state
from echostill.platform.withdrawal.links import write_json
from echostill.platform.withdrawal.traces import Traces

TEXTS = (".json", ".jsonl", ".txt", ".yaml", ".yml", ".csv", ".md", ".html")
_SHEETS = ("contact-sheet-", "review.html")  # show several frames: of which, no file says
_PICTURES = (".png", ".jpg", ".jpeg", ".html")
STAGED, WORDS, LOCK = "staged arrays", ".words.json", ".lock"


@dataclass(frozen=True)
class Remains:
    """A file of the store that shows or names withdrawn images.

    Attributes:
        name: In the store.
        what: Kind, for the receipt.
        place: Where, without a name of an image, for the receipt.
        mended: Whether only the names go; otherwise the file goes.
    """

    name: str
    what: str
    place: str
    mended: bool = False


def find_remains(store: Store, traces: Traces, runs: set[str]) -> list[Remains]:
    """Find the files of a store, other than parts of tables, that show or name withdrawn images.

    Args:
        store: The store.
        traces: Of what is withdrawn.
        runs: Places of training runs that have, or may have, seen it.
    """
    storage = store.storage
    ours = (f"{state.FOLDER}/", "lease/")
    names = [name for name in storage.list(recursive=True) if not name.startswith(ours)]
    tracked = _tracked(storage, names, runs)
    found, read = [], []
    caches = _unusable_caches(storage, names, traces)
    arrays = outdated_arrays(storage, [n for n in names if n.startswith("cache/")], traces)
    for name in names:
        folder = name.rpartition("/")[0]
        if name in arrays:
            found.append(Remains(name, STAGED, "cache"))
        elif name.split("/")[0] == "teacher-cache" and "/".join(name.split("/")[:2]) in caches:
            found.append(Remains(name, "teacher cache", "/".join(name.split("/")[:2])))
        elif folder == f"review/{PICTURES}" and _shows(name, traces):
            found.append(Remains(name, "pictures for the review", folder))
        elif name.startswith("reports/") and name.endswith("/report.html"):
            found.append(Remains(name, "page of a report", folder))
        elif _is_picture(name, runs, tracked):
            found.append(Remains(name, "pictures of a training", folder))
        elif name.endswith(TEXTS):
            read.append(name)
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        mended = threads.map(lambda name: _mended(storage, name, traces) is not None, read)
        for name, changes in zip(read, mended, strict=True):
            if changes:
                place = name.partition("/")[0] if name.startswith("events/") else name
                found.append(Remains(name, "texts", traces.mend(place), mended=True))
    if DATABASE in names and storage.is_local and _database(storage, traces, write=False):
        found.append(Remains(DATABASE, "records of MLflow", DATABASE, mended=True))
    return found


def remove_remains(store: Store, traces: Traces, found: list[Remains]) -> None:
    """Delete or mend what :func:`find_remains` found, and let manifests of runs agree."""
    storage = store.storage
    # What makes a cache finished goes first: whoever is interrupted leaves no damaged one.
    for one in sorted(found, key=lambda one: not one.name.endswith(MANIFEST)):
        if one.name == DATABASE:
            _database(storage, traces, write=True)
        elif one.mended:
            data = _mended(storage, one.name, traces)
            if data is not None:
                _agree(storage, one.name, data)
                storage.write(one.name, data)
        else:
            _agree(storage, one.name, None)
            storage.delete(one.name)


def _shows(name: str, traces: Traces) -> bool:
    file = name.rpartition("/")[2]
    return file.startswith(_SHEETS) or file.rpartition(".")[0] in traces.ids


def _is_picture(name: str, runs: set[str], tracked: set[str]) -> bool:
    parts = name.split("/")
    if parts[0] == ARTIFACTS:
        return len(parts) > 1 and parts[1] in tracked and name.endswith(_PICTURES)
    return "/".join(parts[:2]) in runs and (name.endswith(_PICTURES) or "/bad-batch/" in name)


def _tracked(storage: Storage, names: list[str], runs: set[str]) -> set[str]:
    """MLflow's names of training runs."""
    files = [f"{run}/{RUN_FILE}" for run in runs if f"{run}/{RUN_FILE}" in names]
    return {json.loads(storage.read(name))["run_id"] for name in files}


def _unusable_caches(storage: Storage, names: list[str], traces: Traces) -> set[str]:
    """Teacher caches with outputs for a withdrawn image, and unfinished ones: they name none."""
    found = set()
    for place in {"/".join(n.split("/")[:2]) for n in names if n.startswith("teacher-cache/")}:
        manifest = f"{place}/{MANIFEST}"
        held = json.loads(storage.read(manifest))["image_ids"] if manifest in names else None
        if held is None or not traces.ids.isdisjoint(held):
            found.add(place)
    return found


def outdated_arrays(storage: Storage, names: list[str], traces: Traces) -> set[str]:
    """Files of staged arrays that hold a withdrawn image, or do not say what they hold."""
    kept = set()
    for name in names:
        if name.endswith(WORDS):
            words = json.loads(storage.read(name))
            if traces.ids.isdisjoint(words["ids"]):
                kept |= {name, name.removesuffix(WORDS) + ".npy"}
    return {name for name in names if not name.endswith(LOCK)} - kept


def _mended(storage: Storage, name: str, traces: Traces) -> bytes | None:
    """Return a text without the names; None where it has none of them."""
    try:
        text = storage.read(name).decode()
    except UnicodeDecodeError:
        return None
    if name.endswith(".jsonl"):
        lines = text.split("\n")
        mended = [_mended_json(line, traces) or line for line in lines]
        return None if mended == lines else "\n".join(mended).encode()
    if name.endswith(".json"):
        found = _mended_json(text, traces)
        return None if found is None else found.encode()
    other = traces.mend(text)
    return None if other is text else other.encode()


def _mended_json(text: str, traces: Traces) -> str | None:
    """Return JSON without the names, written as it was; None where it has none of them."""
    try:
        values = json.loads(text)
    except ValueError:
        other = traces.mend(text)
        return None if other is text else other
    mended = traces.mend_values(values)
    if mended == values:
        return None
    ends = "\n" if text.endswith("\n") else ""
    indent = 1 if "\n" in text.strip() else None
    is_sorted = isinstance(values, dict) and list(values) == sorted(values)
    return json.dumps(mended, indent=indent, sort_keys=is_sorted) + ends


def _agree(storage: Storage, name: str, data: bytes | None) -> None:
    """Let the manifest of a run, report or cache say how one of its files becomes."""
    folder, _, file = name.rpartition("/")
    manifest = f"{folder}/{MANIFEST}"
    if file == MANIFEST or not storage.exists(manifest):
        return
    values: dict[str, Any] = json.loads(storage.read(manifest))
    entries = values.get("files") or []
    entry = {"file": file, "bytes": len(data or b""), "sha256": sha256(data or b"")}
    after = [entry if one["file"] == file else one for one in entries]
    if data is None:
        after = [one for one in entries if one["file"] != file]
    if after != entries:
        write_json(storage.at(folder), MANIFEST, {**values, "files": after})


def _database(storage: Storage, traces: Traces, *, write: bool) -> bool:
    """Find, and take, withdrawn names out of MLflow's database; MLflow has no call for it."""
    found = False
    with closing(sqlite3.connect(storage.local_path(DATABASE), timeout=60)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for _, column, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
                query = f'SELECT DISTINCT "{column}" FROM "{table}" WHERE typeof("{column}") = ?'
                for (text,) in connection.execute(query, ("text",)).fetchall():
                    if (mended := traces.mend(text)) is not text:
                        found = True
                        if write:
                            set_text = f'UPDATE "{table}" SET "{column}" = ? WHERE "{column}" = ?'
                            connection.execute(set_text, (mended, text))
        if write:
            connection.commit()
            connection.execute("VACUUM")  # otherwise free pages keep what was there
    return found


def count_remains(found: list[Remains]) -> list[dict[str, Any]]:
    """Count them by place and kind, for the receipt."""
    counted = Counter((one.place, one.what, one.mended) for one in found)
    return [
        {"place": place, "what": what, "files": files, "how": "mended" if mended else "deleted"}
        for (place, what, mended), files in sorted(counted.items())
    ]
