"""A prepared set: a folder with images, masks, one table, a manifest, and what evaluate reads.

======================  ===============================================================
``images/``, ``masks/``  a file per row; masks have the values of the card's structures
``part-00000.parquet``   the table, with :data:`BENCH_SCHEMA`
``labels.csv``           the same rows as a manifest for ``evaluate`` and ``leakcheck``
``evaluate.yaml``        the tasks, for a configuration of ``evaluate``
``splits.json``          train, val and test, and folds
``quarantine/``          rows that could not be read, with the reason
``dropped/``             rows that the card leaves out, with the reason
``manifest.json``        counts, checksums of all files, the card's fingerprint
======================  ===============================================================
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from echostill.eval.unius.cards import Card
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.verify import Verification, verify_folder

STAGE = "bench prepare"
LABELS = "labels.csv"
TASKS = "evaluate.yaml"
SPLITS = "splits.json"
QUARANTINE = "quarantine"
DROPPED = "dropped"

BENCH_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # also the files' name
        ("source", pa.string()),  # path in the download, with #frame of a volume
        ("image", pa.string()),  # relative to the folder
        ("mask", pa.string()),  # the same; empty where there is none
        ("label", pa.string()),  # empty where there is none
        ("group", pa.string()),  # patient, subject or clip, merged with look-alikes
        ("split", pa.string()),  # official: train, val or test; empty where there is none
        ("fold", pa.string()),  # official fold in which it is held out; empty where there is none
        ("structures", pa.string()),  # values in the mask, separated by blanks
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixel_mm", pa.float64()),  # side of a pixel in millimetres; null where unknown
        ("image_sha256", pa.string()),
        ("mask_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class PreparedSet:
    """A finished prepared set."""

    table: Table
    already_done: bool = False

    @property
    def counts(self) -> dict[str, Any]:
        """Rows in, out, dropped by reason, quarantined; and what was seen."""
        manifest = self.table.manifest
        names = (
            "rows_in",
            "rows",
            "dropped",
            "quarantined",
            "groups",
            "look_alikes",
            "differences",
        )
        return {name: manifest[name] for name in names}

    def describe(self) -> str:
        """Say in words what was prepared."""
        manifest = self.table.manifest
        dropped = sum(manifest["dropped"].values())
        alike = manifest["look_alikes"]
        lines = [
            f"{manifest['set']}: {manifest['rows_in']} rows in = {manifest['rows']} out + "
            f"{dropped} dropped + {manifest['quarantined']} quarantined; "
            f"{manifest['groups']} groups: {self.table.storage.root}"
        ]
        lines += [f"dropped: {count} ({why})" for why, count in manifest["dropped"].items()]
        if alike["merged"]:
            lines.append(f"look-alikes: {alike['merged']} images share a group with others")
        if alike["contradictions"]:
            lines.append(
                f"look-alikes: {alike['contradictions']} groups of them have several labels"
            )
        if alike["across"]:
            lines.append(
                f"look-alikes: {alike['across']} sets are on several sides of the official split"
            )
        lines += [f"differs: {text}" for text in manifest["differences"]]
        if manifest["unread"]:
            shown = ", ".join(manifest["unread_first"])
            lines.append(
                f"not read: {manifest['unread']} files that the card does not name ({shown})"
            )
        lines.append(f"split: {manifest['split']}")
        if self.already_done:
            lines.append("it was there already")
        return "\n".join(lines)


def open_prepared(folder: str) -> PreparedSet:
    """Open a prepared set.

    Raises:
        UsageError: There is none in the folder.
        EchostillError: Its counts do not add up.
    """
    storage = Storage(folder)
    if not storage.exists(MANIFEST):
        raise UsageError(f"'{folder}' is not a prepared set: run `echostill bench prepare` first.")
    table = Table.open(storage, STAGE)
    manifest = table.manifest
    if manifest["stage"] != STAGE:
        raise UsageError(
            f"'{folder}' was made by `echostill {manifest['stage']}`: it is no prepared set."
        )
    out = manifest["rows"] + sum(manifest["dropped"].values()) + manifest["quarantined"]
    if manifest["rows_in"] != out:
        raise EchostillError(
            f"'{folder}': {manifest['rows_in']} rows went in, but {out} are accounted for: prepare "
            "it again with --overwrite."
        )
    return PreparedSet(table)


def verify_prepared(folder: str) -> Verification:
    """Re-read a prepared set: checksums of every file, rows, schema, accounting.

    Raises:
        UsageError: There is none in the folder.
        EchostillError: Its counts do not add up.
    """
    storage = open_prepared(folder).table.storage
    result = Verification(folder)
    places = (("set", storage), *((name, storage.at(name)) for name in (QUARANTINE, DROPPED)))
    for name, place in places:
        try:
            verify_folder(place, name, result)
        except (FileNotFoundError, KeyError, TypeError, AttributeError):
            result.problems.append(f"{name}: no manifest that echostill wrote")
    return result


def bench_manifests(folder: str) -> list[str]:
    """Return the manifests of a prepared set, or of all prepared sets in a folder.

    Raises:
        UsageError: There is none.
    """
    storage = Storage(folder)
    names = storage.list(recursive=True) if storage.exists() else []
    found = sorted(
        name.rpartition("/")[0]
        for name in names
        if name == MANIFEST or name.endswith(f"/{MANIFEST}")
    )
    sets = [inner for inner in found if storage.exists(f"{inner}/{LABELS}" if inner else LABELS)]
    if not sets:
        raise UsageError(
            f"'{folder}' holds no prepared set: run `echostill bench prepare NAME --from DOWNLOAD "
            f"--to {folder}/NAME` first."
        )
    paths = []
    for inner in sets:
        path = storage.locate(inner)
        open_prepared(path)
        paths.append(f"{path}/{LABELS}")
    return paths


def labels_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the rows as the manifest that ``evaluate`` reads.

    It knows train and test: validation images go to train. There is a column ``split`` only where
    the set has an official one.
    """
    official = any(row["split"] for row in rows)
    columns = ["file", "mask", "label", "group", *(["split"] if official else [])]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        side = "test" if row["split"] == "test" else "train"
        values = [
            row["image"],
            row["mask"],
            row["label"],
            row["group"],
            *([side] if official else []),
        ]
        writer.writerow(values)
    return text.getvalue().encode()


def tasks_yaml(card: Card, manifest: str) -> bytes:
    """Return the set's tasks as a section of a configuration of ``evaluate``."""
    import yaml

    tasks = []
    for task in card.evaluation_tasks(manifest):
        plain = task.model_dump(mode="json", exclude_defaults=True)
        tasks.append({"name": task.name, "kind": task.kind, **plain})
    document = {"evaluate": {"tasks": tasks}}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode()
