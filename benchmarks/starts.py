"""Whether a command starts its Ray on a busy machine: real commands, one after the other.

    python benchmarks/starts.py --load 20 --starts 10

It starts `--load` processes that only compute, at the usual priority, and then runs `echostill
ingest` on a few small pictures, each time into a new store and with a Ray of its own. A start
counts as a success if the command ends with exit code 0 and the store holds every picture. Ray
gives its processes thirty seconds; the attempts after that, of which a line tells, are counted. The
commands' seconds are those of a machine that shares its cores with the load, not of the commands.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from machine import describe_machine

from echostill.platform.imaging.images import encode_png
from echostill.platform.tables.store import Store

BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
SIDE = 64  # pixels
RETRIED = "Ray did not start in time"
COMMAND = [sys.executable, "-m", "echostill.jobs.cli.main", "ingest"]
SETTINGS = ["deidentify.pixels=off", "progress=false"]


@contextlib.contextmanager
def load(count: int) -> Iterator[None]:
    """Keep some processes computing; they end with this one, however it ends."""
    # In sessions of their own: kernels that share the CPU between sessions first would else have
    # them compete with the measured command alone.
    command = [sys.executable, "-S", "-c", BUSY]
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def write_pictures(folder: Path, count: int) -> None:
    """Write pictures of noise, no two alike."""
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for number in range(count):
        pixels = numbers.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        (folder / f"{number:03d}.png").write_bytes(encode_png(pixels))


def start(pictures: Path, store: Path, images: int, limit: float) -> dict[str, object]:
    """Ingest the pictures once; return what became of it."""
    command = [*COMMAND, f"source={pictures}", f"store={store}", *SETTINGS]
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        code, said = str(done.returncode), done.stderr
    except subprocess.TimeoutExpired as error:
        code = "timeout"
        said = (error.stderr or b"").decode() if isinstance(error.stderr, bytes | None) else ""
    took = time.perf_counter() - began
    rows = Store(str(store)).open_pool().rows if code == "0" else 0
    result: dict[str, object] = {
        "succeeded": code == "0" and rows == images,
        "code": code,
        "seconds": round(took, 1),
        "retries": said.count(RETRIED),
    }
    if not result["succeeded"]:
        result["said"] = said[-1500:]
    return result


def summary(starts: Sequence[dict[str, object]]) -> str:
    """Say how many succeeded, and after how many attempts."""
    succeeded = sum(bool(one["succeeded"]) for one in starts)
    retries = [int(str(one["retries"])) for one in starts]
    return f"{succeeded} of {len(starts)} starts succeeded; retries {retries}"


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=int, default=20, help="processes that compute")
    parser.add_argument("--starts", type=int, default=10, help="commands")
    parser.add_argument("--images", type=int, default=4, help="of each command")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for each command")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    print(describe_machine())
    starts = []
    with tempfile.TemporaryDirectory(prefix="echostill-starts-") as name:
        folder = Path(name)
        write_pictures(folder / "pictures", options.images)
        with load(options.load):
            for number in range(options.starts):
                store = folder / f"store-{number}"
                found = start(folder / "pictures", store, options.images, options.limit)
                average = os.getloadavg()[0]
                starts.append(found | {"load_average": round(average, 1)})
                print(
                    f"{number + 1:>3}: {'started' if found['succeeded'] else 'FAILED'} after "
                    f"{found['seconds']} s, {found['retries']} retries, load {average:.1f}",
                    flush=True,
                )
                if "said" in found:
                    print(found["said"], flush=True)
    print(summary(starts))
    if options.json:
        print(json.dumps({"machine": describe_machine(), "load": options.load, "starts": starts}))
    if not all(one["succeeded"] for one in starts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
