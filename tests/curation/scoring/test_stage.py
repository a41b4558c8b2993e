"""The score stage on a tiny pool: the same tables whoever computes them, in whatever order."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from echostill.curation import IngestConfig, ScoreConfig, SelectConfig, ingest, score, select
from echostill.curation.scoring.decoding import PartDecoder, shards
from echostill.curation.scoring.stage import plan_score, retry_score, sample_ids
from echostill.curation.scoring.worker import ProxySettings, ScoreWorker
from echostill.platform.config import TeacherSettings, validate
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.models.weights import find_teacher
from echostill.platform.shards.events import read_events
from echostill.platform.tables.schemas import POOL_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, encode_parquet, write_table
from echostill.platform.tables.verify import verify_store
from echostill.platform.training.loop import TrainingSettings

IMAGES, SHARDS, SIDE = 30, 4, 128
PROXY = ProxySettings(
    training=TrainingSettings(steps=3, batch_size=4, threads=1), sample=12, snapshots=3
)


def texture(seed):
    """A speckled picture with a bright blob, of a size of its own."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 110, 2)
    rows, columns = np.mgrid[:height, :width]
    centre = rng.uniform(0.2, 0.8, 2) * (height, width)
    blob = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / rng.uniform(50, 900))
    speckle = rng.rayleigh(0.3, (height, width))
    return (255 * np.clip(0.5 * blob + speckle * rng.uniform(0.2, 1), 0, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(IMAGES):
        Image.fromarray(texture(seed)).save(folder / f"picture_{seed:02d}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(5)
    save_weights(create_encoder("usfm-micro"), path, {})
    return str(path)


def configuration(store, weights, **settings):
    values = {
        "store": str(store),
        "teacher": TeacherSettings(model="usfm-micro", weights=weights),
        "student": "tinyusfm-micro",
        "proxy": PROXY,
        "batch_size": 5,
        "workers": 1,
        "progress": False,
        **settings,
    }
    return ScoreConfig(**values)


@pytest.fixture(scope="module")
def scored(ray_cluster, pictures, weights, tmp_path_factory):
    """A store with a pool of four shards, scored by one worker."""
    root = tmp_path_factory.mktemp("scored") / "store"
    values = {"files_per_shard": 8, "progress": False, "deidentify": {"pixels": "off"}}
    ingest(IngestConfig(store=str(root), source=str(pictures), **values))
    said = str(score(configuration(root, weights)))
    assert f"{IMAGES} rows in = {IMAGES} rows out + 0 quarantined; {SHARDS} shard(s)" in said
    return root


def with_pool(scored, root):
    """Return a store at ``root`` that has the same pool and nothing else."""
    for folder in ("pool", "records/pool", "records/quarantine/ingest"):  # which has no parts
        shutil.copytree(scored / folder, root / folder)
    return root


@pytest.fixture
def worker(scored, weights):
    """A worker as a worker process has it, on this process's threads."""
    config = configuration(scored, weights)
    store = Store(str(scored))
    return ScoreWorker(
        decoder=PartDecoder(store.pool(), (SIDE,), config.batch_size),
        teacher=find_teacher(config),
        student=config.student,
        proxy=config.proxy,
        snapshots=store.run("proxy"),
        gradient_loss=config.gradient_loss,
        mask_draws=config.mask_draws,
        seed=config.seed,
    ).loaded()


def payloads(store):
    return shards(Store(str(store)).open_pool(), 2048)


def files(root, table):
    """What a table is: its parts and its manifest."""
    folders = (root / table, root / "records" / table)
    paths = [path for folder in folders for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


def choose(root):
    select(SelectConfig(store=str(root), budget=11, clusters=3))
    return files(root, "coresets/default")


def test_the_scores_are_what_they_say(scored):
    table = Store(str(scored)).open_scores().read()
    assert table.schema == scores_schema(128, 3)
    pool = Store(str(scored)).open_pool().read(["image_id"])
    assert table["image_id"].to_pylist() == pool["image_id"].to_pylist()
    features = np.array(table["feature"].to_pylist(), dtype=np.float64)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=2e-3)  # float16
    assert len(np.unique(features, axis=0)) == IMAGES
    gradient = np.array(table["gradient"].to_pylist())
    assert np.isfinite(gradient).all()
    assert (gradient > 0).all()
    assert np.allclose(table["gradient_mean"], gradient.mean(axis=1), rtol=1e-6)
    assert np.allclose(table["gradient_std"], gradient.std(axis=1), rtol=1e-4, atol=1e-7)
    assert (np.array(table["reconstruction_error"]) > 0).all()
    assert verify_store(str(scored)).sound


def test_two_workers_give_the_files_of_one(scored, weights, tmp_path):
    """Everything anew, the proxy too: scores and coreset are the same, byte for byte."""
    other = with_pool(scored, tmp_path / "other")
    score(configuration(other, weights, workers=2))
    assert files(other, "scores").keys() >= {f"part-{k:05d}.parquet" for k in range(SHARDS)}
    assert files(other, "scores") == files(scored, "scores")
    assert choose(other) == choose(scored)


def test_the_order_of_the_shards_does_not_matter(scored, worker):
    table = Store(str(scored)).open_scores()
    for name, payload in reversed(list(zip(table.part_names, payloads(scored), strict=True))):
        assert worker.process(payload).rows.equals(table.read_part(name))


def test_the_proxy_does_not_follow_the_machine():
    assert ProxySettings().paced.workers == 1
    for workers, threads in ((None, 2), (1, 2), (2, 1), ((1, 4), 1)):
        training = TrainingSettings(workers=workers)
        paced = ProxySettings(training=training).paced
        assert (paced.workers, paced.threads) == (workers or 1, threads)


def test_threads_and_neighbours_do_not_change_a_digit(scored, worker):
    """The last batch of this shard holds one image, whose sums would be split among threads."""
    payload = payloads(scored)[-1]
    assert payload[2] % worker.decoder.batch_size == 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = worker.process(payload).rows
        alone = [worker.process_units(payload, [unit]).rows for unit in range(payload[2])]
        torch.set_num_threads(4)
        assert worker.process(payload).rows.equals(expected)
    finally:
        torch.set_num_threads(before)
    assert pa.concat_tables(alone).combine_chunks().equals(expected)


def test_decoding_apart_gives_the_same_files(scored, weights, tmp_path):
    """Decoders in tasks of their own, as beside GPUs; here both are CPUs."""
    other = with_pool(scored, tmp_path / "other")
    shutil.copytree(scored / "runs", other / "runs")
    score(configuration(other, weights, decoders=1))
    assert files(other, "scores") == files(scored, "scores")
    seconds = [
        event["seconds"]
        for event in read_events(Store(str(other)).events(), "score")
        if event["event"] == "shard"
    ]
    assert len(seconds) == SHARDS
    assert all(part["decode"] > 0 and part["compute"] > 0 for part in seconds)


def test_mended_rows_are_scored_as_if_they_had_always_been_whole(scored, weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scored, other, ignore=shutil.ignore_patterns("cache", "scores", "coresets"))
    part = other / "pool" / "part-00001.parquet"
    whole = part.read_bytes()
    rows = Store(str(other)).open_pool().read_part(part.name).to_pylist()
    for row in rows[2:4]:
        row["image"] = b"\x89PNG rotten"
    part.write_bytes(encode_parquet(pa.Table.from_pylist(rows, schema=POOL_SCHEMA)))
    config = configuration(other, weights, max_error_rate=0.2)
    assert "28 rows out + 2 quarantined" in str(score(config))
    assert "2 quarantined before, 2 now" in str(retry_score(config))
    select(SelectConfig(store=str(other), budget=11, clusters=3))
    part.write_bytes(whole)
    said = str(retry_score(config))
    assert "2 quarantined before, 0 now; 30 rows in = 30 rows out + 0 quarantined" in said
    assert "as it was before: coresets/default. " in said
    assert files(other, "scores") == files(scored, "scores")
    assert verify_store(str(other)).problems == ["coresets/default: its rows are not the scores'"]
    with pytest.raises(UsageError, match="scores: 28 images -> 30 images"):
        select(SelectConfig(store=str(other), budget=11, clusters=3))


def test_a_plan_says_how_many_cores_a_gpu_needs(scored, weights):
    plan = plan_score(configuration(scored, weights, decode_rate=200.0, gpu_rate=3000.0))
    assert "15.0 cores per GPU: a core decodes 200 images/s (stated)" in plan.describe()
    assert "no GPU here" in plan.describe()
    measured = plan_score(configuration(scored, weights)).describe()
    assert "(measured on 8 images here)" in measured
    assert "(estimated: " in measured


def test_lost_shards_are_computed_again_and_the_rest_is_not(scored, weights, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scored, other, ignore=shutil.ignore_patterns("cache", "coresets"))
    (other / "records" / "scores" / "manifest.json").unlink()
    (other / "records" / "scores" / "done" / "00001.json").unlink()  # killed before it was declared
    cut = other / "scores" / "part-00002.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    said = str(score(configuration(other, weights, workers=2)))
    assert "(2 finished earlier)" in said
    assert files(other, "scores") == files(scored, "scores")
    assert "already done" in str(score(configuration(other, weights)))
    with pytest.raises(UsageError, match="refused: mask_draws 2 -> 3"):
        score(configuration(other, weights, mask_draws=3))


def damaged(scored, store, config, rows):
    """Copy the pool with images cut short, one of the proxy's sample too; return their ids."""
    pool = Store(str(scored)).open_pool().read().to_pylist()
    trained_on = set(sample_ids([row["image_id"] for row in pool], config))
    broken = [row for row in pool if row["image_id"] not in trained_on][: rows - 1]
    broken += [row for row in pool if row["image_id"] in trained_on][:1]
    for row in broken:
        row["image"] = row["image"][:60]
    write_table(
        store.pool(),
        pa.Table.from_pylist(pool, schema=POOL_SCHEMA),
        stage="ingest",
        fingerprint={},
        rows_per_part=8,
        extra={"rows_in": IMAGES, "quarantined": 0},
    )
    return [row["image_id"] for row in broken]


def test_corrupt_staged_images_cost_a_row_each_until_they_are_too_many(scored, weights, tmp_path):
    store = Store(str(tmp_path / "other"))
    config = configuration(store.root, weights)
    broken = damaged(scored, store, config, rows=4)
    with pytest.raises(EchostillError, match="above max_error_rate") as raised:
        score(config)
    assert raised.value.exit_code == 1
    assert not store.scores().exists("manifest.json")
    assert len(store.scores().list("done")) == SHARDS
    said = str(score(config.model_copy(update={"max_error_rate": 0.2})))
    assert f"{IMAGES} rows in = {IMAGES - 4} rows out + 4 quarantined" in said
    assert f"({SHARDS} finished earlier)" in said
    held = Table.open(store.quarantine("score"), "score").read().to_pylist()
    assert sorted(row["id"] for row in held) == sorted(broken)
    assert {row["stage"] for row in held} == {"score"}
    assert all(row["message"] for row in held)
    ids = Store(str(scored)).open_scores().read(["image_id"])["image_id"].to_pylist()
    kept = store.open_scores().read(["image_id"])["image_id"].to_pylist()
    assert kept == [image_id for image_id in ids if image_id not in broken]


def test_a_part_of_nothing_but_corrupt_images_is_an_empty_part(scored, worker, tmp_path):
    rows = Store(str(scored)).open_pool().read().slice(0, 3)
    broken = pa.array([b"", b"PNG", rows["image"][2].as_py()[:50]], pa.large_binary())
    position = rows.schema.get_field_index("image")
    storage = Store(str(tmp_path)).pool()
    write_table(storage, rows.set_column(position, "image", broken), stage="x", fingerprint={})
    worker.decoder = PartDecoder(storage, (SIDE,), 5)
    outcome = worker.process(["part-00000.parquet", 0, 3])
    assert outcome.rows.num_rows == 0
    assert outcome.rows.schema == scores_schema(128, 3)
    assert outcome.quarantined["id"].to_pylist() == rows["image_id"].to_pylist()


def test_the_proxy_sample_is_a_function_of_ids_and_seed(weights):
    ids = [f"{row:04x}" for row in range(40)]
    config = configuration("unused", weights)
    chosen = sample_ids(ids, config)
    assert len(chosen) == len(set(chosen)) == 12
    assert chosen == sorted(chosen)
    assert chosen == sample_ids(ids[::-1], config)
    assert chosen != sample_ids(ids, config.model_copy(update={"seed": 1}))
    assert sample_ids(ids[:12], config) == ids[:12]


def test_another_precision_is_refused_and_named(scored, weights):
    with pytest.raises(UsageError, match="refused: precision unset -> bfloat16"):
        plan_score(configuration(scored, weights, precision="bfloat16"))
    lines = plan_score(configuration(scored, weights)).describe().splitlines()
    assert ["precision", "float32"] in [line.split() for line in lines]


def test_what_is_missing_is_said_before_any_work(scored, weights, tmp_path):
    with pytest.raises(UsageError, match="run `echostill ingest` first"):
        score(configuration(tmp_path / "nothing", weights))
    other = with_pool(scored, tmp_path / "other")
    with pytest.raises(UsageError, match="no teacher: name its weights"):
        score(configuration(other, None))
    with pytest.raises(UsageError, match="techer"):
        score(configuration(other, str(tmp_path / "techer.safetensors")))
    tiny = TeacherSettings(model="tinyusfm-micro", weights=weights)
    with pytest.raises(UsageError, match="holds weights of 'usfm-micro' and does not fit"):
        score(configuration(other, weights, teacher=tiny))
    assert not (other / "runs").exists()


def test_more_snapshots_than_steps_are_refused():
    with pytest.raises(UsageError, match=r"5 snapshots need at least 5 training\.steps"):
        validate(ScoreConfig, {"proxy": {"training": {"steps": 4}}})
