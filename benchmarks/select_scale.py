"""Selection at scale, against the floor that FAISS alone sets.

    python benchmarks/select_scale.py --rows 3000000 --dim 768 --budget 200000 --folder /data/bench

Measured is `echostill.curation.select`, from Parquet on disk to the coreset on disk, in a process
of its own, with that process's peak resident memory. The floor is FAISS alone in another process:
the same k-means on a sample of the same size, and one assignment of every row, on arrays in memory;
reading and everything else is left out of it. Both use all cores that the process may use.

The store is synthetic: features of unit length around many centres, halves as scoring writes them,
10,000 rows a part. It is made once per size and kept in --folder: 3,000,000 x 768 take 5 GB there.
"""

import argparse
import hashlib
import json
import logging
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import describe_machine
from synthetic import pool_table

from echostill.platform.tables.schemas import POOL_SCHEMA, scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet, part_record, write_manifest

ROWS_PER_PART = 10_000
CENTRES = 3000
NAME = "benchmark"


def make_store(folder: Path, rows: int, dim: int, seed: int) -> Store:
    """Write the synthetic pool and scores, or find them written."""
    store = Store(str(folder / f"scale-{rows}x{dim}-{seed}"))
    if store.scores().exists("manifest.json"):
        return store
    centres = np.random.default_rng([seed, 0]).normal(size=(CENTRES, dim)).astype(np.float32)
    # A few kinds are common and most are rare, as in a hospital's export.
    weights = 1.0 / np.arange(1, CENTRES + 1)
    weights /= weights.sum()
    parts: dict[str, list[dict[str, object]]] = {"scores": [], "pool": []}
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        count = min(ROWS_PER_PART, rows - start)
        generator = np.random.default_rng([seed, 1, number])
        kind = generator.choice(CENTRES, count, p=weights)
        feature = generator.standard_normal((count, dim), dtype=np.float32)
        feature += centres[kind]
        feature /= np.linalg.norm(feature, axis=1, keepdims=True)
        gradient = generator.gamma(4.0, size=(count, 5)).astype(np.float32)
        ids = [
            hashlib.blake2b(str(row).encode(), digest_size=16).hexdigest()
            for row in range(start, start + count)
        ]
        write_part(store.scores(), number, parts["scores"], scores(ids, feature, gradient))
        write_part(store.pool(), number, parts["pool"], pool(ids, kind, start))
    for name, storage, schema in (
        ("scores", store.scores(), scores_schema(dim, 5)),
        ("pool", store.pool(), POOL_SCHEMA),
    ):
        write_manifest(
            storage, stage=NAME, schema=schema, parts=parts[name], fingerprint={"digest": ""}
        )
    return store


def scores(ids: list[str], feature: np.ndarray, gradient: np.ndarray) -> pa.Table:
    return pa.table(
        [
            pa.array(ids),
            pa.FixedSizeListArray.from_arrays(
                pa.array(feature.astype(np.float16).ravel()), feature.shape[1]
            ),
            pa.array(gradient.mean(axis=1)),
            pa.array(gradient.std(axis=1)),
            pa.FixedSizeListArray.from_arrays(pa.array(gradient.ravel()), gradient.shape[1]),
            pa.array(gradient[:, -1]),
        ],
        schema=scores_schema(feature.shape[1], gradient.shape[1]),
    )


def pool(ids: list[str], kind: np.ndarray, start: int) -> pa.Table:
    count = len(ids)
    columns = {
        "image_id": ids,
        "group_id": [f"{(start + row) // 4:032x}" for row in range(count)],
        "organ": [f"organ-{number % 12}" for number in kind.tolist()],
    }
    return pool_table(columns, count)


def write_part(
    storage: Storage, number: int, records: list[dict[str, object]], table: pa.Table
) -> None:
    data = encode_parquet(table)
    name = f"part-{number:05d}.parquet"
    storage.write(name, data)
    records.append(part_record(name, table.num_rows, data))


def measure_select(store: Store, arguments: argparse.Namespace) -> dict[str, object]:
    from echostill.curation import SelectConfig, select

    phases: dict[str, float] = {}

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            phases[record.phase] = round(record.seconds, 2)  # type: ignore[attr-defined]

    logger = logging.getLogger("echostill.phases")
    logger.setLevel(logging.INFO)
    logger.addHandler(Collect())
    store.coreset(NAME).delete("")
    config = SelectConfig(
        store=store.root,
        name=NAME,
        budget=arguments.budget,
        workers=arguments.workers,
        method=arguments.method,
        blocked=arguments.blocked or None,
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    select(config)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    manifest = json.loads(store.coreset(NAME).read("manifest.json"))
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_gb": after.ru_maxrss / 1e6,
        "clusters": manifest["clusters"],
        "training_rows": manifest["training_rows"],
        "phases": phases,
    }


