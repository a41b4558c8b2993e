"""Measure whole commands beside what one would otherwise run for the same answer.

Runs alternate, so that a busy machine slows both. CPU seconds of all processes count, and the
median of many runs is printed. Run it on a finished store, such as the quickstart's:

    python benchmarks/peers.py --store runs/quickstart --runs 15

Byte code is written and read, whatever PYTHONDONTWRITEBYTECODE says: an installed package has its
own, and to compile ours anew in each run would be a seventh of a query. With `--duckdb-shell FILE`
DuckDB's shell (`duckdb`; the package duckdb-cli has one) answers the same question too.

With `--distill FOLDER` a short distillation beside lightly-train's and a plain PyTorch loop's
instead (see `peers_distill.py`). lightly-train runs in a virtual environment of its own, which is
made in the folder, or in the one that `--lightly-python` names; its telemetry is off:

    python benchmarks/peers.py --distill /tmp/peers --runs 3

With `--embed FOLDER` the features of images beside timm's with a DataLoader (`peers_embed.py`):

    python benchmarks/peers.py --embed /tmp/features --runs 3
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers_embed
from machine import describe_machine
from peers_distill import compare, lightly_python

from echostill.platform.tables.store import Store

SQL = "SELECT organ, count(*) AS images FROM {} GROUP BY organ ORDER BY organ"
DUCKDB = "import duckdb, sys; print(duckdb.sql(sys.argv[1]))"


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; return the CPU seconds of its processes and the seconds that it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, took


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--store", help="a store with a pool")
    what.add_argument("--distill", type=Path, help="an empty folder for images, runs and logs")
    what.add_argument("--embed", type=Path, help="an empty folder for images and features")
    parser.add_argument("--images", type=int, default=200, help="of --embed")
    parser.add_argument("--before", help="the echostill of another version, set beside in --embed")
    parser.add_argument("--duckdb-shell", help="DuckDB's own program, to be measured too")
    parser.add_argument("--lightly-python", help="a Python that has lightly-train and timm")
    parser.add_argument("--steps", type=int, default=8, help="of the distillation")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--runs", type=int, default=15, help="of each command")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    print(describe_machine())
    if options.distill:
        lightly = options.lightly_python or lightly_python(options.distill / "lightly")
        result = compare(
            options.distill, lightly, options.steps, options.batch, options.runs
        )  # fmt: skip
    elif options.embed:
        options.embed.mkdir(parents=True, exist_ok=True)
        result = peers_embed.compare(
            options.embed, measured, options.images, options.runs, options.before
        )
    else:
        with tempfile.TemporaryDirectory(prefix="echostill-peers-") as folder:
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            os.environ["PYTHONPYCACHEPREFIX"] = folder
            result = queries(options.store, options.runs, options.duckdb_shell)
    if options.json:
        print(json.dumps({"machine": describe_machine(), **result}))


def queries(store: str, runs: int, shell: str | None = None) -> dict[str, object]:
    """Print what commands that read a store cost, run by run, and their ratio; return it."""
    echostill = str(Path(sys.executable).with_name("echostill"))
    parts = os.path.join(store, "pool", "part-*.parquet").replace("'", "''")
    image = Store(store).open_pool().read(["image_id"])["image_id"][0].as_py()
    same = SQL.format(f"read_parquet('{parts}')")
    commands = {
        "duckdb": [sys.executable, "-c", DUCKDB, same],
        **({"shell": [shell, "-c", same]} if shell else {}),
        "query": [echostill, "query", SQL.format("pool"), "--store", store],
        "help": [echostill, "--help"],
        "models": [echostill, "models"],
        "why": [echostill, "why", image, "--store", store],
        "coresets": [echostill, "coresets", store],
    }
    for command in commands.values():
        measured(command)  # derived files, byte code and the page cache
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(measured(command))
    result: dict[str, object] = {"runs": runs}
    for name, measurements in found.items():
        cpu, took = (statistics.median(one[place] for one in measurements) for place in (0, 1))
        every = [round(one[0], 3) for one in measurements]
        result[name] = {"cpu_seconds": round(cpu, 3), "seconds": round(took, 3), "runs": every}
        print(f"{name:<9}{cpu:>8.3f} CPU s{took:>8.3f} s   runs {every}")
    pairs = zip(found["query"], found["duckdb"], strict=True)
    result["query_by_duckdb"] = round(statistics.median(a[0] / b[0] for a, b in pairs), 2)
    print(f"query takes {result['query_by_duckdb']} times the CPU of DuckDB from Python")
    return result


if __name__ == "__main__":
    main()
