"""Real sets, where a developer has them: original layouts are rebuilt from small copies.

``ECHOSTILL_REAL_SETS`` names a folder with ``breast_busi``, ``liver_aul`` and ``fetal_head_hc18``.
Each has ``labels.csv`` (file, mask, label, group), images and masks.
"""

import csv
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from echostill.eval.datasets import TaskSettings, load_dataset
from echostill.eval.probes import (
    knn_probe,
    linear_probe,
    linear_probe_segmentation,
    pooled_features,
    token_features,
)
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.data import find_tasks, load_data
from echostill.eval.unius.protocols.frozen import run_frozen
from echostill.eval.unius.protocols.settings import FrozenSettings, ProtocolSettings
from echostill.jobs.benchmarks.preparation import prepare_bench
from echostill.platform.models import create_encoder

SETS = Path(os.environ.get("ECHOSTILL_REAL_SETS", "/nowhere"))
CARD = str(Path(__file__).parents[4] / "examples" / "cards" / "hc18.yaml")
EVERY = 4  # a quarter of the images, to be quick
SETTINGS = ProtocolSettings(frozen=FrozenSettings(few_shot=()))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SETS.is_dir(), reason="ECHOSTILL_REAL_SETS names no folder"),
]


def copies(name):
    folder = SETS / name
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::EVERY]
    for row in rows:
        row["pixels"] = np.asarray(Image.open(folder / row["file"]))
        row["painted"] = np.asarray(Image.open(folder / row["mask"])) if row["mask"] else None
    return rows


def png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def polygon(mask):
    """The upper edge of a mask from left to right, then its lower edge back."""
    columns = np.flatnonzero(mask.any(0))
    top = mask.argmax(0)[columns]
    bottom = mask.shape[0] - 1 - mask[::-1].argmax(0)[columns]
    there = [[int(x), int(y)] for x, y in zip(columns, top, strict=True)]
    back = [[int(x), int(y)] for x, y in zip(columns, bottom, strict=True)][::-1]
    return there + back


def breast(folder):
    """A folder of images beside masks, of which some come in two parts."""
    sources = {}
    for number, row in enumerate(copies("breast_busi")):
        name = f"Dataset_BUSI_with_GT/{row['label']}/{row['label']} ({number})"
        png(folder / f"{name}.png", row["pixels"])
        mask = (row["painted"] > 0) if row["painted"] is not None else np.zeros((1, 1), bool)
        if mask.size == 1:
            mask = np.zeros(row["pixels"].shape[:2], bool)
        first, second = mask.copy(), mask.copy()
        if number % 3 == 0 and mask.any():
            half = int(np.flatnonzero(mask.any(0)).mean())
            first[:, half:], second[:, :half] = False, False
            png(folder / f"{name}_mask_1.png", second.astype(np.uint8) * 255)
        png(folder / f"{name}_mask.png", first.astype(np.uint8) * 255)
        sources[f"{name}.png"] = row
    return "busi", sources