def measure_floor(store: Store) -> dict[str, object]:
    """FAISS alone: train on the sample, assign every row; arrays in memory, reading not timed."""
    import faiss

    from echostill.curation.selection.assignment import unit_rows
    from echostill.curation.selection.clustering import (
        ClusteringSettings,
        cluster_count,
        training_rows,
    )
    from echostill.curation.selection.features import TableFeatures

    settings = ClusteringSettings()
    table = store.open_scores()
    features = TableFeatures(table)
    clusters, size = cluster_count(table.rows, "auto"), training_rows(table.rows, settings)
    chosen = np.zeros(table.rows, dtype=bool)
    chosen[np.random.default_rng(0).choice(table.rows, size, replace=False)] = True
    sample = np.empty((size, features.dimension), dtype=np.float32)
    row = filled = 0
    for piece in range(len(features.counts)):
        for block in features.blocks(piece):
            take = block[chosen[row : row + len(block)]]
            sample[filled : filled + len(take)] = unit_rows(take)
            row, filled = row + len(block), filled + len(take)
    kmeans = faiss.Kmeans(
        features.dimension,
        clusters,
        niter=settings.iterations,
        seed=0,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=size,
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    kmeans.train(sample)
    train = time.perf_counter() - start
    del sample
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assign = 0.0
    for piece in range(len(features.counts)):
        chunk = np.concatenate([unit_rows(block) for block in features.blocks(piece)])
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        kmeans.index.search(chunk, 1)
        assign += time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"train": train, "assign": assign, "cpu_seconds": cpu}


def child(what: str, arguments: argparse.Namespace, rows: int, budget: int) -> dict[str, object]:
    """Measure in a process of its own: neither sees the other's memory."""
    command = [sys.executable, __file__, "--measure", what, "--rows", str(rows)]
    command += ["--dim", str(arguments.dim), "--budget", str(budget)]
    command += ["--folder", str(arguments.folder), "--seed", str(arguments.seed)]
    command += ["--workers", str(arguments.workers), "--method", arguments.method]
    command += ["--blocked"] if arguments.blocked else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(arguments: argparse.Namespace, rows: int, budget: int) -> dict[str, object]:
    start = time.perf_counter()
    make_store(arguments.folder, rows, arguments.dim, arguments.seed)
    print(f"{rows} x {arguments.dim}: store at hand after {time.perf_counter() - start:.0f} s")
    floor = child("floor", arguments, rows, budget)
    chosen = child("select", arguments, rows, budget)
    floor_seconds = float(floor["train"]) + float(floor["assign"])  # type: ignore[arg-type]
    seconds = float(chosen["seconds"])  # type: ignore[arg-type]
    result = {
        "rows": rows,
        "dim": arguments.dim,
        "budget": budget,
        "method": arguments.method,
        "clusters": chosen["clusters"],
        "training_rows": chosen["training_rows"],
        "seconds": round(seconds, 2),
        "floor_seconds": round(floor_seconds, 2),
        "ratio": round(seconds / floor_seconds, 3),
        "peak_rss_gb": round(float(chosen["peak_rss_gb"]), 2),  # type: ignore[arg-type]
        "cpu_seconds": round(float(chosen["cpu_seconds"]), 1),  # type: ignore[arg-type]
        "floor_cpu_seconds": round(float(floor["cpu_seconds"]), 1),  # type: ignore[arg-type]
        "floor_train_seconds": round(float(floor["train"]), 2),  # type: ignore[arg-type]
        "floor_assign_seconds": round(float(floor["assign"]), 2),  # type: ignore[arg-type]
        "phases": chosen["phases"],
    }
    print(
        f"  selected {budget} from {result['clusters']} clusters, trained on "
        f"{result['training_rows']} rows\n"
        f"  {seconds:.1f} s, floor {floor_seconds:.1f} s (training {result['floor_train_seconds']}"
        f", assignment {result['floor_assign_seconds']}), ratio {result['ratio']}, "
        f"peak resident memory {result['peak_rss_gb']} GB"
    )
    for name, value in chosen["phases"].items():  # type: ignore[attr-defined]
        print(f"  {name:<20}{value:>9.2f} s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--budget", type=int, help="default: a fifteenth of the rows")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="Ray workers; 0 is this process")
    parser.add_argument("--method", default="coverage")
    parser.add_argument("--blocked", action="store_true", help="choose inside clusters")
    parser.add_argument("--tenth", action="store_true", help="measure a tenth of the rows first")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--measure", choices=["select", "floor"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    budget = arguments.budget or max(arguments.rows // 15, 1)
    arguments.budget = budget
    if arguments.measure:
        store = make_store(arguments.folder, arguments.rows, arguments.dim, arguments.seed)
        work = measure_floor(store) if arguments.measure == "floor" else None
        print(json.dumps(work or measure_select(store, arguments)))
        return
    print(f"machine: {describe_machine()}")
    tenth = None
    if arguments.tenth:
        tenth = measure(arguments, arguments.rows // 10, max(budget // 10, 1))
    result = measure(arguments, arguments.rows, budget)
    if tenth is not None:
        result["tenth_seconds"] = tenth["seconds"]
        growth = float(result["seconds"]) / float(tenth["seconds"])  # type: ignore[arg-type]
        result["growth"] = round(growth, 2)
        print(f"ten times the rows took {growth:.2f} times the time")
    if arguments.json:
        print(json.dumps({**result, "machine": describe_machine()}))


if __name__ == "__main__":
    main()
