"""A prepared set as a protocol uses it: its tasks, and their images with sides and folds."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from PIL import Image

from echostill.eval.datasets import LabelledDataset, TaskSettings, load_dataset
from echostill.eval.splits import Split
from echostill.eval.unius.cards import Card
from echostill.eval.unius.prepared import LABELS, SPLITS, bench_manifests, open_prepared
from echostill.eval.unius.splits import SIDES, read_split
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.seeding import stream
from echostill.platform.tables.storage import Storage

Kind = Literal["classification", "segmentation", "detection"]
LESIONS = ("lesion", "nodule", "mass", "leiomyoma", "gist")  # structures of tumours [I]


@dataclass(frozen=True)
class BenchTask:
    """A task of a prepared set; picklable, its images are read where they are used."""

    set: str
    kind: Kind
    folder: str
    organs: tuple[str, ...]
    settings: TaskSettings
    digest: str  # of the prepared table
    rows: int
    training: int  # images of the sides train and val

    @property
    def name(self) -> str:
        """Name of the task, the set's with the kind."""
        return f"{self.set}-{self.kind}"

    @property
    def structures(self) -> dict[str, int]:
        """Structures of the masks with their values."""
        values = self.settings.mask_classes
        return values if isinstance(values, dict) else {}

    @property
    def lesions(self) -> bool:
        """Whether all structures are lesions."""
        return bool(self.structures) and set(self.structures) <= set(LESIONS)


@dataclass(frozen=True)
class BenchData:
    """The images of a task at one size."""

    task: BenchTask
    dataset: LabelledDataset
    ids: tuple[str, ...]
    sides: dict[str, np.ndarray]  # rows of train, val and test
    folds: tuple[np.ndarray, ...]  # rows that each fold holds out
    pixel_mm: np.ndarray  # (N,) float64, nan where unknown

    @cached_property
    def training(self) -> np.ndarray:
        """Rows of the sides train and val."""
        return np.sort(np.concatenate([self.sides["train"], self.sides["val"]]))

    def rounds(self, split: Literal["sides", "folds"]) -> list[Split]:
        """Return what is trained on and tested, once or for each fold.

        Raises:
            UsageError: The set has no folds.
        """
        if split == "sides":
            return [Split(self.training, self.sides["test"])]
        if not self.folds:
            raise UsageError(
                f"'{self.task.set}' has no folds that hold out every image: use "
                "protocol.frozen.split=sides for it."
            )
        every = np.arange(len(self.ids))
        return [Split(np.setdiff1d(every, held), held) for held in self.folds]

    def native_mask(self, row: int) -> np.ndarray:
        """Read a row's mask at the size of its image: (H, W) uint8, 0 or k for structure k."""
        file = self.dataset.files[row].replace("images/", "masks/", 1)
        name = f"{file.rpartition('.')[0]}.png"
        with Image.open(io.BytesIO(Storage(self.task.folder).read(name))) as image:
            raw = np.asarray(image)
        table = np.zeros(256, dtype=np.uint8)
        for index, value in enumerate(self.task.structures.values(), start=1):
            table[value] = index
        mask: np.ndarray = table[raw]
        return mask


def find_tasks(
    folder: str, sets: tuple[str, ...] = (), kinds: tuple[Kind, ...] = ()
) -> list[BenchTask]:
    """List the benchmark's tasks of the prepared sets in a folder.

    Args:
        folder: A prepared set, or a folder of them.
        sets: Names of sets, in this order; all if there are none.
        kinds: Kinds of tasks. Detection is a task of sets of which all structures are lesions.

    Raises:
        UsageError: There is no such set, or none with such a task.
    """
    found: dict[str, list[BenchTask]] = {}
    for manifest in bench_manifests(folder):
        tasks = _tasks_of(manifest.removesuffix(f"/{LABELS}"))
        if tasks[0].set in found:
            raise UsageError(f"the set '{tasks[0].set}' is twice in '{folder}': move one away.")
        found[tasks[0].set] = tasks
    for name in sets:
        if name not in found:
            raise UsageError(
                f"'{folder}' holds no prepared set '{name}'.{nearest(name, found)} There are: "
                f"{', '.join(found)}. `echostill bench prepare {name}` makes it."
            )
    chosen = [task for name in sets or sorted(found) for task in found[name] if task.kind in kinds]
    if not chosen:
        raise UsageError(f"no set in '{folder}' has a task of the kind {' or '.join(kinds)}.")
    return chosen


