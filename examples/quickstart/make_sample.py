"""Make the quickstart's sample images from the development data, the same ones every time.

    python make_sample.py --source DEVELOPMENT_DATA --out examples/quickstart
    python make_sample.py --source DEVELOPMENT_DATA --teacher-pool teacher_pool.csv

The first command writes the pool, the benchmark and ATTRIBUTION.md. The second writes the manifest
of the images the shipped teacher was pretrained on: everything there is, without the benchmark's
groups and without the sets in UNSEEN, so that these can be held-out tasks. Which group goes where
depends on its name and the seed below, and was decided before any model saw an image.
"""

import argparse
import csv
import hashlib
import re
import shutil
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 20250
LONGEST_SIDE = 224
JPEG_QUALITY = 85
LOOKALIKE = 0.98  # correlation of two thumbnails above which their groups are one
GRAY_TOLERANCE = 12  # grey levels by which JPEG noise may part the channels of a grey picture

ORGANS = {
    "breast_busi": "breast",
    "fetal_head_hc18": "fetal_head",
    "gallbladder_ba": "gallbladder",
    "liver_aul": "liver",
    "lung_pocus": "lung",
    "muscle_dltrack": "muscle",
}
UNSEEN = ("breast_busi", "gallbladder_ba")  # by the teacher and by the pool
BENCHMARK_IMAGES = {
    "gallbladder_ba": 400,
    "liver_aul": 330,
    "fetal_head_hc18": 200,
    "muscle_dltrack": 120,
}
POOL_IMAGES = {"fetal_head_hc18": 350, "muscle_dltrack": 260}
FRAMES_PER_CLIP = 8
CINES = {"OBXXXX1A_rle_2frame.dcm": "obstetric", "examples_ybr_color.dcm": "heart"}

Row = dict[str, str]


@lru_cache
def read_labels(source: Path, dataset: str) -> list[Row]:
    """Read a data set's labels.csv; groups stay text, since '012' and '12' are two patients."""
    with open(source / dataset / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return merge_lookalikes(source / dataset, rows) if dataset in BENCHMARK_IMAGES else rows


def merge_lookalikes(folder: Path, rows: list[Row]) -> list[Row]:
    """Join groups whose pictures look alike: neighbouring frames may stand in different groups."""
    signatures = np.stack([signature(folder / row["file"]) for row in rows])
    parent = {row["group"]: row["group"] for row in rows}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for first, second in np.argwhere(np.triu(signatures @ signatures.T > LOOKALIKE, k=1)):
        low, high = sorted((root(rows[first]["group"]), root(rows[second]["group"])))
        parent[high] = low
    return [{**row, "group": root(row["group"])} for row in rows]


def signature(path: Path) -> np.ndarray:
    """Return a picture's 16 x 16 thumbnail as a centred unit vector (256,)."""
    thumbnail = Image.open(path).convert("L").resize((16, 16), Image.Resampling.BOX)
    values = np.asarray(thumbnail, dtype=np.float64).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-9)


def shuffled(names: set[str], purpose: str) -> list[str]:
    """Return the names in an order that depends on the seed and the names alone."""

    def key(name: str) -> tuple[str, str]:
        return hashlib.sha256(f"{SEED}/{purpose}/{name}".encode()).hexdigest(), name

    return sorted(names, key=key)


def take_groups(rows: list[Row], count: int, purpose: str) -> list[Row]:
    """Take whole groups in shuffled order until at least ``count`` images are taken."""
    by_group: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    taken: list[Row] = []
    for group in shuffled(set(by_group), purpose):
        if len(taken) >= count:
            break
        taken += by_group[group]
    return taken


def benchmark_rows(source: Path, dataset: str) -> list[Row]:
    """Choose the benchmark: by class, fetal head with a mask, muscle by aponeurosis."""
    rows = read_labels(source, dataset)
    count = BENCHMARK_IMAGES.get(dataset, 0)
    if dataset in ("gallbladder_ba", "liver_aul"):
        chosen: list[Row] = []
        for label in sorted({row["label"] for row in rows}):
            of_label = [row for row in rows if row["label"] == label]
            share = round(count * len(of_label) / len(rows))
            chosen += take_groups(of_label, share, f"{dataset}/{label}")
        return chosen
    if dataset == "muscle_dltrack":
        rows = [row for row in rows if row["label"] == "aponeurosis"]
    return take_groups([row for row in rows if row["mask"]], count, dataset)