def liver(folder):
    """A zip of zips with JSON polygons."""
    inner = {kind: {} for kind in ("Benign", "Malignant", "Normal")}
    sources = {}
    for number, row in enumerate(copies("liver_aul"), 1):
        kind = row["label"].capitalize()
        image = (SETS / "liver_aul" / row["file"]).read_bytes()
        inner[kind][f"{kind}/image/{number}.jpg"] = image
        for part, values in (("liver", (1, 2)), ("mass", (2,))):
            mask = np.isin(row["painted"], values) if row["painted"] is not None else None
            if mask is not None and mask.any():
                text = json.dumps(polygon(mask)).encode()
                inner[kind][f"{kind}/segmentation/{part}/{number}.json"] = text
            elif part == "liver":
                inner[kind][f"{kind}/segmentation/{part}/{number}.json"] = b"[[0,0],[9,0],[9,9]]"
        sources[f"{kind}/image/{number}.jpg"] = row
    with zipfile.ZipFile(folder / "AUL.zip", "w") as outer:
        for kind, files in inner.items():
            sink = io.BytesIO()
            with zipfile.ZipFile(sink, "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
            outer.writestr(f"{kind}.zip", sink.getvalue())
    return "aul", sources


def head(folder):
    """A CSV and outlines."""
    lines, sources = ["filename,pixel size(mm),head circumference (mm)"], {}
    for row in copies("fetal_head_hc18"):
        if row["painted"] is None:  # the test images have no outlines
            continue
        stem = Path(row["file"]).stem
        png(folder / f"training_set/{stem}.png", row["pixels"])
        mask = row["painted"] > 0
        outline = mask & ~ndimage.binary_erosion(mask, border_value=1)
        path = folder / f"training_set/{stem}_Annotation.png"
        png(path, outline.astype(np.uint8) * 255)
        lines.append(f"{stem}.png,{row['pixel_mm']},{row['hc_mm']}")
        sources[f"training_set/{stem}.png"] = row
    (folder / "training_set_pixel_size_and_HC.csv").write_text("\n".join(lines))
    return CARD, sources


def prepared(rebuild, folder, kind):
    download = folder / "download"
    download.mkdir()
    card, sources = rebuild(download)
    done = prepare_bench(
        card, str(download), str(folder / "set"), accept_differences=True, progress=False
    )
    counts = done.counts
    assert counts["rows_in"] == len(sources)
    assert counts["rows"] + sum(counts["dropped"].values()) == len(sources)
    (task,) = find_tasks(done.table.storage.root, kinds=(kind,))
    data = load_data(task, 32)
    rows = {row["id"]: row for row in done.table.read().to_pylist()}
    own = [sources[next(s for s in sources if rows[i]["source"].endswith(s))] for i in data.ids]
    return data, own


def developers(name, kind, data, own, **options):
    """The same images as the evaluation reads them from the small copies, in the same order."""
    manifest = str(SETS / name / "labels.csv")
    task = TaskSettings(name=name, kind=kind, manifest=manifest, **options)
    dataset = load_dataset(task, 32)
    place = {file: row for row, file in enumerate(dataset.files)}
    order = np.array([place[row["file"]] for row in own])
    return replace(
        dataset,
        pixels=dataset.pixels[order],
        labels=None if dataset.labels is None else dataset.labels[order],
        masks=None if dataset.masks is None else dataset.masks[order],
        groups=data.dataset.groups,
        files=data.dataset.files,
    )


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_encoder("tinyusfm-micro", image_size=32)


@pytest.mark.parametrize(("name", "rebuild"), [("breast_busi", breast), ("liver_aul", liver)])
def test_labels(name, rebuild, encoder, tmp_path):
    data, own = prepared(rebuild, tmp_path, "classification")
    classes = data.dataset.class_names
    dataset = developers(name, "classification", data, own, classes=classes)
    assert np.array_equal(dataset.labels, data.dataset.labels)
    assert np.array_equal(dataset.pixels, data.dataset.pixels)
    split = Split(data.training, data.sides["test"])
    features = pooled_features(encoder, dataset.pixels)
    wanted = {
        "k-NN": knn_probe(features, dataset, split, neighbours=10).metrics,
        "linear probe": linear_probe(features, dataset, split, seed=0).metrics,
    }
    for one in run_frozen(encoder, data, SETTINGS, seed=0):
        assert one.metrics["balanced_accuracy"] == wanted[one.method]["balanced_accuracy"]
        assert one.metrics["auc"] == pytest.approx(wanted[one.method]["auc"])


def test_masks(encoder, tmp_path):
    data, own = prepared(head, tmp_path, "segmentation")
    dataset = developers("fetal_head_hc18", "segmentation", data, own)
    assert np.array_equal(dataset.pixels, data.dataset.pixels)
    assert (dataset.masks != data.dataset.masks).mean() < 0.002  # filled from the outline
    split = Split(data.training, data.sides["test"])
    tokens = token_features(encoder, dataset.pixels)
    wanted = linear_probe_segmentation(tokens, dataset, split, seed=0).metrics["dice"]
    (one,) = run_frozen(encoder, data, SETTINGS, seed=0)
    assert one.metrics["dice"] == pytest.approx(wanted, abs=0.005)
    assert one.metrics["hd95_mm"] > 0
