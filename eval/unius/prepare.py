"""From a download to a prepared set: read, check, correct, leave out, account for every row."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from echostill.eval.unius import prepared
from echostill.eval.unius.cards import Card
from echostill.eval.unius.checks import (
    SHOWN,
    checksum_differences,
    choose_layout,
    count_differences,
    label_of,
    require_equal,
    side_of,
    where_to_get,
)
from echostill.eval.unius.download import Download
from echostill.eval.unius.grouping import Likeness, Merged, merge_look_alikes
from echostill.eval.unius.items import Assembled, Item, assemble
from echostill.eval.unius.layouts import DownloadLayout
from echostill.eval.unius.prepared import BENCH_SCHEMA, STAGE, PreparedSet
from echostill.eval.unius.reading import Picture, read_item
from echostill.eval.unius.splits import encode_split, make_split
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import DecodeError, content_hash, encode_png
from echostill.platform.progress import Progress
from echostill.platform.tables.fingerprint import Claim, Fingerprint, code_version
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import (
    MANIFEST,
    encode_parquet,
    part_record,
    write_manifest,
    write_table,
)

_PART = "part-00000.parquet"


@dataclass
class _Rows:
    """What became of the rows so far."""

    out: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    pixels_of: dict[str, str] = field(default_factory=dict)  # content hash -> first key

    @property
    def total(self) -> int:
        return len(self.out) + len(self.dropped) + len(self.quarantined)


def prepare(
    card: Card,
    download: str | None,
    folder: str,
    likeness: Likeness,
    *,
    accept_differences: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> PreparedSet:
    """Prepare a set.

    Args:
        card: What the set is and how it lies in its download.
        download: Folder or archive, as it was downloaded.
        folder: Folder or URI to write into.
        likeness: Finds images that look alike; new, without images.
        accept_differences: Go on where counts or checksums differ from the card's; the manifest
            keeps the differences.
        overwrite: Replace a set that was prepared from something else.
        progress: Show a progress bar.

    Raises:
        UsageError: There is no download, it is not of this set or is incomplete, or the folder
            holds something else.
    """
    if not download:
        raise UsageError(f"no download given. {where_to_get(card)}")
    try:
        opened = Download(download)
    except UsageError as error:
        raise UsageError(f"{error} {where_to_get(card)}") from None
    with opened as files:
        layout = choose_layout(card, files)
        found = assemble(files, layout)
        differences = checksum_differences(card, files)
        if layout.images.reads != "frames":
            differences += count_differences(card, layout, len(found.items), found.items)
        require_equal(card, differences, accept_differences)
        storage = Storage(folder)
        claim = _claim(card, storage, files, accept_differences)
        claim.take(overwrite)
        if storage.exists(MANIFEST):
            return PreparedSet(prepared.open_prepared(folder).table, already_done=True)
        rows = _read_all(card, files, layout, found, storage, likeness, progress)
        if layout.images.reads == "frames":
            differences += count_differences(card, layout, rows.total, [])
            require_equal(card, differences, accept_differences)
    if not rows.out:
        raise UsageError(_nothing(card, rows))
    sides = [f"{row['split']}|{row['fold']}" for row in rows.out]
    labels = [row["label"] for row in rows.out]
    groups = [row["group"] for row in rows.out]
    merged = merge_look_alikes(groups, sides, labels, likeness.components())
    for row, group in zip(rows.out, merged.groups, strict=True):
        row["group"] = group
    _write(card, layout, storage, claim, rows, merged, found.unread, differences)
    return prepared.open_prepared(folder)


def _claim(card: Card, storage: Storage, files: Download, accepted: bool) -> Claim:
    configuration = {"card": card.model_dump(mode="json"), "accept_differences": accepted}
    wanted = Fingerprint(configuration, code_version(), {}, {"download": files.digest})
    about = {"inputs.download": f"{len(files.names)} files"}
    return Claim(storage, wanted, STAGE, "a prepared set", about=about)


def _read_all(
    card: Card,
    files: Download,
    layout: DownloadLayout,
    found: Assembled,
    storage: Storage,
    likeness: Likeness,
    progress: bool,
) -> _Rows:
    rows = _Rows()
    for stray in found.strays:
        rows.quarantined.append(_failed(stray.key, stray.source, "Stray", f"the file {stray.why}"))
    names = _ids(item.key for item in found.items)
    official = any(item.split for item in found.items)
    with Progress(STAGE, len(found.items), enabled=progress) as bar:
        for item in found.items:
            why = next((e.why for e in item.errata if e.does == "drop"), "")
            if why:
                rows.dropped.append(_failed(item.key, item.file, "erratum", why))
            else:
                try:
                    label, side = label_of(card, layout, item), side_of(layout, item, official)
                    pictures = read_item(files, layout, item, card.structures)
                except DecodeError as error:
                    kind, message = type(error).__name__, f"the image {error}"
                    rows.quarantined.append(_failed(item.key, item.file, kind, message))
                else:
                    for picture in pictures:
                        _take(layout, item, picture, label, side, names, storage, rows, likeness)
            bar.advance(note=item.key)
    return rows


def _take(
    layout: DownloadLayout,
    item: Item,
    picture: Picture,
    label: str,
    side: str,
    names: Mapping[str, str],
    storage: Storage,
    rows: _Rows,
    likeness: Likeness,
) -> None:
    """Write a picture and its row, or drop it as the layout says."""
    frame = "" if picture.frame is None else f"#{picture.frame}"
    source, mask = f"{item.file}{frame}", picture.mask
    if mask is not None and not mask.any():
        if layout.empty_masks == "drop":
            rows.dropped.append(_failed(item.key, source, "empty mask", "its mask is empty"))
            return
        mask = None if layout.empty_masks == "unset" else mask
    if not label and mask is None:
        why = "it has neither a label nor a mask"
        rows.dropped.append(_failed(item.key, source, "no target", why))
        return
    if layout.exact_copies == "drop":
        first = rows.pixels_of.setdefault(content_hash(picture.pixels), source)
        if first != source:
            rows.dropped.append(_failed(item.key, source, "exact copy", f"the pixels of '{first}'"))
            return
    name = names[item.key] + ("" if picture.frame is None else f"-{picture.frame:04d}")
    image_file = f"images/{name}{picture.suffix}"
    storage.write(image_file, picture.data)
    mask_file, mask_sum = "", ""
    if mask is not None:
        data = encode_png(mask)
        mask_file, mask_sum = f"masks/{name}.png", sha256(data)
        storage.write(mask_file, data)
    likeness.add(picture.pixels)
    values = sorted(set(mask.ravel().tolist()) - {0}) if mask is not None else []
    rows.out.append(
        {
            "id": name,
            "source": source,
            "image": image_file,
            "mask": mask_file,
            "label": label,
            "group": item.group or f"image {item.key}",
            "split": side,
            "fold": item.fold,
            "structures": " ".join(str(value) for value in values),
            "width": picture.pixels.shape[1],
            "height": picture.pixels.shape[0],
            "pixel_mm": _number(item.pixel_mm),
            "image_sha256": sha256(picture.data),
            "mask_sha256": mask_sum,
        }
    )


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if value > 0 else None


def _ids(keys: Iterable[str]) -> dict[str, str]:
    """Return a file name for each key; keys that differ only in odd characters get a checksum."""
    plain = {key: re.sub(r"[^A-Za-z0-9.+-]+", "_", key).strip("_.") or "image" for key in keys}
    times = Counter(name.casefold() for name in plain.values())
    return {
        key: name if times[name.casefold()] == 1 else f"{name}-{sha256(key.encode())[:8]}"
        for key, name in plain.items()
    }


def _failed(key: str, source: str, kind: str, message: str) -> dict[str, str]:
    row = {"stage": STAGE, "id": key, "source": source}
    return {**row, "error_class": kind, "message": message}


def _nothing(card: Card, rows: _Rows) -> str:
    held = [*rows.quarantined, *rows.dropped]
    first = f" (first: {held[0]['source']}: {held[0]['message']})" if held else ""
    return f"no image of {card.name} is left: {len(held)} were dropped or quarantined{first}."


def _write(
    card: Card,
    layout: DownloadLayout,
    storage: Storage,
    claim: Claim,
    rows: _Rows,
    merged: Merged,
    unread: list[str],
    differences: list[str],
) -> None:
    made = claim.wanted.as_dict()
    for name, held in ((prepared.QUARANTINE, rows.quarantined), (prepared.DROPPED, rows.dropped)):
        table = pa.Table.from_pylist(held, schema=QUARANTINE_SCHEMA)
        write_table(storage.at(name), table, stage=STAGE, fingerprint=made)
    data = encode_parquet(pa.Table.from_pylist(rows.out, schema=BENCH_SCHEMA))
    storage.write(_PART, data)
    part = part_record(_PART, len(rows.out), data)
    digest = sha256(part["sha256"].encode())
    split = make_split(rows.out, test_fold=layout.test_fold, folds=card.small)
    texts = {
        prepared.LABELS: prepared.labels_csv(rows.out),
        prepared.TASKS: prepared.tasks_yaml(card, storage.locate(prepared.LABELS)),
        prepared.SPLITS: encode_split(split, card.name, digest),
    }
    files = [{"file": name, "sha256": sha256(text)} for name, text in texts.items()]
    for name, text in texts.items():
        storage.write(name, text)
    for row in rows.out:
        files.append({"file": row["image"], "sha256": row["image_sha256"]})
        if row["mask"]:
            files.append({"file": row["mask"], "sha256": row["mask_sha256"]})
    alike = {name: getattr(merged, name) for name in ("merged", "contradictions", "across")}
    write_manifest(
        storage,
        stage=STAGE,
        schema=BENCH_SCHEMA,
        parts=[part],
        fingerprint=made,
        extra={
            "set": card.name,
            "layout": layout.name,
            "rows_in": rows.total,
            "dropped": dict(sorted(Counter(row["error_class"] for row in rows.dropped).items())),
            "quarantined": len(rows.quarantined),
            "groups": len(set(merged.groups)),
            "look_alikes": alike,
            "differences": differences,
            "unread": len(unread),
            "unread_first": unread[:SHOWN],
            "split": split.describe(),
            "files": files,
        },
    )
