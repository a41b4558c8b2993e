"""Labelled benchmarks: a manifest, CSV or Parquet, becomes pixels, labels or masks, and groups.

The manifest has a row per image. Columns: ``file``, and the group column (patient, examination or
clip); ``label`` for classification; ``mask`` for segmentation; optionally ``split`` with ``train``
or ``test``. Relative paths start at the manifest's folder.

Images are resized to S x S (bilinear) and masks likewise (nearest), as in the published downstream
protocol; all metrics are computed at that size.
"""

import csv
import io
import posixpath
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field, model_validator

from echostill.eval.remarks import Remark, find_remarks, in_words, joined_groups
from echostill.platform.config import Config
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.images import DecodeError, damage_in_words, decode_image
from echostill.platform.tables.storage import Storage, file_in

SPLITS = ("train", "test")
PARQUET = ".parquet"
BINARY_THRESHOLD = 127  # grey / 255 > 0.5, as published
# What programs write where there is no value.
MISSING = ("nan", "<na>", "null", "n/a", "#n/a", "nat")
COLOUR = 48  # levels between channels of a mask beyond what JPEG makes of grey

Row = dict[str, str]


class TaskSettings(Config):
    """One benchmark task."""

    name: str = Field(min_length=1, description="Name of the task in the report.")
    kind: Literal["classification", "segmentation"]
    manifest: str = Field(description="Manifest, CSV or Parquet; local path or URI.")
    classes: tuple[str, ...] = Field(
        (), description="Labels to keep, in this order; none keeps every label, sorted."
    )
    exclude_labels: tuple[str, ...] = Field((), description="Labels whose rows are left out.")
    min_groups: int = Field(2, ge=2, description="Smallest number of groups of a class.")
    mask_classes: int | dict[str, int] = Field(
        1,
        description="Foreground classes of the masks: 1 is grey above half; a number n is raw grey "
        "values 1..n; a mapping names each class and its raw grey value (other values are "
        "background).",
    )
    group_column: str = Field("group", description="Column that names the patient or clip.")

    @model_validator(mode="after")
    def _check(self) -> "TaskSettings":
        both = set(self.classes) & set(self.exclude_labels)
        if both:
            raise ValueError(f"label '{min(both)}' is both in classes and in exclude_labels")
        values = self.mask_classes
        if isinstance(values, dict):
            if not values or min(values.values()) < 1 or max(values.values()) > 255:
                raise ValueError("mask_classes maps each class name to a grey value in 1..255")
            if len(set(values.values())) < len(values):
                raise ValueError("mask_classes gives two classes the same grey value")
        elif not 1 <= values <= 255:
            raise ValueError("mask_classes must be in 1..255")
        return self


@dataclass(frozen=True)
class LabelledDataset:
    """A task's images in memory."""

    name: str
    kind: Literal["classification", "segmentation"]
    files: tuple[str, ...]
    groups: np.ndarray  # (N,) str
    pixels: np.ndarray  # (N, 3, S, S) uint8
    labels: np.ndarray | None  # (N,) int64, index into class_names; classification
    masks: np.ndarray | None  # (N, S, S) uint8, 0 background, k is class_names[k - 1]; segmentation
    class_names: tuple[str, ...]  # classes; for segmentation the foreground classes
    official_split: np.ndarray | None  # (N,) 'train' or 'test'
    notes: tuple[str, ...]  # what was left out and why, for the report
    remarks: tuple[Remark, ...] = ()  # identical pictures, black frames

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_size(self) -> int:
        """Side S of the images in pixels."""
        return int(self.pixels.shape[-1])


