"""The cache against the live teacher: the same loss to quantisation error; never stale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import read_source
from echostill.distill.cache.building import CacheWorker
from echostill.distill.cache.stage import (
    cache_job,
    cache_storage,
    make_cache,
    open_cache,
    plan_cache,
)
from echostill.distill.cache.teacher_cache import HELD, TeacherCache, write_manifest
from echostill.distill.cache.verifying import verify_cache
from echostill.distill.distillation import DistillationJob, distill, plan_distill
from echostill.distill.objective.outputs import Needs
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.objective.terms.table import TERMS
from echostill.distill.settings import DistillConfig, StudentSettings
from echostill.platform.config import TeacherSettings
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.masking.masks import MaskSettings, SpatialMask
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.models.weights import find_teacher
from echostill.platform.tables.fingerprint import Claim
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.tables.verify import verify_store
from echostill.platform.training.augment import AugmentSettings
from echostill.platform.training.batches import cut, make_batch
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingSettings
from echostill.platform.training.staging import stage_images

ALONE = TrainingWorker()
ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "examples" / "quickstart"
TEACHER = str(SAMPLE / "teacher" / "usfm-micro.safetensors")
TRAINING = TrainingSettings(
    steps=4, batch_size=4, learning_rate=0.01, checkpoints=2, log_every=1, views_per_image=2
)
IMAGES = 10
# What the loss may move by, relative. float16 rounds tokens by 2^-11 at most, int8 by 1/510 of a
# channel's range; both err without direction, and the loss is a mean over thousands of tokens.
AGREES = {"float16": 2e-5, "int8": 5e-4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("caching") / "store"))
    settings = IngestSettings(source=str(SAMPLE / "pool" / "manifest.csv"))
    rows = [read_source(source, settings)[0] for source in list_sources(settings)[::90][:IMAGES]]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    chosen = [{"image_id": row["image_id"], "selected": True} for row in rows]
    counts = {"rows_in": IMAGES, "quarantined": 0}
    write_table(store.pool(), pool, stage="ingest", fingerprint={"digest": "0"}, extra=counts)
    coreset = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    write_table(store.coreset("default"), coreset, stage="select", fingerprint={"digest": "0"})
    return store


def config(store, **changes):
    values = {
        "store": store.root,
        "teacher": TeacherSettings(model="usfm-micro", weights=TEACHER),
        "student": "tinyusfm-micro",
        "training": TRAINING,
        "progress": False,
        "cache": True,
        **changes,
    }
    return DistillConfig(**values)


def ids(store):
    return tuple(store.open_pool().read(["image_id"])["image_id"].to_pylist())


def build(settings, store):
    """Make a cache in this process, as the actors do."""
    asked_for = settings.training.precision
    computed_in = "float32" if asked_for == "auto" else asked_for
    job = replace(cache_job(settings, find_teacher(settings), ids(store)), computed_in=computed_in)
    storage = cache_storage(settings)
    Claim(storage, job.fingerprint(), "cache", "a teacher cache").take(False)
    worker = CacheWorker(job)
    records = [worker.build(storage, index) for index in range(job.spec.shards)]
    write_manifest(storage, job.spec, job.image_ids, records, job.fingerprint().as_dict())
    return open_cache(settings, find_teacher(settings), ids(store))


@pytest.fixture(scope="module")
def caches(store):
    """One cache per precision, with the final tokens as well."""
    token = StudentSettings(name="token", objective=ObjectiveSettings(level="token"))
    return {
        precision: build(
            config(
                store,
                cache_name=precision,
                cache_precision=precision,
                students=(StudentSettings(), token),
            ),
            store,
        )
        for precision in AGREES
    }


def task(store, teacher, seed=0, changes=(), **objectives):
    students = tuple(
        StudentSettings(name=name, objective=ObjectiveSettings(**objective))
        for name, objective in objectives.items()
    )
    settings = config(store, students=students, seed=seed, **dict(changes))
    return DistillationJob(
        store=store.root,
        runs=tuple(settings.runs()),
        teacher=teacher,
        image_ids=ids(store),
        settings=TRAINING,
        decoder=settings.decoder,
        masks=settings.masks,
        seed=seed,
    ).task()


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(AGREES))
@pytest.mark.parametrize("level", ["sample", "token"])
def test_cached_and_live_give_the_same_loss_and_gradients(store, caches, precision, level):
    images = stage_images(store.open_pool(), store.root, 128)
    objectives = {"one": {"level": level}}
    live = task(store, find_teacher(config(store)), seed=7, **objectives).train()
    cached = task(store, caches[precision], seed=7, **objectives).train()
    for step in range(5):  # over the end of the finite set: views repeat
        batch = make_batch(images, TRAINING, 7, 128, step, ALONE)
        losses = []
        for each in (live, cached):
            each.zero_grad()
            loss, parts = each(batch)
            loss.backward()
            losses.append((float(loss.detach()), parts))
        (wanted, before), (found, after) = losses
        assert found == pytest.approx(wanted, rel=AGREES[precision])
        # Pooled features are kept whole, so sample weights agree to rounding.
        tolerance = 1e-5 if level == "sample" else 20 * AGREES[precision]
        for name in ("weight", "consistency"):
            torch.testing.assert_close(after[name], before[name], rtol=tolerance, atol=tolerance)
        own, other = (
            torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None])
            for each in (live, cached)
        )
        assert float((own - other).norm() / own.norm()) < 20 * AGREES[precision]


@pytest.mark.slow
def test_a_student_of_another_input_size_and_grid(store):
    """Views of 64 pixels: the teacher is shown them resized, and followed on the 4 x 4 grid."""
    small = {"student_image_size": 64, "cache_name": "small"}
    cached = build(config(store, **small), store)
    images = stage_images(store.open_pool(), store.root, 64)
    live = task(store, find_teacher(config(store)), changes=small, one={}).train()
    kept = task(store, cached, changes=small, one={}).train()
    assert (live.image_size, live.objective.grid, live.objective.teacher.grid) == (
        64,
        (4, 4),
        (8, 8),
    )
    batch = make_batch(images, TRAINING, 0, 64, 0, ALONE)
    wanted, found = (float(each(batch)[0].detach()) for each in (live, kept))
    assert found == pytest.approx(wanted, rel=AGREES["float16"])


@pytest.mark.slow
@pytest.mark.parametrize("side", [96, 256])
def test_a_convolutional_teacher_of_stages(store, tmp_path, side):
    """Stages of several widths and grids; at 256 pixels the last has the student's own 8 x 8."""
    weights = str(tmp_path / "teacher.safetensors")
    torch.manual_seed(0)
    save_weights(create_encoder("timm:test_efficientnet", image_size=side), weights, {})
    teacher = TeacherSettings(model="timm:test_efficientnet", weights=weights, image_size=side)
    changes = {"teacher": teacher, "cache_name": f"stages-{side}"}
    settings = config(store, **changes)
    cached = build(settings, store)
    live = task(store, find_teacher(settings), changes=changes, one={}).train()
    kept = task(store, cached, changes=changes, one={}).train()
    followed = live.objective.teacher
    layers = [followed.layer(block) for block in followed.third_layers()]
    assert len(set(layers)) == 3
    assert (layers[-1].grid == live.objective.grid) == (side == 256)
    images = stage_images(store.open_pool(), store.root, 128)
    batch = make_batch(images, TRAINING, 0, 128, 0, ALONE)
    wanted, found = (float(each(batch)[0].detach()) for each in (live, kept))
    assert found == pytest.approx(wanted, rel=AGREES["float16"])
    said = plan_cache(settings).describe()
    assert all(f"{layer.grid[0] ** 2} tokens of {layer.dim}" in said for layer in layers)


