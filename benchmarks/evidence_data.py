"""What the evidence is measured on: tasks, features out of fold, pools and the junk in them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from distill_common import ROOT
from PIL import Image, ImageFilter
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from echostill.eval.datasets import LabelledDataset, TaskSettings, load_dataset
from echostill.eval.statistics.folds import group_folds

sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
import make_sample

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
JUNK = ("blank", "calipers", "phantom", "blurred")
THUMBNAIL = 8


def load_tasks(
    plan: dict[str, Any], source: Path, out: Path, image_size: int, limit: int | None = None
) -> list[LabelledDataset]:
    """Write a manifest of each task and read its images; ``limit`` keeps the first groups alone."""
    found = []
    for name, settings in plan["tasks"].items():
        dataset = settings["set"]
        choose = (
            make_sample.benchmark_rows if settings.get("benchmark") else make_sample.read_labels
        )
        rows = choose(source, dataset)
        if limit is not None:
            rows = _few(rows, limit)
        lines = [
            [str((source / dataset / row["file"]).resolve()), row["label"], row["group"]]
            for row in sorted(rows, key=lambda row: row["file"])
        ]
        path = out / "tasks" / f"{name}.csv"
        make_sample.write_csv(path, ["file", "label", "group"], lines)
        task = TaskSettings(name=name, kind="classification", manifest=str(path))
        found.append(load_dataset(task, image_size))
    return found


def _few(rows: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    """Keep about so many rows, some groups of every label."""
    labels = sorted({row["label"] for row in rows})
    kept = []
    for label in labels:
        own = [row for row in rows if row["label"] == label]
        kept += make_sample.take_groups(own, limit // len(labels), f"quick/{label}")
    return kept


def out_of_fold(features: np.ndarray, dataset: LabelledDataset, folds: int) -> np.ndarray:
    """Predict the class of each image by a classifier that saw none of its group.

    Ridge regression on standardised features, classes weighted alike. The penalty is chosen on the
    other folds by their balanced accuracy.

    Args:
        features: (N, D).
        dataset: The task.
        folds: Number of folds by group, the same ones for all models.

    Returns:
        (N,) int64.
    """
    labels = dataset.labels
    assert labels is not None
    fold = group_folds(dataset.groups, labels, folds, seed=0)
    predicted = np.empty(len(labels), dtype=np.int64)
    for tested in np.unique(fold):
        outside = fold != tested
        search = GridSearchCV(
            make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced")),
            {"ridgeclassifier__alpha": ALPHAS},
            scoring="balanced_accuracy",
            cv=PredefinedSplit(fold[outside]),
        )
        search.fit(features[outside], labels[outside])
        predicted[~outside] = search.predict(features[~outside])
    return predicted


def thumbnail(dataset: LabelledDataset) -> np.ndarray:
    """Return the mean grey of 8 x 8 cells, (N, 64): what is known without any model."""
    grey = dataset.pixels.mean(axis=1)
    side = grey.shape[-1] // THUMBNAIL
    cells = grey.reshape(len(grey), THUMBNAIL, side, THUMBNAIL, side)
    return cells.mean(axis=(2, 4)).reshape(len(grey), -1)


def write_pool(
    plan: dict[str, Any], source: Path, out: Path, junk: float, limit: int | None = None
) -> Path:
    """Write the manifest of the redundant pool, with a share of junk, and the junk itself."""
    lines = []
    for dataset in plan["sets"]:
        organ = make_sample.ORGANS[dataset]
        rows = make_sample.outside_benchmark(source, dataset)
        if limit is not None:
            rows = rows[:: max(1, len(rows) * len(plan["sets"]) // limit)]
        for row in rows:
            path = str((source / dataset / row["file"]).resolve())
            lines.append([path, f"{organ}/{row['group']}", organ])
    random = np.random.default_rng(0)
    for number in range(round(len(lines) * junk / (1 - junk))):
        kind = JUNK[number % len(JUNK)]
        like = lines[random.integers(len(lines))]
        path = out / "junk" / f"junk_{kind}_{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_junk(kind, Path(like[0]), random).save(path)
        lines.append([str(path.resolve()), f"junk/{number}", like[2]])
    manifest = out / "pool.csv"
    make_sample.write_csv(manifest, ["file", "group", "organ"], lines)
    return manifest


def make_junk(kind: str, like: Path, random: np.random.Generator) -> Image.Image:
    """Make a picture that teaches nothing, of the size of another one.

    Args:
        kind: ``blank``: noise of a few grey levels; ``calipers``: marks and a dotted line on it;
            ``phantom``: speckle with wires and cysts in rows; ``blurred``: the other picture,
            beyond recognition.
        like: The other picture.
        random: Draws everything.
    """
    with Image.open(like) as opened:
        picture = opened.convert("L")
    width, height = picture.size
    if kind == "blurred":
        return picture.filter(ImageFilter.GaussianBlur(max(width, height) / 20))
    if kind == "phantom":
        speckle = random.rayleigh(30.0, (height, width))
        rows, columns = np.mgrid[:height, :width]
        for place in range(1, 5):
            y, x = place * height // 5, place * width // 5
            speckle[max(y - 1, 0) : y + 1, width // 2 - 1 : width // 2 + 2] = 240
            cyst = (rows - y) ** 2 + (columns - x) ** 2 < (min(width, height) / 16) ** 2
            speckle[cyst] *= 0.1
        return Image.fromarray(np.clip(speckle, 0, 255).astype(np.uint8))
    empty = random.integers(0, 6, (height, width))
    if kind == "calipers":
        ends = random.integers(8, [width - 8, height - 8], (2, 2))
        for x, y in ends:
            empty[y - 4 : y + 5, x] = empty[y, x - 4 : x + 5] = 255
        steps = np.linspace(0, 1, 24)[:, None]
        for x, y in np.round(ends[0] + steps * (ends[1] - ends[0])).astype(int):
            empty[y, x] = 255
    return Image.fromarray(empty.astype(np.uint8))


def make_store(folder: Path, manifest: Path, plan: dict[str, Any], teacher: dict[str, Any]) -> None:
    """Ingest and score a pool, in processes of their own; what is done is not done again."""
    settings = {
        "store": str(folder / "store"),
        "seed": 0,
        "teacher": teacher,
        "student": plan["student"],
        "ingest": {
            "source": str(manifest),
            "stage_side": 160,
            "deidentify": {"pixels": "off"},
        },
        "score": {"proxy": plan["proxy"]},
    }
    path = folder / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    for stage in ("ingest", "score"):
        command = [sys.executable, "-m", "echostill.jobs.cli.main", stage, "--config", str(path)]
        subprocess.run(command, check=True)