def load_dataset(task: TaskSettings, image_size: int) -> LabelledDataset:
    """Read a task's manifest and its images.

    Args:
        task: The task.
        image_size: Side S of the images in pixels.

    Raises:
        UsageError: A file, column or label is missing, an image is listed twice or cannot be read,
            a mask is coloured or of another size than its image, or a class has too few groups for
            both sides of a split.
    """
    folder, rows = read_manifest(task)
    official = _official_split(task, rows)
    rows, notes = _chosen_rows(task, rows)
    class_names: tuple[str, ...]
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    if task.kind == "classification":
        class_names = task.classes or tuple(sorted({row["label"] for row in rows}))
        position = {name: index for index, name in enumerate(class_names)}
        labels = np.array([position[row["label"]] for row in rows], dtype=np.int64)
        _require_groups(task, class_names, labels, [row[task.group_column] for row in rows], False)
    else:
        class_names = _mask_names(task)
        masks = np.empty((len(rows), image_size, image_size), dtype=np.uint8)
    pixels = np.empty((len(rows), 3, image_size, image_size), dtype=np.uint8)
    raw_values: set[int] = set()
    for index, row in enumerate(rows):
        image = _decode(folder, row["file"], task)
        resized = image.resize((image_size,) * 2, Image.Resampling.BILINEAR)
        pixels[index] = np.asarray(resized).transpose(2, 0, 1)
        if masks is not None:
            mask = _decode_mask(folder, row["mask"], task)
            if mask.size != image.size:
                raise UsageError(
                    f"task '{task.name}': mask '{row['mask']}' is {mask.size[0]} x {mask.size[1]} "
                    f"pixels, but its image {image.size[0]} x {image.size[1]}: both must be equal."
                )
            raw = grey_values(mask)
            raw_values.update(np.unique(raw).tolist())
            small = Image.fromarray(raw).resize((image_size,) * 2, Image.Resampling.NEAREST)
            masks[index] = _class_indices(task, np.asarray(small), row["mask"])
    if masks is not None and not masks.any():
        listing = ", ".join(str(value) for value in sorted(raw_values)[:12])
        raise UsageError(
            f"task '{task.name}': no mask has foreground; their grey values are {listing}. "
            "Set mask_classes to the grey values of the classes, for example {lesion: 1}."
        )
    groups = [row[task.group_column] for row in rows]
    files = tuple(row["file"] for row in rows)
    remarks = find_remarks(pixels, files, groups, [_label_of(task, row) for row in rows])
    notes += in_words(remarks, not official, {row["file"]: row.get("split", "") for row in rows})
    if not official:  # which says itself what is on which side
        joined = joined_groups(groups, remarks)
        if labels is not None:
            _require_groups(task, class_names, labels, joined, joined != groups)
        groups = joined
    return LabelledDataset(
        name=task.name,
        kind=task.kind,
        files=files,
        groups=np.array(groups),
        pixels=pixels,
        labels=labels,
        masks=masks,
        class_names=class_names,
        official_split=np.array([row["split"] for row in rows]) if official else None,
        notes=tuple(notes),
        remarks=tuple(remarks),
    )


def _label_of(task: TaskSettings, row: Row) -> str:
    return row["label"] if task.kind == "classification" else ""