@pytest.mark.slow
def test_students_that_share_a_cache_each_get_their_own_layers_of_each_part(store, caches):
    """Two students, other layers, and a batch cut in two: as with the live teacher."""
    objectives = {
        "plain": {"teacher_layers": (2, 6), "layers": (1, 2)},
        "each": {"level": "token", "consistency": "each"},
    }
    images = stage_images(store.open_pool(), store.root, 128)
    live = task(store, find_teacher(config(store)), **objectives).train()
    cached = task(store, caches["float16"], **objectives).train()
    assert live.needs == cached.needs == Needs(pooled=True, blocks=(2, 4, 6))
    assert len(cached.compiled()) == len(live.compiled()) - 1  # the students alone
    parts = cut(make_batch(images, TRAINING, 0, 128, 0, ALONE), 2)
    for part, wanted, found in zip(parts, live.prepare(parts), cached.prepare(parts), strict=True):
        for one, other in zip(wanted.signals, found.signals, strict=True):
            assert one.targets.keys() == other.targets.keys() == {"tokens"}
            for target, restored in zip(*(s.targets["tokens"] for s in (one, other)), strict=True):
                torch.testing.assert_close(restored, target, rtol=0.01, atol=0.01)
            torch.testing.assert_close(other.weight, one.weight, rtol=1e-3, atol=1e-3)
        before, after = (
            one(part, own)[0].detach() for one, own in ((live, wanted), (cached, found))
        )
        assert float(after) == pytest.approx(float(before), rel=AGREES["float16"])


