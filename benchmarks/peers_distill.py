"""Measure a short distillation beside lightly-train's and a plain PyTorch loop's.

The same teacher (DINOv2's ViT-S/14, random weights from a seed), student (ViT-Ti/16), images, batch
and number of steps; whole commands on one thread, with what all of their processes cost. What they
compute differs: echostill's objective sees two corrupted views of an image, reconstructs pixels and
matches several layers; lightly-train's default and the plain loop see one view. So the ratios hold
the objectives too, and not only what surrounds them.
"""

import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

TEACHER = "vit_small_patch14_dinov2"
STUDENT = "vit_tiny_patch16_224"
SIDE = 112  # pixels: whole patches of both models
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
POOL, MICRO = EXAMPLE / "pool", EXAMPLE / "teacher" / "usfm-micro.safetensors"
LIGHTLY = ("lightly-train==0.18.0", "timm")
SUBREAPER = 36  # of prctl: orphans of a command come to this process, and not to the first
TICK = os.sysconf("SC_CLK_TCK")
SECONDS = 0.2  # between looks at a command's processes


@dataclass(frozen=True)
class Cost:
    """What a command and all of its processes cost.

    Attributes:
        cpu_seconds: User and system, of all processes.
        seconds: From start to end.
        processes: Seen at least once by a look every 0.2 s.
        peak_gb: Most proportional memory (each page shared among its users) at one moment, in GB.
    """

    cpu_seconds: float
    seconds: float
    processes: int
    peak_gb: float


class _Watch(threading.Thread):
    """Looks at the descendants of this process, until it is told to end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.spent: dict[tuple[int, str], float] = {}
        self.peak = 0.0

    def run(self) -> None:
        while not self.ended.wait(SECONDS):
            self.look()

    def look(self) -> None:
        parents, spent = {}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                rest = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            number = int(entry.name)
            parents[number] = int(rest[1])
            spent[number] = (rest[19], (int(rest[11]) + int(rest[12])) / TICK)
        memory = 0
        for number, (began, seconds) in spent.items():
            ancestor = parents[number]
            while ancestor not in (os.getpid(), 0):
                ancestor = parents.get(ancestor, 0)
            if ancestor:
                self.spent[number, began] = seconds
                memory += _proportional(number)
        self.peak = max(self.peak, memory / 1e9)


def _proportional(number: int) -> int:
    try:
        for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


def measure(command: list[str], environment: dict[str, str], log: Path) -> Cost:
    """Run a command to the end of its last process; its output goes to a file.

    Raises:
        SystemExit: The command failed.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    before, start, watch = (
        resource.getrusage(resource.RUSAGE_CHILDREN),
        time.perf_counter(),
        _Watch(),
    )
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        watch.start()
        code = process.wait()
    took = time.perf_counter() - start
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # helpers that outlive the command
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            break
    watch.ended.set()
    watch.join()
    if code:
        raise SystemExit(f"{' '.join(command[:3])} ended with {code}: see '{log}'")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    reaped = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A parent that does not wait for its children loses their time: then the looks know more.
    cpu = max(reaped, sum(watch.spent.values()))
    return Cost(round(cpu, 2), round(took, 2), len(watch.spent), round(watch.peak, 2))


def lightly_python(folder: Path) -> str:
    """Make a virtual environment with lightly-train, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *LIGHTLY], check=True)
    return str(python)


def prepare(folder: Path, steps: int, batch: int) -> dict[str, object]:
    """Write images, weights, a configuration and a store with a coreset; return the peers' job."""
    import timm
    import torch
    import yaml

    count = steps * batch
    images = sorted(POOL.rglob("*.jpg")) + sorted(POOL.rglob("*.png"))
    chosen = images[:: max(len(images) // count, 1)][:count]
    if len(chosen) < count:
        raise SystemExit(f"{count} images are needed, the quickstart's pool has {len(images)}")
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(chosen):
        shutil.copy(path, pictures / f"{index:04}{path.suffix}")
    torch.manual_seed(7)
    weights = timm.create_model(TEACHER, num_classes=0).state_dict()
    torch.save(
        {**weights, "mask_token": torch.zeros(1, weights["cls_token"].shape[-1])},
        folder / "teacher.pth",
    )
    training = {"steps": steps, "batch_size": batch, "threads": 1, "checkpoints": 1}
    # The coreset comes from a smaller teacher's scores, which cost less.
    small = {"model": "usfm-micro", "weights": str(MICRO)}
    proxy = {"snapshots": 3, "training": {"steps": 3, "batch_size": batch}}
    made = {
        "store": str(folder / "store"),
        "teacher": small,
        "student": "tinyusfm-micro",
        "ingest": {"source": [str(pictures)], "deidentify": {"pixels": "off"}},
        "score": {"proxy": proxy},
        "select": {"method": "random", "budget": count},
    }
    (folder / "store.yaml").write_text(yaml.safe_dump(made))
    content = {
        "store": str(folder / "store"),
        "teacher": {
            "model": f"timm:{TEACHER}",
            "weights": str(folder / "teacher.pth"),
            "image_size": SIDE,
        },
        "student": f"timm:{STUDENT}",
        "student_image_size": SIDE,
        "distill": {"training": training},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return {
        "teacher": TEACHER,
        "student": STUDENT,
        "weights": str(folder / "teacher.pth"),
        "side": SIDE,
        "batch": batch,
        "steps": steps,
        "epochs": 1,  # of steps x batch images
        "folder": str(pictures),
        "files": sorted(map(str, pictures.iterdir())),
    }


def compare(folder: Path, lightly: str, steps: int, batch: int, runs: int) -> dict[str, object]:
    """Run the three in turns; return the median of each, and the ratios of their CPU seconds."""
    here = Path(__file__).parent
    job = prepare(folder, steps, batch)
    echostill = str(Path(sys.executable).with_name("echostill"))
    configured = ["--config", str(folder / "config.yaml")]
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **single, "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    for stage in ("ingest", "score", "select"):
        made = [echostill, stage, "--config", str(folder / "store.yaml")]
        measure(made, environment, folder / f"{stage}.log")
    found: dict[str, list[Cost]] = {"echostill": [], "lightly-train": [], "plain": []}
    for number in range(runs + 1):  # the first fills the page cache and compiles byte code
        for name, costs in found.items():
            own = json.dumps({**job, "out": str(folder / f"{name}-{number}")})
            store = folder / f"store-{number}"  # a run that is there would not be made again
            if name == "echostill":
                shutil.copytree(folder / "store", store)
            command = {
                "echostill": [echostill, "distill", *configured, f"store={store}"],
                "lightly-train": [lightly, str(here / "peer_lightly.py"), own],
                "plain": [sys.executable, str(here / "peer_plain.py"), own],
            }[name]
            cost = measure(command, environment, folder / f"{name}-{number}.log")
            if number:
                costs.append(cost)
                print(f"{name:<14}{asdict(cost)}", flush=True)
    result: dict[str, object] = {"steps": steps, "batch": batch, "runs": runs}
    for name, costs in found.items():
        rows = [asdict(cost) for cost in costs]
        result[name] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    for peer in ("lightly-train", "plain"):
        pairs = zip(found["echostill"], found[peer], strict=True)
        ratio = statistics.median(own.cpu_seconds / other.cpu_seconds for own, other in pairs)
        result[f"echostill_by_{peer}"] = round(ratio, 2)
        print(f"distilling {steps} steps takes {ratio:.2f} times the CPU of {peer}")
    return result