def outside_benchmark(source: Path, dataset: str) -> list[Row]:
    """Return the rows of all groups that no benchmark image belongs to."""
    held_out = {row["group"] for row in benchmark_rows(source, dataset)}
    return [row for row in read_labels(source, dataset) if row["group"] not in held_out]


def pool_rows(source: Path, dataset: str) -> list[Row]:
    """Choose the pool: never a benchmark group; of every lung clip the same number of frames."""
    rows = outside_benchmark(source, dataset)
    if dataset == "lung_pocus":
        clips: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            clips[row["video"]].append(row)
        rows = []
        for clip in sorted(clips):
            frames = sorted(clips[clip], key=lambda row: row["file"])
            number = min(FRAMES_PER_CLIP, len(frames))
            rows += [frames[round(i)] for i in np.linspace(0, len(frames) - 1, number)]
        return rows
    if dataset == "muscle_dltrack":
        rows = without_doubles(source / dataset, rows)
    return take_groups(rows, POOL_IMAGES.get(dataset, len(rows)), f"pool/{dataset}")


def without_doubles(folder: Path, rows: list[Row]) -> list[Row]:
    """Keep one of each identical file: muscle pictures appear under both of their labels."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        digest = hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            kept.append(row)
    return kept


def target_name(row: Row, suffix: str) -> str:
    """Name a file by its last folder and stem, which is unique within each data set."""
    path = Path(row["file"])
    folder = path.parent.name
    return (path.stem if path.stem.startswith(folder) else f"{folder}_{path.stem}") + suffix


def shrink(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """Shrink to the longest side; smaller images stay as they are."""
    scale = LONGEST_SIDE / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), resample)


def write_image(source: Path, target: Path) -> None:
    """Write a smaller JPEG, grey where the source shows no colour."""
    image = Image.open(source).convert("RGB")
    pixels = np.asarray(image, dtype=np.int16)
    if int(np.ptp(pixels, axis=2).max()) <= GRAY_TOLERANCE:
        image = image.convert("L")
    target.parent.mkdir(parents=True, exist_ok=True)
    shrunk = shrink(image, Image.Resampling.LANCZOS)
    shrunk.save(target, quality=JPEG_QUALITY, optimize=True)


def write_mask(source: Path, target: Path) -> None:
    """Write a mask whose background is 0 and whose foreground is 255."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mask = shrink(Image.open(source).convert("L"), Image.Resampling.NEAREST)
    mask.point([0] + [255] * 255).save(target, optimize=True)


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    """Write a CSV with Unix line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_benchmark(source: Path, out: Path) -> None:
    """Write one folder and one CSV per task."""
    for dataset in BENCHMARK_IMAGES:
        task = ORGANS[dataset]
        lines = []
        for row in sorted(benchmark_rows(source, dataset), key=lambda row: row["file"]):
            image, mask = f"{task}/images/{target_name(row, '.jpg')}", ""
            write_image(source / dataset / row["file"], out / image)
            if row["mask"] and task != "liver":
                mask = f"{task}/masks/{target_name(row, '.png')}"
                write_mask(source / dataset / row["mask"], out / mask)
            label = "head" if task == "fetal_head" else row["label"]
            lines.append([image, mask, label, f"{task}/{row['group']}"])
        write_csv(out / f"{task}.csv", ["file", "mask", "label", "group"], lines)


def write_pool(source: Path, out: Path) -> set[str]:
    """Write the pool's images, cines and manifest; return the lung clips used."""
    lines, clips = [], set()
    for dataset in ("fetal_head_hc18", "liver_aul", "lung_pocus", "muscle_dltrack"):
        organ = ORGANS[dataset]
        for row in sorted(pool_rows(source, dataset), key=lambda row: row["file"]):
            name = f"{organ}/{target_name(row, '.jpg')}"
            write_image(source / dataset / row["file"], out / name)
            # POCUS names the probe; the others say nothing about the machine.
            device = row.get("probe", "")
            lines.append([name, f"{organ}/{row['group']}", organ, row["label"], device])
            if dataset == "lung_pocus":
                clips.add(row["video"])
    for name, organ in CINES.items():
        (out / "dicom").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "dicom_us" / name, out / "dicom" / name)
        lines.append([f"dicom/{name}", "", organ, "", ""])
    write_csv(out / "manifest.csv", ["file", "group", "organ", "label", "device"], lines)
    return clips