@pytest.mark.slow
def test_the_views_repeat_and_are_those_of_every_seed(store):
    images = stage_images(store.open_pool(), store.root, 128)
    seen = {}
    for seed in (0, 1):
        for step in range(10):
            batch = make_batch(images, TRAINING, seed, 128, step, ALONE)
            for image_id, view, pixels in zip(
                batch.image_ids, batch.epochs, batch.pixels, strict=True
            ):
                assert 0 <= view < 2
                first = seen.setdefault((image_id, int(view)), pixels)
                torch.testing.assert_close(first, pixels)
    assert len(seen) == 2 * IMAGES
    one = ids(store)[0]
    assert not torch.equal(seen[one, 0], seen[one, 1])


@pytest.mark.slow
def test_a_verified_cache_and_one_that_was_tampered_with(store, tmp_path):
    settings = config(store, cache_name="verified", cache_precision="int8")
    cache = build(settings, store)
    said = verify_cache(settings, views=8)
    assert "8 views recomputed" in said
    assert verify_store(store.root).sound
    path = next(Path(cache.folder).glob("part-*/layer-06.npy"))
    codes = np.load(path)
    np.save(path, 255 - codes)
    with pytest.raises(EchostillError, match="is wrong: layer-06"):
        verify_cache(settings, views=8)
    assert not verify_store(store.root).sound
    np.save(path, codes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"masks": MaskSettings(spatial=SpatialMask(ratio=0.5))},
            r"masks\.spatial\.ratio 0\.6 -> 0\.5",
        ),
        (
            {
                "training": TRAINING.model_copy(
                    update={"augment": AugmentSettings(crop_scale=(0.2, 1.0))}
                )
            },
            r"augment\.crop_scale \[0\.4, 1\.0\] -> \[0\.2, 1\.0\]",
        ),
        (
            {"training": TRAINING.model_copy(update={"views_per_image": 3})},
            "views_per_image 2 -> 3",
        ),
        ({"training": TRAINING.model_copy(update={"view_seed": 5})}, "view_seed 0 -> 5"),
        ({"cache_precision": "float16"}, "precision int8 -> float16"),
        (
            {"students": (StudentSettings(objective=ObjectiveSettings(teacher_layers=(1, 2, 3))),)},
            "layers",
        ),
    ],
)
def test_a_changed_transform_or_mask_is_refused_with_the_difference(store, caches, changes, words):
    same = {"cache_name": "int8", "cache_precision": "int8"}
    teacher = find_teacher(config(store))
    assert open_cache(config(store, **same), teacher, ids(store)).folder == caches["int8"].folder
    with pytest.raises(UsageError, match=words) as caught:
        open_cache(config(store, **{**same, **changes}), teacher, ids(store))
    assert "made from something else" in str(caught.value)
    with pytest.raises(UsageError, match=words):  # and is not silently overwritten either
        make_cache(config(store, **{**same, **changes, "cache_name": "verified"}))


@pytest.mark.slow
def test_a_cache_in_bfloat16_is_not_taken_for_one_in_float32(store, caches):
    def settings(name, precision):
        training = TRAINING.model_copy(update={"precision": precision})
        return config(store, cache_name=name, cache_precision="float16", training=training)

    def opened(name, precision):
        asked = settings(name, precision)
        return open_cache(asked, find_teacher(asked), ids(store))

    halved = build(settings("halved", "bfloat16"), store)
    assert halved.computed_in == opened("halved", "auto").computed_in == "bfloat16"
    assert opened("float16", "auto").computed_in == "float32"
    with pytest.raises(UsageError, match="computed_in bfloat16 -> unset"):
        opened("halved", "float32")
    with pytest.raises(UsageError, match="computed_in unset -> bfloat16"):
        opened("float16", "bfloat16")
    assert "8 views recomputed" in verify_cache(settings("halved", "auto"), views=8)
    for name, precision in (("halved", "bfloat16"), ("new", "float32")):
        said = plan_cache(settings(name, "auto")).describe().splitlines()
        assert f"computed in {precision}".split() in [line.split() for line in said]
    assert "halved, in bfloat16" in plan_distill(settings("halved", "auto")).describe()
    views = [0] * IMAGES
    exact, rough = (
        TeacherCache(cache.folder).rows(ids(store), views) for cache in (caches["float16"], halved)
    )
    found = [(exact.pooled, rough.pooled)]
    found += [(exact.tokens[name], tokens) for name, tokens in rough.tokens.items()]
    for whole, half in found:
        assert not torch.equal(whole, half)
        assert torch.cosine_similarity(whole.float(), half.float(), dim=-1).min() >= 0.999


@pytest.mark.slow
def test_another_teacher_or_coreset_is_refused(store, caches, tmp_path):
    settings = config(store, cache_name="int8", cache_precision="int8")
    torch.manual_seed(5)
    save_weights(create_encoder("usfm-micro"), tmp_path / "other.safetensors", {})
    other = TeacherSettings(model="usfm-micro", weights=str(tmp_path / "other.safetensors"))
    changed = settings.model_copy(update={"teacher": other})
    with pytest.raises(UsageError, match=r"weights of the teacher: .*\(\w+ -> \w+\)"):
        distill(changed)
    with pytest.raises(UsageError, match="weights of the teacher"):
        plan_distill(changed)
    with pytest.raises(UsageError, match=r"images: .*\(\w+ -> \w+\)"):
        open_cache(settings, find_teacher(settings), ids(store)[1:])