def load_data(task: BenchTask, image_size: int) -> BenchData:
    """Read a task's images.

    Raises:
        UsageError: A file is missing or unreadable, or the set was changed.
        EchostillError: The split does not cover the images.
    """
    prepared = open_prepared(task.folder)
    storage, table = prepared.table.storage, prepared.table
    if table.digest != task.digest:
        raise UsageError(f"'{task.folder}' was prepared anew while it was used: run again.")
    rows = {row["image"]: row for row in table.read(["id", "image", "pixel_mm"]).to_pylist()}
    dataset = load_dataset(task.settings, image_size)
    ids = tuple(rows[file]["id"] for file in dataset.files)
    split = read_split(storage, SPLITS, table.digest)
    place = {name: row for row, name in enumerate(ids)}

    def numbers(names: tuple[str, ...]) -> np.ndarray:
        return np.array(sorted(place[name] for name in names if name in place), dtype=np.int64)

    sides = {side: numbers(split.sides[side]) for side in SIDES}
    for side in ("train", "test"):
        if not len(sides[side]):
            raise EchostillError(
                f"'{task.set}' has no {side} image with a target for {task.kind}: it is too small, "
                "or the split was made of other rows."
            )
    folds = tuple(held for names in split.folds.values() if len(held := numbers(names)))
    if sum(len(held) for held in folds) != len(ids):  # folds of the training side alone
        folds = ()
    spacing = [rows[file]["pixel_mm"] for file in dataset.files]
    pixel_mm = np.array([np.nan if value is None else value for value in spacing])
    return BenchData(task, dataset, ids, sides, folds, pixel_mm)


def nested_share(data: BenchData, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a share of some rows by whole groups, stratified by class, at least one group each.

    The order of the groups depends on the seed and their names: a share is part of a larger one.
    """
    if share == 1:
        return rows
    labels = data.dataset.labels
    strata = np.zeros(len(rows), dtype=np.int64) if labels is None else labels[rows]
    groups = data.dataset.groups[rows]
    chosen: set[str] = set()
    for stratum in np.unique(strata):
        names = sorted(set(groups[strata == stratum].tolist()))
        order = stream(seed, "share", int(stratum)).permutation(len(names))
        chosen |= {names[place] for place in order[: max(round(share * len(names)), 1)]}
    return rows[np.isin(groups, sorted(chosen))]


def limited(data: BenchData, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Return rows of as many whole groups as hold at most so many images, at least one group."""
    if len(rows) <= most:
        return rows
    names, place = np.unique(data.dataset.groups[rows], return_inverse=True)
    counts = np.bincount(place)
    order = stream(seed, "limit").permutation(len(names))
    kept = order[np.cumsum(counts[order]) <= most]
    return rows[np.isin(place, kept if len(kept) else order[:1])]


def _tasks_of(folder: str) -> list[BenchTask]:
    prepared = open_prepared(folder)
    storage, manifest = prepared.table.storage, prepared.table.manifest
    try:
        values = manifest["fingerprint"]["configuration"]["card"]
        card = Card.model_validate_json(json.dumps(values))
    except (KeyError, ValueError):
        raise UsageError(
            f"'{folder}' was prepared by another version of echostill: prepare it again."
        ) from None
    split = read_split(storage, SPLITS, prepared.table.digest)
    training = len(split.sides["train"]) + len(split.sides["val"])

    def task(kind: Kind, settings: TaskSettings) -> BenchTask:
        table = prepared.table
        return BenchTask(
            card.name,
            kind,
            storage.root,
            card.organs,
            settings,
            table.digest,
            table.rows,
            training,
        )

    benchmark = {task.kind for task in card.tasks if task.benchmark}
    tasks = []
    for settings in card.evaluation_tasks(storage.locate(LABELS)):
        if settings.kind in benchmark:
            tasks.append(task(settings.kind, settings))
        if settings.kind == "segmentation":
            own = task("detection", settings)
            tasks += [own] if own.lesions else []
    return tasks
