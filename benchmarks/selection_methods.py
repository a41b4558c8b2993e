"""Every selection method on one synthetic pool: cost, coverage, and what becomes of rare kinds.

    python benchmarks/selection_methods.py --rows 20000
    python benchmarks/selection_methods.py --real runs/quickstart --budgets 0.03 0.1 0.29

The second form compares them on real pools; see benchmarks/real_pools.py.

Coverage is the mean distance (1 - cosine) of a pool row to the nearest chosen one; smaller covers
better. Recall counts the planted rare kinds (tight groups of --rare-size rows far from everything
else) of which at least one row was chosen. A third of the rare kinds are also given the pool's
largest gradients, a third its smallest, so that methods by gradient show what they see.

Each method runs in a process of its own, from arrays in memory to the finished table; clustering
is timed with it, and alone in the first line. Methods that choose over the whole pool by themselves
run in both forms: as they are, and blocked (inside clusters, with quotas).
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
from machine import describe_machine
from real_pools import measure_stores

from echostill.curation.selection.clustering import cluster_features
from echostill.curation.selection.core import SelectionSettings, select_rows
from echostill.curation.selection.methods import METHODS
from echostill.platform.errors import UsageError

COMMON_KINDS = 200


def make_pool(
    arguments: argparse.Namespace,
) -> tuple[np.ndarray, pa.Table, pa.Table, np.ndarray]:
    """Features (N, D) float16, scores, groups, and the rare kind of each row (-1: a common one)."""
    rows, dim = arguments.rows, arguments.dim
    generator = np.random.default_rng(arguments.seed)
    weights = 1.0 / np.arange(1, COMMON_KINDS + 1)
    kind = generator.choice(COMMON_KINDS, rows, p=weights / weights.sum())
    centres = generator.standard_normal((COMMON_KINDS, dim), dtype=np.float32)
    feature = generator.standard_normal((rows, dim), dtype=np.float32)
    feature += centres[kind]
    gradient = generator.gamma(4.0, size=rows)
    rare = np.full(rows, -1)
    places = generator.permutation(rows)[: arguments.rare_kinds * arguments.rare_size]
    rare[places] = np.repeat(np.arange(arguments.rare_kinds), arguments.rare_size)
    away = generator.standard_normal((arguments.rare_kinds, dim), dtype=np.float32) * 1.5
    feature[places] = away[rare[places]] + 0.4 * feature[places]
    gradient[places[rare[places] % 3 == 0]] += gradient.max()
    gradient[places[rare[places] % 3 == 1]] *= 0.1
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    ids = [f"{row * 0x9E3779B97F4A7C15 % 2**64:032x}" for row in range(rows)]
    scores = pa.table(
        {
            "image_id": ids,
            "gradient_mean": pa.array(gradient, pa.float32()),
            "gradient_std": pa.array(np.zeros(rows), pa.float32()),
        }
    )
    groups = pa.table({"image_id": ids, "group_id": ids})
    return feature.astype(np.float16), scores, groups, rare


def coverage(features: np.ndarray, chosen: np.ndarray) -> float:
    unit = features.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = np.full(len(unit), -1.0, dtype=np.float32)
    for start in range(0, len(chosen), 1024):
        some = unit[chosen[start : start + 1024]]
        for row in range(0, len(unit), 8192):
            part = slice(row, row + 8192)
            nearest[part] = np.maximum(nearest[part], (unit[part] @ some.T).max(axis=1))
    return float((1.0 - nearest.astype(np.float64)).mean())


def run_one(arguments: argparse.Namespace) -> dict[str, object]:
    features, scores, groups, rare = make_pool(arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if arguments.one == "clustering":
        ids = pa.array(sorted(scores["image_id"].to_pylist()))
        cluster_features(features, ids, SelectionSettings())
        seconds = time.perf_counter() - start
        return {"seconds": round(seconds, 2), "peak_rss_gb": _peak(), "start_rss_gb": before / 1e6}
    name, _, form = arguments.one.partition(":")
    blocked = True if form == "blocked" else None
    try:
        table = select_rows(
            features, scores, groups, arguments.budget, method=name, blocked=blocked, trim=0.0
        )
    except UsageError as error:
        return {"refused": str(error)}
    seconds, peak = time.perf_counter() - start, _peak()
    picked = table.filter(table["selected"])["image_id"].to_pylist()
    place = {image_id: row for row, image_id in enumerate(scores["image_id"].to_pylist())}
    chosen = np.array([place[image_id] for image_id in picked])
    assert len(chosen) == arguments.budget
    found = np.unique(rare[chosen])
    return {
        "seconds": round(seconds, 2),
        "peak_rss_gb": peak,
        "coverage": round(coverage(features, chosen), 4),
        "rare_recall": round(int((found >= 0).sum()) / arguments.rare_kinds, 3),
    }


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--budget", type=int, help="default: a fifteenth of the rows")
    parser.add_argument("--rare-kinds", type=int, default=60)
    parser.add_argument("--rare-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", help="default: all; NAME or NAME:blocked")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--real", nargs="+", metavar="STORE", help="scored stores, instead")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.03, 0.1, 0.29])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.real:
        measured = measure_stores(
            arguments.real, arguments.methods, arguments.budgets, arguments.seed
        )
        if arguments.json:
            print(json.dumps({"machine": describe_machine(), "results": measured}))
        return
    arguments.budget = arguments.budget or max(arguments.rows // 15, 1)
    if arguments.one:
        print(json.dumps(run_one(arguments)))
        return
    variants = arguments.methods or [
        variant
        for name, method in METHODS.items()
        for variant in ([name] if method.blocked else [name, f"{name}:blocked"])
        if variant != "random:blocked"  # the same as stratified-random
    ]
    print(
        f"machine: {describe_machine()}\n"
        f"{arguments.rows} x {arguments.dim}, budget {arguments.budget}, "
        f"{arguments.rare_kinds} rare kinds of {arguments.rare_size}, seed {arguments.seed}\n"
        f"{'method':<28}{'seconds':>9}{'peak GB':>9}{'coverage':>10}{'rare kinds':>12}"
    )
    results = {}
    for variant in ["clustering", *variants]:
        command = [sys.executable, __file__, "--one", variant]
        for key in ("rows", "dim", "budget", "rare_kinds", "rare_size", "seed"):
            command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = results[variant] = json.loads(done.stdout.splitlines()[-1])
        if "refused" in found:
            print(f"{variant:<28}{found['refused']}")
            continue
        recall = f"{found['rare_recall']:.0%}" if "rare_recall" in found else ""
        print(
            f"{variant:<28}{found['seconds']:>9.2f}{found['peak_rss_gb']:>9.2f}"
            f"{found.get('coverage', ''):>10}{recall:>12}",
            flush=True,
        )
    if arguments.json:
        print(
            json.dumps(
                {
                    "rows": arguments.rows,
                    "dim": arguments.dim,
                    "budget": arguments.budget,
                    "rare_kinds": arguments.rare_kinds,
                    "rare_size": arguments.rare_size,
                    "clustering": results.pop("clustering"),
                    "methods": results,
                    "machine": describe_machine(),
                }
            )
        )


if __name__ == "__main__":
    main()
