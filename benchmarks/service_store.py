"""The synthetic store that `service_load.py` serves: a scored pool and two coresets of it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from synthetic import pool_table

from echostill.platform.imaging.images import encode_png
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet, part_record, write_manifest, write_table

PART = 32_768
CLUSTERS, LATENT = 2000, 48
ORGANS = ["heart", "liver", "kidney", "lung", "breast", "thyroid", "muscle", "fetal_head", ""]
DEVICES = ["CX50", "EPIQ 7", "Vivid E95", "Acuson", "Turbo", "DC-70", ""]


def identity(row: np.ndarray) -> list[str]:
    """128-bit ids whose order is not that of the rows."""
    mixed = (row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(2**64 - 1)
    return [
        f"{high:016x}{low:016x}" for high, low in zip(mixed.tolist(), row.tolist(), strict=True)
    ]


def build(root: Path, rows: int, dimension: int) -> None:
    """Write the store part by part, unless it is there."""
    store = Store(str(root))
    if store.coreset("default").exists("manifest.json"):
        return
    numbers = np.random.default_rng(0)
    centres = numbers.normal(size=(CLUSTERS, LATENT)).astype(np.float32)
    turn = (numbers.normal(size=(LATENT, dimension)) / np.sqrt(LATENT)).astype(np.float32)
    cluster = numbers.integers(0, CLUSTERS, rows)
    distance = np.empty(rows, dtype=np.float32)
    picture = encode_png(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    pool, scores = [], []
    for number, start in enumerate(range(0, rows, PART)):
        row = np.arange(start, min(start + PART, rows))
        own = cluster[row]
        latent = centres[own] + 0.6 * numbers.normal(size=(len(row), LATENT)).astype(np.float32)
        feature = latent @ turn + 0.05 * numbers.normal(size=(len(row), dimension)).astype(
            np.float32
        )
        feature /= np.linalg.norm(feature, axis=1, keepdims=True)
        middle = centres[own] @ turn
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        distance[row] = 1 - np.einsum("ij,ij->i", feature, middle)
        ids = identity(row)
        tables = (
            ("pool", store.pool(), pool_part(row, ids, own, picture), pool),
            ("scores", store.scores(), scores_table(ids, feature, numbers), scores),
        )
        for _, storage, table, parts in tables:
            name = f"part-{number:05d}.parquet"
            data = encode_parquet(table)
            storage.write(name, data)
            parts.append(part_record(name, len(row), data))
    for stage, storage, schema, parts in (
        ("ingest", store.pool(), POOL_SCHEMA, pool),
        ("score", store.scores(), scores_schema(dimension, 3), scores),
    ):
        extra = {"rows_in": rows}
        write_manifest(
            storage, stage=stage, schema=schema, parts=parts, fingerprint={}, extra=extra
        )
    store.scores().write("configuration.json", b"{}")
    for name, budget in (("default", max(1, rows // 15)), ("half", rows // 2)):
        table = coreset_table(rows, cluster, distance, budget)
        configuration = {"name": name, "budget": budget, "clusters": CLUSTERS}
        store.coreset(name).write("configuration.json", json.dumps(configuration).encode())
        extra = {"budget": budget}
        write_table(store.coreset(name), table, stage="select", fingerprint={}, extra=extra)


def pool_part(row: np.ndarray, ids: list[str], cluster: np.ndarray, picture: bytes) -> pa.Table:
    """A part of the pool: the picture is the same everywhere."""
    size = len(row)
    sides = ("width", "height", "original_width", "original_height")
    columns = {
        "image_id": ids,
        "group_id": [f"g{value:09d}" for value in (row // 8).tolist()],
        "source": [f"ward/clip_{value:09d}.dcm#{value % 8}" for value in row.tolist()],
        "organ": pa.array(ORGANS).take(pa.array(cluster % len(ORGANS))),
        "device": pa.array(DEVICES).take(pa.array(row % len(DEVICES))),
        "frame": (row % 8).astype(np.int32),
        "image": [picture] * size,
        "content_hash": ids,
        "mean": (row % 997 / 997).astype(np.float32),
        "contrast": (row % 991 / 991).astype(np.float32),
        **{name: np.full(size, 64, dtype=np.int32) for name in sides},
    }
    return pool_table(columns, size)


def scores_table(ids: list[str], feature: np.ndarray, numbers: np.random.Generator) -> pa.Table:
    """Scores of some images: their features, and random gradients."""
    gradient = numbers.random((len(ids), 3)).astype(np.float32)
    half = pa.array(feature.astype(np.float16).ravel())
    return pa.table(
        [
            pa.array(ids),
            pa.FixedSizeListArray.from_arrays(half, feature.shape[1]),
            pa.array(gradient.mean(axis=1)),
            pa.array(gradient.std(axis=1)),
            pa.FixedSizeListArray.from_arrays(pa.array(gradient.ravel()), 3),
            pa.array(gradient[:, 0]),
        ],
        schema=scores_schema(feature.shape[1], 3),
    )


def coreset_table(rows: int, cluster: np.ndarray, distance: np.ndarray, budget: int) -> pa.Table:
    """A coreset by distance inside the generating clusters, quotas in proportion."""
    order = np.lexsort((distance, cluster))
    sizes = np.bincount(cluster, minlength=CLUSTERS)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(rows, dtype=np.int32)
    rank[order] = np.arange(rows) - np.repeat(starts, sizes) + 1
    quotas = np.floor(sizes * (budget / rows)).astype(np.int64)
    roomy = np.flatnonzero(quotas < sizes)  # of a small pool some clusters have no images
    quotas[roomy[: budget - int(quotas.sum())]] += 1
    size, quota = sizes[cluster], quotas[cluster]
    selected = rank <= quota
    words = [
        f"{'selected' if chosen else 'not selected'}: {place} of {whole} in cluster {own}"
        for chosen, place, whole, own in zip(
            selected.tolist(), rank.tolist(), size.tolist(), cluster.tolist(), strict=True
        )
    ]
    columns = {
        "image_id": pa.array(identity(np.arange(rows))),
        "group_id": pa.array([f"g{value:09d}" for value in (np.arange(rows) // 8).tolist()]),
        "cluster": pa.array(cluster.astype(np.int32)),
        "cluster_size": pa.array(size.astype(np.int32)),
        "distance": pa.array(distance),
        "distance_rank": pa.array(rank),
        "gradient": pa.array((np.arange(rows) % 1009 / 1009).astype(np.float32)),
        "gradient_rank": pa.array(rank),
        "dual_rank": pa.array(rank / size),
        "cluster_rank": pa.array(rank),
        "quota": pa.array(quota.astype(np.int32)),
        "selected": pa.array(selected),
        "reason": pa.array(words),
    }
    known = [field for field in CORESET_SCHEMA if field.name in columns]
    return pa.table([columns[field.name] for field in known], schema=pa.schema(known)).sort_by(
        "image_id"
    )