def read_manifest(task: TaskSettings) -> tuple[Storage, list[Row]]:
    """Read a task's manifest: its folder and its rows; checks every needed column."""
    path = task.manifest
    folder, name = file_in(path)
    if folder.size(name) is None:
        names = [entry for entry in folder.list() if entry.endswith((".csv", PARQUET))]
        raise UsageError(f"task '{task.name}': no manifest '{path}'.{nearest(name, names)}")
    columns, found = _read_rows(task, folder.read(name))
    separators = [mark for mark in (";", "\t") if len(columns) == 1 and mark in columns[0]]
    needed = ["file", task.group_column, "label" if task.kind == "classification" else "mask"]
    if task.kind == "segmentation" and (task.classes or task.exclude_labels):
        needed.append("label")
    for column in needed:
        if column not in columns:
            raise UsageError(
                f"task '{task.name}': manifest '{path}' has no column '{column}'."
                f"{nearest(column, columns)} It has: {', '.join(columns) or 'no column at all'}."
                + "".join(f" Separate them by commas, not by {mark!r}." for mark in separators)
            )
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, row in enumerate(found, start=2):
        where = f"task '{task.name}': '{path}' row {line}"
        if None in row:
            raise UsageError(f"{where} has too many values.")
        # A space more would make another class of a label, and another patient of a group.
        row |= {c: row[c].strip() for c in (task.group_column, "label", "split") if c in row}
        for column in ("file", task.group_column):
            if not row[column] or (column != "file" and row[column].lower() in MISSING):
                raise UsageError(f"{where} has no '{column}'.")
        first = lines.setdefault(posixpath.normpath(row["file"]), line)
        if first != line:
            raise UsageError(
                f"{where} names '{row['file']}' again, which row {first} has: an image counts "
                "once. Remove one of the rows."
            )
        label, meant = row.get("label", ""), (*task.classes, *task.exclude_labels)
        if task.kind == "classification" and label.lower() in MISSING and label not in meant:
            raise UsageError(
                f"{where} has the label '{label}', as programs write for a missing value. Leave "
                "the cell empty to leave the row out, or name the label under classes or "
                "exclude_labels."
            )
        rows.append(row)
    return folder, rows


