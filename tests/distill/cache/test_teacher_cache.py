"""Quantisation within its bound, and a reader that gives back what was written."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echostill.distill.cache.teacher_cache import (
    CachedTeacher,
    CacheSpec,
    TeacherCache,
    quantisation_error,
    quantise,
    read_spec,
    restore,
    write_manifest,
)
from echostill.distill.objective.outputs import Needs
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import create_encoder
from echostill.platform.tables.storage import Storage

FLOATS = st.floats(-1000, 1000, width=32)


def spec(**changes):
    values = {
        "layers": (2, 6),
        "tokens": False,
        "views": 3,
        "precision": "int8",
        "images": 5,
        "shapes": ((4, 8), (9, 3), (1, 8))[: 3 if changes.get("tokens") else 2],
        "pooled": 8,
    }
    return CacheSpec(**{**values, **changes})


def both(values, precision):
    codes, ranges = quantise(values, precision)
    held = None if ranges is None else torch.from_numpy(ranges)
    return restore(torch.from_numpy(codes), held), held


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 5, 3), elements=FLOATS), st.sampled_from(["float16", "int8"]))
def test_the_error_is_within_the_stated_bound(values, precision):
    restored, ranges = both(values, precision)
    exact = torch.from_numpy(values)
    allowed = quantisation_error(exact, ranges)
    rounding = 1e-6 * exact.abs().amax(dim=-2, keepdim=True)  # of float32, in restoring
    assert bool(((restored - exact).abs() <= allowed * (1 + 1e-5) + rounding).all())


def test_a_channel_that_is_large_everywhere_costs_the_others_nothing():
    draw = np.random.default_rng(0).normal(size=(1, 16, 4)).astype(np.float32)
    plain, _ = both(draw, "int8")
    draw[..., 2] += 5000
    shifted, _ = both(draw, "int8")
    others = [0, 1, 3]
    assert torch.equal(plain[..., others], shifted[..., others])
    assert float((shifted[..., 2] - torch.from_numpy(draw)[..., 2]).abs().max()) < 0.02


def test_a_constant_channel_is_exact():
    values = np.full((1, 6, 2), 3.25, dtype=np.float32)
    assert torch.equal(both(values, "int8")[0], torch.from_numpy(values))


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(EchostillError, match="cache_precision: int8"):
        quantise(np.full((1, 1, 1), 1e5, dtype=np.float32), "float16")


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("tokens", [False, True])
def test_the_size_is_that_of_the_arrays(precision, tokens):
    one = spec(precision=precision, tokens=tokens)
    size = 0
    size += np.zeros((one.views, 2, one.pooled), dtype=np.float32).nbytes
    for _, shape in zip(one.outputs, one.shapes, strict=True):
        values = np.zeros((one.views, 2, *shape), dtype=np.float32)
        codes, ranges = quantise(values, precision)
        size += codes.nbytes + (0 if ranges is None else ranges.nbytes)
    assert one.bytes_per_image == size
    assert one.bytes == 5 * size


@pytest.fixture
def cache(tmp_path):
    """A cache of five images in shards of two, whose numbers say where they belong."""
    made = spec(shard_bytes=2 * spec().bytes_per_image)
    assert (made.images_per_shard, made.shards) == (2, 3)
    storage = Storage(str(tmp_path / "cache"))
    ids = [f"image-{k}" for k in range(5)]
    for shard in range(3):
        folder = tmp_path / "cache" / f"part-{shard:05d}"
        folder.mkdir(parents=True)
        rows = range(2 * shard, min(2 * shard + 2, 5))
        for number, name in enumerate(("pooled", *made.outputs)):
            where = np.array(
                [
                    [[100 * r + 10 * v + d + number / 8 for d in range(2)] for v in range(3)]
                    for r in rows
                ]
            )
            shape = ((8,), *made.shapes)[number]
            values = np.broadcast_to(
                where.reshape(*where.shape, *(1 for _ in shape)), (*where.shape, *shape)
            ).astype(np.float32)
            if name == "pooled":
                np.save(folder / "pooled.npy", values)
                continue
            codes, ranges = quantise(values, "int8")
            np.save(folder / f"{name}.npy", codes)
            np.save(folder / f"{name}-ranges.npy", ranges)
    write_manifest(storage, made, ids, [], {"digest": "0"})
    return TeacherCache(tmp_path / "cache")


def test_rows_come_from_their_shard_view_and_domain(cache):
    rows = cache.rows(["image-4", "image-1"], [2, 0])
    assert rows.pooled[:, :, 0].tolist() == [[420.0, 421.0], [100.0, 101.0]]
    last = restore(rows.tokens["layer-06"], rows.ranges["layer-06"])
    assert last[:, :, 0, 0].tolist() == [[420.25, 421.25], [100.25, 101.25]]
    for image, view in (("image-9", 0), ("image-0", 3), ("image-0", -1)):
        with pytest.raises(EchostillError, match=f"view {view} of image {image}"):
            cache.rows([image], [view])


def test_the_teacher_in_its_place_answers_from_the_cache(cache):
    teacher = CachedTeacher(cache, create_encoder("usfm-micro"))
    assert not list(teacher.parameters())
    assert (teacher.image_size, teacher.dim, teacher.depth) == (128, 128, 6)
    needs = Needs(pooled=True, blocks=(6, 2))
    out = teacher.look_up(["image-3", "image-0"], np.array([1, 2]), needs)
    # All views with hidden blocks come first, as make_views stacks them.
    assert out.pooled[:, 0].tolist() == [310.0, 20.0, 311.0, 21.0]
    assert out.blocks[6][:, 0, 0].tolist() == [310.25, 20.25, 311.25, 21.25]
    assert out.blocks[2][:, 0, 0].tolist() == [310.125, 20.125, 311.125, 21.125]
    assert (out.tokens, out.attention) == (None, {})
    assert teacher.look_up(["image-3"], np.array([1]), Needs(blocks=(2,))).pooled is None
    for absent, words in (
        (Needs(blocks=(2, 4)), "does not hold: tokens after block 4"),
        (Needs(tokens=True, pooled=True), "does not hold: final tokens"),
        (Needs(attention=(6,)), "does not hold: attention of block 6"),
    ):
        with pytest.raises(EchostillError, match=words):
            teacher.look_up(["image-3"], np.array([1]), absent)


def test_an_unfinished_cache_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"does not exist.*echostill cache"):
        TeacherCache(tmp_path / "none")
    (tmp_path / "begun").mkdir()
    with pytest.raises(UsageError, match="is not finished"):
        TeacherCache(tmp_path / "begun")


def test_the_manifest_is_plain(cache):
    content = json.loads((cache.folder / "manifest.json").read_text())
    assert content["spec"]["layers"] == [2, 6]
    assert content["image_ids"] == cache.image_ids
    assert read_spec(content["spec"]) == cache.spec


def test_a_cache_of_an_earlier_release_has_one_shape():
    old = {"layers": [2, 6], "tokens": True, "views": 1, "precision": "int8", "images": 5}
    found = read_spec({**old, "patches": 4, "dim": 8, "shard_bytes": 100})
    assert found.shapes == ((4, 8),) * 3
    assert (found.pooled, found.layers, found.shard_bytes) == (8, (2, 6), 100)