def write_teacher_pool(source: Path, path: Path) -> None:
    """Write the manifest for the teacher's pretraining: no unseen set, no benchmark group."""
    lines = []
    for dataset, organ in ORGANS.items():
        if dataset in UNSEEN:
            continue
        for row in outside_benchmark(source, dataset):
            file = (source / dataset / row["file"]).resolve()
            lines.append([str(file), f"{organ}/{row['group']}", organ])
    write_csv(path, ["file", "group", "organ"], lines)


ATTRIBUTION = """# Where the sample images come from

Changed from the originals: a subset was drawn (`make_sample.py` says how), images were resized to
a longest side of {side} pixels and re-encoded as JPEG (quality {quality}), in grey where they show
no colour; masks were resized (nearest) and stored as PNG with 0 and 255. The DICOM files are
unchanged. `LICENSES/` has the licences or their addresses.

| Folder | Data set | Authors and paper | Source | Licence |
|---|---|---|---|---|
| `benchmark/gallbladder` | Sonographic gallbladder images for the diagnosis of biliary atresia | \
youngyzzZ | https://github.com/youngyzzZ/Sonographic-Gallbladder-Images-for-BA-Diagnosis | MIT |
| `pool/liver`, `benchmark/liver` | Annotated Ultrasound Liver images | Xu Y. et al., \
Briefings in Bioinformatics (2023) bbac569 | https://zenodo.org/records/7272660 | CC BY 4.0 |
| `pool/fetal_head`, `benchmark/fetal_head` | HC18 | van den Heuvel T.L.A. et al., \
PLoS ONE 13(8) e0200412 (2018); masks: the ellipse fitted to the published outline, filled | \
https://zenodo.org/records/1327317 | CC BY 4.0 |
| `pool/lung` | POCUS dataset, the clips below | Born J. et al., Applied Sciences 11(2) 672 (2021) \
and each clip's authors | https://github.com/jannisborn/covid19_ultrasound | per clip, below |
| `pool/muscle`, `benchmark/muscle` | DL_Track | Cronin N. et al., arXiv:2009.04790 (2020) | \
https://github.com/njcronin/DL_Track | Apache-2.0 |
| `pool/dicom` | test files of pydicom | Mason D. and pydicom contributors | \
https://github.com/pydicom/pydicom | MIT |

## Lung clips

Frames sampled evenly, up to {frames} of each clip. `charlotte` is the source as the POCUS metadata
gives it.

| Clip | Licence | Source |
|---|---|---|
{clips}
"""


def write_attribution(source: Path, out: Path, clips: set[str]) -> None:
    """Write the attribution; each lung clip's licence comes from the data's own README."""
    text = (source / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\s*- (\S+): (CC BY \S+) (\S+) \| (.+)$", text, flags=re.MULTILINE)
    known = {name: (licence, url, origin) for name, licence, url, origin in listed}
    lines = []
    for clip in sorted(clips):
        licence, url, origin = known[clip]
        lines.append(f"| {clip} | [{licence}]({url}) | {origin.strip()} |")
    document = ATTRIBUTION.format(
        side=LONGEST_SIDE, quality=JPEG_QUALITY, frames=FRAMES_PER_CLIP, clips="\n".join(lines)
    )
    (out / "ATTRIBUTION.md").write_text(document, encoding="utf-8")


def main() -> None:
    """Read the arguments and write what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the development data")
    parser.add_argument("--out", type=Path, help="folder that gets pool/ and benchmark/")
    parser.add_argument("--teacher-pool", type=Path, help="CSV for the teacher's pretraining")
    arguments = parser.parse_args()
    if arguments.out is None and arguments.teacher_pool is None:
        parser.error("give --out, --teacher-pool or both")
    if arguments.teacher_pool is not None:
        write_teacher_pool(arguments.source, arguments.teacher_pool)
    if arguments.out is not None:
        for name in ("pool", "benchmark"):
            shutil.rmtree(arguments.out / name, ignore_errors=True)
        write_benchmark(arguments.source, arguments.out / "benchmark")
        clips = write_pool(arguments.source, arguments.out / "pool")
        write_attribution(arguments.source, arguments.out, clips)


if __name__ == "__main__":
    main()
