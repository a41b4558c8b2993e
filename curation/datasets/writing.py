"""Write a coreset as a dataset: pictures, what is known of them, a card, Croissant metadata.

What is written depends only on the coreset, the pool and the options, byte for byte. Files appear
whole, and the record of the export last, so the same command finishes what was interrupted.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.datasets.card import Facts, dataset_card, facts_of
from echostill.curation.datasets.chosen import open_chosen
from echostill.curation.datasets.croissant import croissant
from echostill.curation.datasets.forms import FORMS, ORIGINALS, Form, SplitPiece
from echostill.curation.datasets.originals import open_originals
from echostill.curation.datasets.splits import described
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.progress import Progress
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.storage import Storage
from echostill.platform.withdrawal.exports import record_export

BEGUN, RECORD = ".export.json", "export.json"
Pictures = Callable[[np.ndarray], Iterator[tuple[int, bytes]]]  # of rows: row and encoded picture
Cut = tuple[str, int, int, np.ndarray]  # split, number, pieces of the split, rows
METADATA, CARD, CROISSANT = "metadata.csv", "README.md", "croissant.json"


@dataclass(frozen=True)
class ExportedDataset:
    """What an export wrote.

    Attributes:
        where: The folder.
        form: Its form.
        images: Images by split.
        files: Files with pictures.
        already_done: Whether it was there before.
    """

    where: str
    form: str
    images: dict[str, int]
    files: int
    already_done: bool = False

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {split}" for split, count in self.images.items())
        state = "was already written" if self.already_done else "written"
        return (
            f"'{self.where}' {state} as {self.form}: {sum(self.images.values())} images ({sizes}) "
            f"in {self.files} file(s), with {CARD}, {METADATA} and {CROISSANT}."
        )


def export_dataset(
    store: str,
    name: str,
    to: str,
    form: str,
    *,
    shares: Mapping[str, float] | None = None,
    classes: str | None = None,
    seed: int = 0,
    licence: str = "",
    overwrite: bool = False,
    sources: Sequence[str] = (),
    may_identify: bool = False,
) -> ExportedDataset:
    """Write the chosen images of a coreset as a dataset.

    Args:
        store: Folder or URI of the store.
        name: Name of the coreset.
        to: Folder or URI to write to; it must be new, empty, or begun by the same export.
        form: A name in :data:`~echostill.curation.datasets.forms.FORMS`, or ``originals`` for the
            files that the images were read from, byte for byte.
        shares: Share of the images by split; splits never divide a group. Default all in ``train``.
        classes: Column of the pool that is the class: ``label``, ``organ``, ``device`` or
            ``modality``; default the label if any image has one, otherwise the organ.
        seed: Of the splits.
        licence: Licence of the images, for the card.
        overwrite: Replace what an export wrote there before.
        sources: Where the originals are; default where the ingest found them.
        may_identify: Write originals of a pool that was de-identified.

    Raises:
        UsageError: No such coreset or form, the folder holds something else, or originals are gone
            or may not be written.
        EchostillError: The number of images written is not the number chosen.
    """
    forms = {**FORMS, ORIGINALS.name: ORIGINALS}
    if form not in forms:
        raise UsageError(f"--as '{form}' is not valid: expected {', '.join(forms)}.")
    if form != ORIGINALS.name and (sources or may_identify):
        raise UsageError("--source and --may-identify go with --as originals.")
    chosen = open_chosen(store, name)
    if not len(chosen):
        raise UsageError(f"coreset '{name}' has no image: there is nothing to write.")
    sides = dict(shares or {"train": 1.0})
    table = described(chosen, classes, sides, seed)
    pictures = chosen.pictures
    if form == ORIGINALS.name:
        originals = open_originals(chosen, sources, may_identify=may_identify)
        pictures = originals.pictures
        names = pa.array([f"originals/{name}" for name in originals.names])
        table = table.add_column(0, "file_name", names)
    asked = {
        "form": form,
        "coreset": chosen.coreset.digest,
        "pool": chosen.pool.digest,
        "splits": sides,
        "seed": seed,
        "class": classes or "",
        "licence": licence,
        "version": code_version(),
    }
    target = Storage(to)
    if (done := _begin(target, asked, overwrite=overwrite)) is not None:
        return done
    written = _write_pictures(target, pictures, table, forms[form], list(sides))
    facts = facts_of(chosen, table, licence)
    written |= _write_words(target, facts, forms[form], table, written)
    images = {side: facts.counts["split"].get(side, 0) for side in sides}
    record = {"asked": asked, "images": images, "files": written}
    # The store knows first: a withdrawal must be able to say who has a copy.
    record_export(chosen.store, name, chosen.coreset.digest, target.root, form)
    target.write(RECORD, json.dumps(record, indent=1).encode())
    target.delete(BEGUN)
    return _result(target, record)


def _result(
    target: Storage, record: dict[str, Any], *, already_done: bool = False
) -> ExportedDataset:
    words = {METADATA, CARD, CROISSANT}
    files = [name for name in record["files"] if name not in words]
    return ExportedDataset(
        target.root, record["asked"]["form"], record["images"], len(files), already_done
    )


def _begin(target: Storage, asked: dict[str, Any], *, overwrite: bool) -> ExportedDataset | None:
    """Return what is there if it is finished; otherwise note what is being written."""
    there = target.sizes()
    kept = RECORD if RECORD in there else BEGUN if BEGUN in there else None
    if kept is None and there:
        raise UsageError(
            f"'{target.root}' holds other files ({min(there)}, ...): give a new or empty folder."
        )
    record = json.loads(target.read(kept)) if kept else None
    if record is not None and record["asked"] != asked:
        keys = sorted(key for key in asked if record["asked"].get(key) != asked[key])
        other = f"'{target.root}' holds another export (other {', '.join(keys)})"
        if kept == BEGUN:
            raise UsageError(
                f"{other} that is not finished: finish it with its own command, delete the "
                "folder, or give another one."
            )
        if not overwrite:
            raise UsageError(f"{other}: give another folder, or --overwrite to replace it.")
        for name in (RECORD, *record["files"]):
            target.delete(name)
    elif kept == RECORD and record is not None:
        if all(there.get(name) == size for name, size in record["files"].items()):
            return _result(target, record, already_done=True)
        target.delete(RECORD)
    target.write(BEGUN, json.dumps({"asked": asked}, indent=1, sort_keys=True).encode())
    return None


def _pieces(table: pa.Table, sides: list[str], size: int) -> Iterator[Cut]:
    """Cut each split into pieces."""
    split_of = np.asarray(table["split"].to_pylist(), dtype=object)
    for side in sides:
        rows = np.flatnonzero(split_of == side)
        pieces = -(-len(rows) // size)
        for number in range(pieces):
            yield side, number, pieces, rows[number * size : (number + 1) * size]


def _write_pictures(
    target: Storage, pictures: Pictures, table: pa.Table, form: Form, sides: list[str]
) -> dict[str, int]:
    """Write what is not there yet; return the sizes of all files with pictures."""
    there, written, images = target.sizes(), {}, 0
    with Progress("export-coreset", len(table)) as progress:
        for side, number, pieces, rows in _pieces(table, sides, form.images_per_file):
            found = list(pictures(rows))
            if [row for row, _ in found] != rows.tolist():
                raise EchostillError("the pool changed while it was read: run the command again.")
            piece = SplitPiece(
                side, number, pieces, table.take(pa.array(rows)), [d for _, d in found]
            )
            for name, data in form.files(piece):
                if there.get(name) != len(data):
                    target.write(name, data)
                written[name] = len(data)
            images += len(rows)
            progress.advance(len(rows))
    if images != len(table):
        raise EchostillError(f"{images} of {len(table)} chosen images were written.")
    return written


def _write_words(
    target: Storage, facts: Facts, form: Form, table: pa.Table, files: Mapping[str, int]
) -> dict[str, int]:
    """Write the table of all images, the card and the Croissant metadata; return their sizes."""
    metadata = _metadata(form, table, files)
    contents = {
        METADATA: metadata,
        CARD: dataset_card(facts, form).encode(),
        CROISSANT: json.dumps(
            croissant(facts, form, table.schema, metadata), indent=1, ensure_ascii=False
        ).encode(),
    }
    for name, data in contents.items():
        target.write(name, data)
    return {name: len(data) for name, data in contents.items()}


def _metadata(form: Form, table: pa.Table, files: Mapping[str, int]) -> bytes:
    """A CSV row per image; forms with a file per image name it."""
    sink = io.StringIO(newline="")
    own = {name.rpartition("/")[2].partition(".")[0]: name for name in files}
    names = ["file_name"] if form.file_per_image else []
    rows = csv.writer(sink, lineterminator="\n")
    rows.writerow([*names, *table.column_names])
    for row in table.to_pylist():
        rows.writerow([*([own[row["image_id"]]] if names else []), *row.values()])
    return sink.getvalue().encode()
