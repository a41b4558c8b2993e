"""Selections from a pool that has grown: in the version that is scored, and beside old members."""

import json

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation import DuplicatesConfig, SelectConfig, select, why
from echostill.curation.copies.leakcheck import check_leaks
from echostill.curation.copies.stage import find_duplicates
from echostill.curation.selection.methods import METHODS
from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.schemas import DUPLICATES_SCHEMA, POOL_SCHEMA, scores_schema
from echostill.platform.tables.store import Store, check_origin
from echostill.platform.tables.table import (
    encode_parquet,
    part_record,
    write_manifest,
    write_table,
)
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import VERSIONS, Growth, latest, version_entries, versions

FIRST, SECOND = 40, 20  # images of the two versions
IDS = [f"{row * 7919 % 10**6:032x}" for row in range(FIRST + SECOND)]


def written(storage, stage, pieces, history, inputs):
    """Write a table of pieces with its versions."""
    parts = []
    for number, piece in enumerate(pieces):
        data = encode_parquet(piece)
        storage.write(f"part-{number:05d}.parquet", data)
        parts.append(part_record(f"part-{number:05d}.parquet", piece.num_rows, data))
    grown = version_entries(parts, history)
    rows = sum(piece.num_rows for piece in pieces)
    fingerprint = {"inputs": inputs, "digest": ""}
    storage.write(FINGERPRINT, json.dumps(fingerprint).encode())
    write_manifest(
        storage,
        stage=stage,
        schema=pieces[0].schema,
        parts=parts,
        fingerprint=fingerprint,
        extra={"rows_in": rows, "quarantined": 0, **({VERSIONS: grown} if grown else {})},
    )


def pool_piece(rows):
    return pa.Table.from_pylist(
        [
            {
                "image_id": IDS[row],
                "group_id": f"group-{row // 3}",
                "source": f"image_{row}.png",
                "organ": "liver",
                "content_hash": f"{row:032x}",
                "perceptual_hash": np.random.default_rng(row).bytes(64),
                "thumbnail": np.random.default_rng(row).bytes(512),
                "image": b"",
            }
            for row in rows
        ],
        schema=POOL_SCHEMA,
    )


def scores_piece(rows):
    features = np.random.default_rng(1).normal(size=(FIRST + SECOND, 6))
    gradient = np.random.default_rng(2).random((FIRST + SECOND, 3)).astype(np.float32)
    return pa.Table.from_pylist(
        [
            {
                "image_id": IDS[row],
                "feature": (features[row] / np.linalg.norm(features[row])).astype(np.float16),
                "gradient_mean": gradient[row].mean(),
                "gradient_std": gradient[row].std(),
                "gradient": gradient[row],
                "reconstruction_error": 0.1,
            }
            for row in rows
        ],
        schema=scores_schema(6, 3),
    )


def pieces(make, whole):
    ranges = [range(FIRST), range(FIRST, FIRST + SECOND)]
    return [make(rows) for rows in (ranges if whole else ranges[:1])]


def write_pool(store, grown):
    history = [Growth(1), Growth(2)] if grown else ()
    written(store.pool(), "ingest", pieces(pool_piece, grown), history, {})


def write_scores(store, grown):
    pool = versions(store.open_pool())
    history = [Growth(n, {"pool": v.digest}) for n, v in enumerate(pool, start=1)] if grown else ()
    inputs = {"pool": pool[0].digest}
    written(store.scores(), "score", pieces(scores_piece, grown), history, inputs)


def config(store, **settings):
    return SelectConfig(store=store.root, **{"clusters": 4, "budget": 10, **settings})


def chosen(store, name):
    table = store.open_coreset(name).read()
    return set(table.filter(table["selected"])["image_id"].to_pylist())


@pytest.fixture
def store(tmp_path):
    """A store with a coreset 'old' of its first version, which has grown and is scored."""
    store = Store(str(tmp_path / "store"))
    write_pool(store, grown=False)
    write_scores(store, grown=False)
    select(config(store, name="old"))
    write_pool(store, grown=True)
    return store


def test_until_it_is_scored_a_selection_is_of_the_version_before(store):
    before = store.coreset("old").read("part-00000.parquet")
    said = str(select(config(store, name="old")))
    assert "already done" in said
    assert "20 image(s) of version 2 of the pool are not scored yet" in said
    select(config(store, name="same", budget=10))
    assert store.coreset("same").read("part-00000.parquet") == before
    write_scores(store, grown=True)
    with pytest.raises(UsageError, match="scores: 40 images -> 60 images"):
        select(config(store, name="old"))
    select(config(store, name="new"))
    assert store.open_coreset("new").rows == FIRST + SECOND
    assert store.open_coreset("new").manifest["pool_version"] == 2
    assert "pool_version" not in store.open_coreset("old").manifest
    for name in ("old", "new"):
        check_origin(store, store.open_coreset(name))
    assert verify_store(store.root).sound


