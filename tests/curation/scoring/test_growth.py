"""Scores of a pool that grows: only new rows are computed, with the proxy of the first scoring.

In this process, without Ray: a proxy that was not trained stands for the trained one.
"""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from echostill.curation import ScoreConfig, score
from echostill.curation.scoring import stage as score_stage
from echostill.curation.scoring.stage import plan_score
from echostill.curation.scoring.worker import ProxySettings
from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import plan_workers
from echostill.platform.config import TeacherSettings
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import encode_png
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.masking.mim_training import save_snapshot, snapshot_name
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.shards import stage as shard_stage
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store, finish_run
from echostill.platform.tables.table import encode_parquet, part_record, write_manifest
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import VERSIONS, Growth, version_entries, versions
from echostill.platform.training.loop import TrainingSettings
from echostill.platform.training.run import RunResult, is_finished

PROXY = ProxySettings(
    training=TrainingSettings(steps=3, batch_size=4, threads=1), sample=4, snapshots=3
)


def write_pool(store, parts, history=()):
    """Write a pool of these parts, each a range of seeds, with its versions."""
    entries = []
    for number, seeds in enumerate(parts):
        rows = [
            {
                "image_id": f"{seed:032x}",
                "image": encode_png(
                    np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8)
                ),
            }
            for seed in seeds
        ]
        data = encode_parquet(pa.Table.from_pylist(rows, schema=POOL_SCHEMA))
        store.pool().write(f"part-{number:05d}.parquet", data)
        entries.append(part_record(f"part-{number:05d}.parquet", len(rows), data))
    grown = version_entries(entries, history)
    rows = sum(entry["rows"] for entry in entries)
    write_manifest(
        store.pool(),
        stage="ingest",
        schema=POOL_SCHEMA,
        parts=entries,
        fingerprint={"digest": ""},
        extra={"rows_in": rows, "quarantined": 0, **({VERSIONS: grown} if grown else {})},
    )


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """The configuration of a store with a pool of six images, which are scored; what ran."""
    ran, trained = [], []

    def one_by_one(stage, payloads, todo, make_worker, plan, decode, retry):
        worker = make_worker()
        for index in todo:
            ran.append(index)
            record = stage.write(index, worker.process(json.loads(json.dumps(payloads[index]))))
            yield {"record": record, "worker": "here", "seconds": {}, "ended": 0.0}

    def untrained(job, claim, config, export, overwrite):
        claim.take(overwrite)
        done = is_finished(claim.storage)
        if not done:
            trained.append(job.image_ids)
            torch.manual_seed(len(trained))
            model = MaskedImageModel(create_encoder(config.student), config.proxy.decoder)
            weights = {f"model.{key}": value for key, value in model.state_dict().items()}
            steps = config.proxy.snapshot_steps()
            for step in steps:
                save_snapshot(claim.storage.root, weights, step)
            names = [snapshot_name(step) for step in steps]
            finish_run(claim.storage, stage="proxy", files=names, fingerprint=claim.wanted)
        return RunResult(claim.storage, [{"loss": 1.0}, {"loss": 0.5}], done)

    monkeypatch.setattr(shard_stage, "stream", one_by_one)
    monkeypatch.setattr(score_stage, "train_run", untrained)
    monkeypatch.setattr(
        score_stage, "plan_on_cluster", lambda config, plan: plan_workers(1, 8, [Node(2)])
    )
    torch.manual_seed(5)
    weights = tmp_path / "teacher.safetensors"
    save_weights(create_encoder("usfm-micro"), weights, {})
    config = ScoreConfig(
        store=str(tmp_path / "store"),
        teacher=TeacherSettings(model="usfm-micro", weights=str(weights)),
        student="tinyusfm-micro",
        proxy=PROXY,
        batch_size=4,
        rows_per_shard=3,
        progress=False,
    )
    store = Store(config.store)
    write_pool(store, [range(4), range(4, 6)])
    score(config)
    assert ran == [0, 1, 2]
    ran.clear()
    return config, store, ran, trained


def parts(store):
    names = store.open_scores().part_names
    return {name: store.scores().read(name) for name in names}


def test_only_new_rows_are_scored_with_the_first_proxy(scored):
    config, store, ran, trained = scored
    before, first = parts(store), store.open_scores().digest
    write_pool(store, [range(4), range(4, 6), range(6, 9)], [Growth(2), Growth(3)])
    assert verify_store(store.root).sound  # of the version that is scored
    assert "3 image(s) new since version 1" in plan_score(config).describe()
    said = str(score(config))
    assert "3 image(s) new since version 1 of the pool" in said
    assert "the proxy and teacher of version 1" in said
    assert ran == [3]
    assert len(trained) == 1
    assert {name: parts(store)[name] for name in before} == before
    pool, scores = store.open_pool(), store.open_scores()
    ids = scores.read(["image_id"])["image_id"].to_pylist()
    assert ids == pool.read(["image_id"])["image_id"].to_pylist()
    found = versions(scores)
    assert [one.digest for one in found] == [first, scores.digest]
    assert [one.made_from["pool"] for one in found] == [one.digest for one in versions(pool)]
    assert verify_store(store.root).sound
    assert score(config).already_done


def test_what_differs_is_still_refused_and_overwrite_begins_anew(scored):
    config, store, ran, trained = scored
    write_pool(store, [range(4), range(4, 6), range(6, 7)], [Growth(2), Growth(3)])
    with pytest.raises(UsageError, match="refused: mask_draws 2 -> 3"):
        score(config.model_copy(update={"mask_draws": 3}))
    score(config, overwrite=True)
    assert len(trained) == 2
    assert ran == [0, 1, 2, 3]
    assert len(versions(store.open_scores())) == 1