@pytest.mark.slow
def test_what_cannot_be_cached_is_said(store, tmp_path):
    endless = TRAINING.model_copy(update={"views_per_image": None})
    with pytest.raises(UsageError, match="views_per_image"):
        make_cache(config(store, training=endless))
    alone = (StudentSettings(objective=ObjectiveSettings(preset="mim-only")),)
    with pytest.raises(UsageError, match="nothing to cache"):
        make_cache(config(store, students=alone))
    for objective, words in (
        (ObjectiveSettings(attention_weight=1.0), "'attention', which .*attention of block 6"),
        (ObjectiveSettings(relation_weight=1.0), "'relation', which .*attention of block 6"),
        (ObjectiveSettings(views="spatial", weighting="fixed"), "views 'spatial'"),
        (ObjectiveSettings(views="joint", weighting="fixed"), "views 'joint'"),
        (ObjectiveSettings(teacher_sees="image", weighting="fixed"), "sees the whole image"),
        (ObjectiveSettings(teacher_layers=(1, 2, 7)), "names block 7"),
    ):
        students = (StudentSettings(name="odd", objective=objective),)
        for call in (make_cache, distill, plan_distill):
            with pytest.raises(UsageError, match=words):
                call(config(store, students=students))
    other = ObjectiveSettings(masks=MaskSettings(spatial=SpatialMask(ratio=0.5)))
    students = (StudentSettings(), StudentSettings(name="odd", objective=other))
    with pytest.raises(UsageError, match="masks differ"):
        make_cache(config(store, students=students))
    with pytest.raises(UsageError, match=r"above cache_limit_gb 0\.001.*--force"):
        make_cache(config(store, cache_limit_gb=0.001))
    with pytest.raises(UsageError, match="does not exist"):
        distill(config(store, cache_name="none"))


@pytest.mark.parametrize(
    "term", [term for term in TERMS if term.follows_teacher], ids=lambda term: term.name
)
def test_a_cache_holds_what_a_term_declares_or_refuses_it(store, term):
    weights = {each.weight_key: 0.0 for each in TERMS if each.weight_key}
    objective = ObjectiveSettings(**{**weights, term.weight_key: 1.0})
    settings = config(store, students=(StudentSettings(objective=objective),))
    teacher = find_teacher(settings)
    encoders = [create_encoder(name) for name in ("tinyusfm-micro", "usfm-micro")]
    needs = term.build(MaskedImageModel(encoders[0]), encoders[1], objective).teacher
    if needs.kinds <= HELD:
        held = cache_job(settings, teacher, ids(store)).spec.needs
        assert not needs.without(held).kinds
    else:
        with pytest.raises(UsageError, match=f"the term '{term.name}'"):
            cache_job(settings, teacher, ids(store))


def test_the_plan_estimates_the_size(store, caches):
    said = plan_cache(config(store, cache_limit_gb=0.001)).describe()
    held = sum(path.stat().st_size for path in Path(caches["float16"].folder).glob("part-*/*.npy"))
    for words in ("10 images x 2 x 2", "layer-02, layer-04, layer-06", "ABOVE the limit"):
        assert words in said
    job = cache_job(
        config(store, students=(StudentSettings(objective=ObjectiveSettings(level="token")),)),
        find_teacher(config(store)),
        ids(store),
    )
    assert job.spec.bytes == pytest.approx(held, rel=0.01)


def test_made_on_ray_in_shards_and_resumed(store, ray_cluster, monkeypatch):
    """The command's way: two shards, one of which was made before a crash."""
    settings = config(store, cache_name="ray", cache_precision="int8")
    size = cache_job(settings, find_teacher(settings), ids(store)).spec.bytes_per_image
    monkeypatch.setattr("echostill.distill.cache.stage.SHARD_BYTES", 5 * size)
    job = cache_job(settings, find_teacher(settings), ids(store))
    assert job.spec.shards == 2
    storage = cache_storage(settings)
    Claim(storage, job.fingerprint(), "cache", "a teacher cache").take(False)
    CacheWorker(job).build(storage, 1)
    kept = Path(storage.local_path("part-00001/pooled.npy"))
    before = kept.stat().st_mtime_ns
    said = str(make_cache(settings))
    assert "10 images x 2 views" in said
    assert "1 of 2 shards finished earlier" in said
    assert kept.stat().st_mtime_ns == before
    assert str(make_cache(settings)).startswith("already done")
    verify_cache(settings, views=20)