def _read_rows(task: TaskSettings, data: bytes) -> tuple[list[str], list[Any]]:
    """Return a manifest's columns and rows, all values as text; empty where there is none."""
    path = task.manifest
    if path.endswith(PARQUET):
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"task '{task.name}': '{path}' is not Parquet: {error}") from None
        rows = table.to_pylist()
        texts = [{k: "" if v is None or v != v else str(v) for k, v in row.items()} for row in rows]
        return table.column_names, texts
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(
            f"task '{task.name}': '{path}' is not UTF-8 text: save it as CSV UTF-8."
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        return list(reader.fieldnames or []), list(reader)
    except csv.Error as error:  # such as a quotation mark that is never closed
        raise UsageError(
            f"task '{task.name}': '{path}' is not CSV after line {reader.line_num}: {error}."
        ) from None


def _official_split(task: TaskSettings, rows: list[Row]) -> bool:
    """Return whether the manifest has a split; if so, every row must name its side."""
    values = {row.get("split", "") for row in rows}
    if values <= {""}:
        return False
    for value in sorted(values):
        if value not in SPLITS:
            raise UsageError(
                f"task '{task.name}': split '{value}' in '{task.manifest}' is neither 'train' nor "
                f"'test'.{nearest(value, SPLITS)} Name one of them in every row, or in none."
            )
    return True


def _chosen_rows(task: TaskSettings, rows: list[Row]) -> tuple[list[Row], list[str]]:
    present = {row.get("label", "") for row in rows}
    for label in (*task.classes, *task.exclude_labels):
        if label not in present:
            raise UsageError(
                f"task '{task.name}': no row of '{task.manifest}' has the label '{label}'."
                f"{nearest(label, present)}"
            )
    kept = [
        row
        for row in rows
        if (not task.classes or row["label"] in task.classes)
        and (not task.exclude_labels or row["label"] not in task.exclude_labels)
    ]
    spelled: dict[str, str] = {}
    for label in sorted({row["label"] for row in kept} if task.kind == "classification" else ()):
        other = spelled.setdefault(label.lower(), label)
        if other != label and not task.classes:
            raise UsageError(
                f"task '{task.name}': the labels '{other}' and '{label}' differ only in upper and "
                "lower case. Write them alike, or list both under classes if they are two."
            )
    notes = []
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows left out by their label")
    wanted = "label" if task.kind == "classification" else "mask"
    complete = [row for row in kept if row[wanted]]
    if len(complete) < len(kept):
        notes.append(f"{len(kept) - len(complete)} rows left out: no {wanted}")
    if not complete:
        raise UsageError(
            f"task '{task.name}': no row of '{task.manifest}' is left with a {wanted}."
        )
    return complete, notes


def _require_groups(
    task: TaskSettings, names: tuple[str, ...], labels: np.ndarray, groups: list[str], joined: bool
) -> None:
    if len(names) < 2:
        raise UsageError(
            f"task '{task.name}' has only the class '{names[0]}': at least two are needed."
        )
    for index, name in enumerate(names):
        own = {group for group, label in zip(groups, labels, strict=True) if label == index}
        if len(own) < task.min_groups:
            why = ", counting those that have an identical picture as one" if joined else ""
            raise UsageError(
                f"task '{task.name}': class '{name}' has {len(own)} group(s){why}; at least "
                f"{task.min_groups} are needed. Add it to exclude_labels, or add images of it."
            )


def _mask_names(task: TaskSettings) -> tuple[str, ...]:
    values = task.mask_classes
    if isinstance(values, dict):
        return tuple(values)
    return ("foreground",) if values == 1 else tuple(f"class {k}" for k in range(1, values + 1))


def _class_indices(task: TaskSettings, raw: np.ndarray, file: str) -> np.ndarray:
    values = task.mask_classes
    if isinstance(values, dict):
        table = np.zeros(256, dtype=np.uint8)
        for index, value in enumerate(values.values(), start=1):
            table[value] = index
        labels: np.ndarray = table[raw]
        return labels
    if values == 1:
        return (raw > BINARY_THRESHOLD).astype(np.uint8)
    if int(raw.max()) > values:
        raise UsageError(
            f"task '{task.name}': mask '{file}' has the grey value {int(raw.max())}, but "
            f"mask_classes is {values}. Map class names to grey values instead."
        )
    return raw


def grey_values(mask: Image.Image) -> np.ndarray:
    """Return the raw grey values of a mask, (H, W) uint8; for a palette the indices."""
    if mask.mode == "1":
        return np.asarray(mask.convert("L"))
    if mask.mode in ("L", "P"):
        return np.array(mask)
    if mask.mode.startswith("I"):
        values = np.asarray(mask)
        # A 16-bit mask that is a scaled binary mask stays a binary mask.
        return (values if int(values.max()) <= 255 else values // 257).astype(np.uint8)
    return np.asarray(mask.convert("RGB").convert("L"))


def _decode(folder: Storage, file: str, task: TaskSettings) -> Image.Image:
    """Read an image as RGB, in the way that images enter a pool."""
    data = _read(folder, file, task)
    try:
        return Image.fromarray(decode_image(data)).convert("RGB")
    except DecodeError as error:
        raise UsageError(
            f"task '{task.name}': '{file}' is not a readable image: it {error}."
        ) from None


def _decode_mask(folder: Storage, file: str, task: TaskSettings) -> Image.Image:
    """Read a mask with its values as they are."""
    data = _read(folder, file, task)
    try:
        with damage_in_words():
            mask = Image.open(io.BytesIO(data))
            mask.load()
    except DecodeError as error:
        raise UsageError(
            f"task '{task.name}': '{file}' is not a readable mask: it {error}."
        ) from None
    if mask.mode not in ("1", "L", "LA", "P") and not mask.mode.startswith("I"):
        channels = np.asarray(mask.convert("RGB"), dtype=np.int16)
        if int(np.ptp(channels, axis=2).max()) > COLOUR:
            raise UsageError(
                f"task '{task.name}': mask '{file}' is coloured. Masks are grey, or have a "
                "palette: give each class a grey value (mask_classes)."
            )
    return mask


def _read(folder: Storage, file: str, task: TaskSettings) -> bytes:
    place, name = folder, file
    if file.startswith("/") or "://" in file:
        place, name = file_in(file)
    if place.size(name) is None:
        parent, _, last = name.rpartition("/")
        hint = nearest(last, [entry.rpartition("/")[2] for entry in place.list(parent)])
        raise UsageError(f"task '{task.name}': '{file}' of '{task.manifest}' is missing.{hint}")
    return place.read(name)