def test_why_answers_from_the_version_of_the_coreset(store):
    assert "in the coreset" in why(store.root, "old", IDS[3]).text
    with pytest.raises(UsageError, match=r"came with version 2 .* selected from version 1"):
        why(store.root, "old", IDS[FIRST + 2])


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_keeps_the_members_and_says_how_far_it_is_from_a_fresh_one(store, method):
    write_scores(store, grown=True)
    said = str(select(config(store, name="new", method=method, budget=16, grow="old")))
    assert chosen(store, "old") < chosen(store, "new")
    assert len(chosen(store, "new")) == 16
    select(config(store, name="fresh", method=method, budget=16))
    shared = chosen(store, "new") & chosen(store, "fresh")
    grown = store.open_coreset("new").manifest["grown"]
    assert (grown["kept"], grown["added"], grown["shared"]) == (10, 6, len(shared))
    assert f"would share {len(shared)} of these 16" in said
    table = store.open_scores().read()
    features = np.array(table["feature"].to_pylist(), dtype=np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = table["image_id"].to_pylist()
    for name, key in (("new", "coverage"), ("fresh", "fresh_coverage")):
        own = [ids.index(one) for one in chosen(store, name)]
        expected = (features @ features[own].T).max(axis=1).mean()
        assert grown[key] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "old"}, "give the new one another name"),
        ({"budget": 9}, "has 10 images, and all of them stay: budget 9 is smaller"),
        ({"grow": "odl"}, "no coreset 'odl'.*'old'"),
        ({"only": {"organ": ("liver",)}, "exclude": "banned.csv"}, "excluded now: .*not wanted"),
    ],
)
def test_what_cannot_grow_is_refused_in_words(store, tmp_path, monkeypatch, settings, words):
    write_scores(store, grown=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "banned.csv").write_text(
        f"image_id,reason\n{min(chosen(store, 'old'))},not wanted\n"
    )
    with pytest.raises(UsageError, match=words):
        select(config(store, **{"name": "new", "budget": 16, "grow": "old", **settings}))


def test_a_member_stays_though_a_better_copy_has_come(store):
    write_scores(store, grown=True)
    member, better = min(chosen(store, "old")), IDS[FIRST]
    row = {"duplicate_group": member, "kept_id": better, "kind": "near", "distance": 1.0}
    copies = [
        {**row, "image_id": member, "kept": False, "reason": f"near copy of {better}"},
        {**row, "image_id": better, "kept": True, "reason": "kept"},
    ]
    write_table(
        store.duplicates(),
        pa.Table.from_pylist(copies, schema=DUPLICATES_SCHEMA),
        stage="duplicates",
        fingerprint={"inputs": {"pool": store.open_pool().digest}, "digest": ""},
    )
    select(config(store, name="new", budget=16, grow="old"))
    assert member in chosen(store, "new")
    assert better not in chosen(store, "new")
    assert f"copy of {member}" in why(store.root, "new", better).text


def test_copies_are_looked_for_anew_and_no_benchmark_is_forgotten(store, tmp_path):
    write_pool(store, grown=False)
    find_duplicates(DuplicatesConfig(store=store.root))
    manifest = {"image_id": []}
    write_table(
        store.leaks(),
        pa.table(manifest, schema=pa.schema([("image_id", pa.string())])),
        stage="leakcheck",
        fingerprint={"inputs": {"pool": store.open_pool().digest}, "digest": ""},
        extra={"benchmarks": {"liver.csv": 3}},
    )
    write_pool(store, grown=True)
    write_scores(store, grown=True)
    with pytest.raises(UsageError, match="has grown since: run `echostill duplicates` again"):
        select(config(store, name="new", exclude_leaks=False))
    found = find_duplicates(DuplicatesConfig(store=store.root))
    assert found.counts["images"] == FIRST + SECOND
    assert (
        latest(store.open_pool()).digest
        in json.loads(store.duplicates().read(FINGERPRINT))["inputs"].values()
    )
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UsageError, match=r"compared with liver\.csv: name these too"):
        check_leaks(store.root, [store.root])
