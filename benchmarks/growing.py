"""Grow a pool by 1% and by 10%: what it costs, whether it is one ingest of all, and kills.

    python benchmarks/growing.py --images 5000 --kills 20 --json

A pool of synthetic pictures is read and scored, then 1% more pictures come, then 10% more. Bars:
the rows of the grown pool are those of one ingest of all, the parts of the first pool and of its
scores stay to the byte, and 1% more takes at most 3% of the first run's time and the start-up.
Start-up is what the same command takes for a pool of one picture. Then the last growth is killed at
random with SIGKILL, and the same command must end with the files of the undisturbed one.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from machine import describe_machine
from PIL import Image

SHARES = (0.01, 0.1)
LIMIT = 0.03  # of the first run's time, for 1% more images
HANG_SECONDS = 900


def make_pictures(folder: Path, first: int, last: int) -> None:
    """Write speckled pictures, each of its number alone."""
    folder.mkdir(parents=True)
    for number in range(first, last):
        rng = np.random.default_rng(number)
        _, columns = np.mgrid[:240, :320]
        speckle = rng.rayleigh(0.3, (240, 320)) * np.exp(-columns / rng.uniform(200, 900))
        picture = Image.fromarray((255 * np.clip(speckle, 0, 1)).astype(np.uint8))
        picture.save(folder / f"{number:06d}.jpg")


def configure(root: Path, per_shard: int) -> None:
    """Write one configuration for both stages, the key, and the teacher's weights."""
    import torch

    from echostill.platform.models import create_encoder, save_weights

    torch.manual_seed(0)
    save_weights(create_encoder("usfm-micro"), root / "teacher.safetensors", {})
    (root / "key").write_text("a key for the benchmark of growing pools")
    training = {"steps": 3, "batch_size": 4, "threads": 1}
    content = {
        "teacher": {"model": "usfm-micro", "weights": str(root / "teacher.safetensors")},
        "student": "tinyusfm-micro",
        "ingest": {
            "files_per_shard": per_shard,
            "key_file": str(root / "key"),
            "workers": 2,
            "deidentify": {"pixels": "off"},  # speckle has no sector to keep
        },
        "score": {
            "proxy": {"snapshots": 3, "sample": 8, "training": training},
            "rows_per_shard": per_shard,
            "workers": 2,
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(content))


def command(stage: str, root: Path, store: str, sources: list[str]) -> list[str]:
    """Return a command as a user would type it."""
    words = [sys.executable, "-m", "echostill.jobs.cli.main", stage]
    words += ["--config", str(root / "config.yaml"), f"store={root / store}"]
    if stage == "ingest":
        words.append(f"source={json.dumps([str(root / source) for source in sources])}")
    return words


def run(stage: str, root: Path, store: str, sources: list[str]) -> float:
    """Run a stage to its end, and return the seconds."""
    started = time.monotonic()
    done = subprocess.run(
        command(stage, root, store, sources), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    if done.returncode:
        raise SystemExit(f"{stage} failed:\n{done.stderr}")
    return time.monotonic() - started


def files(root: Path) -> dict[str, bytes]:
    """Return the tables and records of a store."""
    folders = ("pool", "scores", "quarantine", "records", "sources")
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


def parts(root: Path) -> dict[str, bytes]:
    """Return the parts of the pool and of the scores."""
    found = files(root)
    return {name: found[name] for name in found if name.startswith(("pool/", "scores/"))}


def same_rows(one: Path, other: Path) -> bool:
    """Say whether two pools have the same rows, in any order."""
    from echostill.platform.tables.store import Store

    tables = [Store(str(root)).open_pool().read().sort_by("image_id") for root in (one, other)]
    return bool(tables[0].equals(tables[1]))


def cost_of(took: dict[str, float], sizes: list[int]) -> float:
    """Return what the first growth took beyond start-up, as a share of the first run."""
    return round(max(took[f"+{sizes[1]}"] - took["start-up"], 0) / took[f"+{sizes[0]}"], 4)


def kill_and_finish(
    stages: list[str], root: Path, sources: list[str], kills: int, seed: int
) -> int:
    """Kill the last growth at random moments; return how many times the files differ."""
    chance, differing = random.Random(seed), 0
    wanted = files(root / "grown")
    for _ in range(kills):
        shutil.rmtree(root / "store")
        shutil.copytree(root / "before", root / "store")
        for stage in stages:
            process = subprocess.Popen(
                command(stage, root, "store", sources),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(chance.uniform(1, 30))
            process.kill()
            process.wait()
            run(stage, root, "store", sources)
        differing += files(root / "store") != wanted
    return differing


def main() -> None:
    """Measure, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stages", default="ingest,score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    stages = given.stages.split(",")
    with tempfile.TemporaryDirectory(prefix="growing-") as folder:
        root = Path(folder)
        configure(root, given.per_shard)
        make_pictures(root / "one", 0, 1)
        sizes = [given.images, *(round(given.images * share) for share in SHARES)]
        edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        names = [f"pictures {number}" for number in range(len(sizes))]
        for name, first, last in zip(names, edges[:-1], edges[1:], strict=True):
            make_pictures(root / name, first, last)
        seconds = {stage: {"start-up": run(stage, root, "small", ["one"])} for stage in stages}
        kept = True
        for number, size in enumerate(sizes):
            before = parts(root / "store")
            if number == len(sizes) - 1:
                shutil.copytree(root / "store", root / "before")
            for stage in stages:
                seconds[stage][f"+{size}"] = run(stage, root, "store", names[: number + 1])
            after = parts(root / "store")
            kept &= all(after[name] == data for name, data in before.items())
        shutil.copytree(root / "store", root / "grown")
        run("ingest", root, "whole", names)
        rounded = {s: {k: round(v, 2) for k, v in took.items()} for s, took in seconds.items()}
        result = {
            "machine": describe_machine(),
            "images": edges[-1],
            "seconds": rounded,
            "old parts untouched": kept,
            "rows of one ingest": same_rows(root / "store", root / "whole"),
            "cost of 1%": {stage: cost_of(took, sizes) for stage, took in seconds.items()},
            "kills": given.kills,
            "differing after kills": kill_and_finish(stages, root, names, given.kills, given.seed),
        }
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))
    cheap = all(cost <= LIMIT for cost in result["cost of 1%"].values())
    met = kept and cheap and result["rows of one ingest"] and not result["differing after kills"]
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
