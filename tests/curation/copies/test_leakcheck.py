"""Benchmark images in a pool: found whatever was done to them, written down, never lost."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from echostill.curation import LeakSettings, check_leaks
from echostill.curation.scoring.teacher_features import teacher_features
from echostill.curation.selection.decided.exclusions import ExclusionSettings, exclusions
from echostill.jobs.cli.main import app
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import decode_staged
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.models.weights import find_weights
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, write_table
from echostill.platform.tables.verify import verify_store


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(seed, side=240):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 200, (12, 12)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    speckle = rng.rayleigh(12, (side, side))
    return Image.fromarray(np.clip(np.asarray(image) + speckle, 0, 255).astype(np.uint8))


@pytest.fixture
def store(tmp_path, make_pool):
    store = Store(str(tmp_path / "store"))
    make_pool(store, {f"pool_{seed}.png": encoded(picture(seed)) for seed in range(6)})
    return store


def benchmark(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    rows = "".join(f"{name},benign,p{number}\n" for number, name in enumerate(files))
    (folder / "list.csv").write_text(f"file,label,group\n{rows}")
    return str(folder / "list.csv")


@pytest.fixture
def leaky(tmp_path):
    files = {
        "same.png": encoded(picture(0), compress_level=1),
        "resized.jpg": encoded(picture(1).resize((330, 330)), "JPEG", quality=75),
        "other.png": encoded(picture(100)),
    }
    return benchmark(tmp_path / "leaky", files)


@pytest.fixture
def clean(tmp_path):
    return benchmark(tmp_path / "clean", {"own.png": encoded(picture(200))})


def found(store):
    names = {r["image_id"]: r["source"] for r in store.open_pool().read().to_pylist()}
    rows = Table.open(store.leaks(), "leakcheck").read().to_pylist()
    return {(names[row["image_id"]], row["benchmark"]): row for row in rows}


def test_leaks_are_found_named_and_left_out(store, leaky, clean):
    report = check_leaks(store.root, [leaky, clean])
    assert not report.clean
    assert "features were not compared" in report.notes[0]
    rows = found(store)
    assert {key: (row["kind"], row["benchmark_image"]) for key, row in rows.items()} == {
        ("pool_0.png", "leaky/list"): ("exact", "same.png"),
        ("pool_1.png", "leaky/list"): ("near", "resized.jpg"),
    }
    reasons = exclusions(store, ExclusionSettings())["reason"].to_pylist()
    assert any("'resized.jpg' in benchmark 'leaky/list'" in reason for reason in reasons)
    assert json.loads(json.dumps(report.as_dict()))["benchmarks"][0]["near"] == 1
    assert "2 of the pool's 6 images" in report.describe()
    assert verify_store(store.root).sound


def test_a_later_check_keeps_what_an_earlier_one_found(store, leaky, clean, tmp_path):
    check_leaks(store.root, [leaky])
    assert check_leaks(store.root, [clean]).clean
    assert len(found(store)) == 2
    assert Table.open(store.leaks(), "leakcheck").manifest["benchmarks"] == {
        "leaky/list": 3,
        "clean/list": 1,
    }
    # The same benchmark again, mended: what was found in it before is replaced.
    (tmp_path / "leaky" / "same.png").write_bytes(encoded(picture(300)))
    check_leaks(store.root, [leaky])
    assert set(found(store)) == {("pool_1.png", "leaky/list")}
    assert len([name for name in store.leaks().list() if name.endswith(".parquet")]) == 1


def test_findings_of_another_pool_are_dropped(store, leaky, clean, make_pool):
    check_leaks(store.root, [leaky])
    make_pool(store, {"new.png": encoded(picture(50))})
    check_leaks(store.root, [clean])
    assert found(store) == {}


def test_another_store_is_a_benchmark(store, tmp_path, make_pool):
    other = Store(str(tmp_path / "other"))
    make_pool(other, {"x.png": encoded(picture(3)), "y.png": encoded(picture(77))})
    report = check_leaks(store.root, [other.root])
    assert report.overlaps[0].count("exact") == 1
    assert next(iter(found(store)))[0] == "pool_3.png"


def test_wrong_usage_is_named(store, clean, tmp_path):
    with pytest.raises(UsageError, match=r"gone\.csv' does not exist"):
        check_leaks(store.root, [str(tmp_path / "gone.csv")])
    with pytest.raises(UsageError, match="given twice"):
        check_leaks(store.root, [clean, clean])
    with pytest.raises(UsageError, match="no benchmark"):
        check_leaks(store.root, [])
    with pytest.raises(UsageError, match="echostill ingest"):
        check_leaks(str(tmp_path / "nowhere"), [clean])
    broken = benchmark(tmp_path / "broken", {"bad.png": b"no picture"})
    with pytest.raises(UsageError, match=r"'broken/list': 'bad.png': the file is not an image"):
        check_leaks(store.root, [broken])


def test_the_command_ends_as_the_check_does(store, leaky, clean):
    def run(*arguments):
        return CliRunner().invoke(app, ["leakcheck", store.root, *arguments])

    assert run(clean).exit_code == 0
    assert run(leaky, clean).exit_code == 1
    recorded = run(leaky, "--record", "--json")
    assert recorded.exit_code == 0
    assert json.loads(recorded.stdout)["clean"] is False
    assert run(leaky, "--near-distance", "200").exit_code == 2


@pytest.fixture
def scored(store, tmp_path):
    """The store with features of its teacher, as the score stage writes them."""
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_weights(create_encoder("usfm-micro"), path, {})
    weights = find_weights("usfm-micro", str(path))
    pool = store.open_pool().read(["image_id", "image"])
    images = [decode_staged(data) for data in pool["image"].to_pylist()]
    features = teacher_features(weights.load(), images)
    rows = [
        {"image_id": image_id, "feature": feature}
        for image_id, feature in zip(pool["image_id"].to_pylist(), features, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=scores_schema(features.shape[1], 1))
    fingerprint = {"weights": {"teacher": weights.digest}, "digest": ""}
    write_table(store.scores(), table, stage="score", fingerprint=fingerprint)
    saved = {"teacher": {"model": "usfm-micro", "weights": str(path)}}
    store.scores().write("configuration.json", json.dumps(saved).encode())
    return store


@pytest.mark.slow
def test_features_are_compared_where_the_store_has_them(scored, leaky):
    settings = LeakSettings(near_distance=None)
    report = check_leaks(scored.root, [leaky], settings)
    assert report.notes == []
    # The same pixels have the same feature: were they not exact copies, features would tell.
    assert found(scored)[("pool_0.png", "leaky/list")]["kind"] == "exact"
    loose = check_leaks(
        scored.root, [leaky], LeakSettings(near_distance=None, semantic_epsilon=0.9)
    )
    assert loose.overlaps[0].count("semantic") >= 1
    assert found(scored)[("pool_1.png", "leaky/list")]["kind"] == "semantic"


@pytest.mark.slow
def test_other_weights_are_not_taken_for_the_teacher(scored, leaky, tmp_path):
    torch.manual_seed(1)
    save_weights(create_encoder("usfm-micro"), tmp_path / "teacher.safetensors", {})
    report = check_leaks(scored.root, [leaky])
    assert "differ from the weights used for the scores" in report.notes[0]
    assert report.overlaps[0].count("exact") == 1


def test_prepared_benchmarks_are_found_in_one_call(store, tmp_path):
    """Every image of every prepared set in a folder, however the pool came by it."""
    from echostill.jobs.benchmarks.preparation import prepare_bench

    for place, name in enumerate(("first", "second")):
        for seed in (0, 1, 2):
            folder = tmp_path / "download" / name / ("fibroid" if seed % 2 else "non-fibroid")
            folder.mkdir(parents=True, exist_ok=True)
            # Two of them are in the pool, one as it is and one resized.
            image = picture((seed if seed < 2 else 300) + 2 * place)
            image = image.resize((330, 330)) if seed == 1 else image
            (folder / f"{seed}.png").write_bytes(encoded(image))
        source, to = str(tmp_path / "download" / name), str(tmp_path / "bench" / name)
        prepare_bench("uf1990", source, to, accept_differences=True, progress=False)
    done = CliRunner().invoke(app, ["leakcheck", store.root, "--bench", str(tmp_path / "bench")])
    assert done.exit_code == 1, done.output
    assert "4 of the pool's 6 images are in a benchmark" in done.output
    leaks = found(store)
    assert {name for name, _ in leaks} == {f"pool_{seed}.png" for seed in range(4)}
    assert {benchmark for _, benchmark in leaks} == {"first/labels", "second/labels"}
    wrong = CliRunner().invoke(
        app, ["leakcheck", store.root, "--bench", str(tmp_path / "download")]
    )
    assert "holds no prepared set" in str(wrong.exception)
