"""Quality scores against brute force, and on pictures that are spoilt on purpose."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from echostill.curation.deidentification.brightness import Brightness
from echostill.curation.ingestion import quality
from echostill.curation.ingestion.quality import QualitySettings, flags
from echostill.platform.imaging.images import decode_image, resize_longest
from echostill.platform.tables.schemas import POOL_SCHEMA, QUALITY_ISSUES, score_column

POOL = Path(__file__).resolve().parents[3] / "examples/quickstart/pool"
FILES = [sorted((POOL / organ).glob("*.jpg"))[0] for organ in ("fetal_head", "liver", "muscle")]
GREY = arrays.arrays(np.uint8, st.tuples(st.integers(3, 30), st.integers(3, 30)))


@pytest.fixture(params=FILES, ids=lambda path: path.parent.name)
def picture(request):
    """A real staged picture, grey."""
    pixels = resize_longest(decode_image(request.param.read_bytes()), 256)
    return Brightness(pixels).levels


def quality_columns(pixels, width, height, settings):
    return quality.quality_columns(pixels, Brightness(pixels), width, height, settings)


def quality_scores(pixels, width, height):
    return quality.quality_scores(pixels, Brightness(pixels), width, height)


def flagged(pixels, width=320, height=240):
    columns = quality_columns(pixels, width, height, QualitySettings())
    return {issue for issue in QUALITY_ISSUES if columns[issue]}


def test_a_real_picture_has_no_flag_of_ruin(picture):
    spoilt = {"blank", "dark", "saturated", "blurred", "low_information", "odd_aspect", "odd_size"}
    assert not flagged(picture) & (spoilt | {"coloured", "small_sector"})


def test_each_ruin_is_flagged(picture):
    image = Image.fromarray(picture)
    assert {"blank", "low_information", "small_sector"} <= flagged(np.zeros_like(picture))
    assert {"blank", "low_information", "saturated"} <= flagged(np.full_like(picture, 255))
    assert "dark" in flagged(picture // 8)
    assert "saturated" in flagged(np.minimum(picture.astype(int) * 8, 255).astype(np.uint8))
    assert "blurred" in flagged(np.asarray(image.filter(ImageFilter.GaussianBlur(6))))
    assert "low_information" in flagged((picture > 100).astype(np.uint8) * 200)
    assert "odd_aspect" in flagged(picture, 900, 300)
    assert "odd_size" in flagged(picture, 63, 63)
    small = np.zeros((256, 256), dtype=np.uint8)
    small[:64, :64] = np.asarray(image.resize((64, 64)))
    assert "small_sector" in flagged(small)
    doppler = np.repeat(picture[..., None], 3, axis=2)
    doppler[60:90, 60:100] = (220, 40, 30)
    assert "coloured" in flagged(doppler)
    assert "coloured" not in flagged(np.repeat(picture[..., None], 3, axis=2))


def noise(rng, deviation, level=110.0):
    return np.clip(rng.normal(level, deviation, (256, 256)), 0, 255).astype(np.uint8)


def test_noise_and_what_a_program_has_drawn_is_blank():
    rng = np.random.default_rng(0)
    for deviation in (6, 25, 80):
        assert "blank" in flagged(noise(rng, deviation))
    y, x = np.mgrid[:256, :256]
    bars = rng.integers(0, 256, (8, 3)).astype(np.uint8)
    assert "blank" in flagged(bars[x // 32])
    assert "blank" in flagged(((x // 16 + y // 16) % 2 * 180 + 20).astype(np.uint8))


def test_a_picture_with_echoes_is_not_blank_however_it_was_stored(picture):
    score = quality_scores(picture, 320, 240)["blank"]
    assert score == quality._visible_share(Brightness(picture).histogram)
    image = Image.fromarray(picture)
    half = image.resize((image.width // 2, image.height // 2))
    blurred = image.filter(ImageFilter.GaussianBlur(2))
    for spoilt in (picture // 16 * 16, half.resize(image.size, 0), blurred, picture // 3):
        assert "blank" not in flagged(np.asarray(spoilt))
    # Structure under noise in which neighbours have nothing in common, as simulations have it.
    y, x = np.mgrid[:256, :256]
    level = 80 + 40 * (np.hypot(y - 100, x - 120) < 40) - 50 * (np.hypot(y - 170, x - 60) < 25)
    speckle = np.random.default_rng(0).rayleigh(0.8, level.shape)
    assert "blank" not in flagged(np.clip(level * speckle, 0, 255).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 45), st.integers(1, 45)),
    st.sampled_from([0.0, 0.4, 3.0, 40.0]),
)
def test_echo_share_is_that_of_a_plain_count(seed, shape, deviation):
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 200, (-(-shape[0] // 8), -(-shape[1] // 8)))
    smooth = np.kron(steps, np.ones((8, 8)))[: shape[0], : shape[1]]
    grey = np.clip(smooth + rng.normal(0, deviation, shape), 0, 255).astype(np.uint8)
    exact = grey.astype(int)
    found = []
    for row in range(0, shape[0] // 8, 2):
        for column in range(shape[1] // 8):
            block = exact[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            found.append(np.concatenate([np.diff(block, axis=axis).ravel() for axis in (0, 1)]))
    expected = 1.0
    if found:
        found = np.array(found)
        varied = ((found**2).mean(axis=1) >= 0.5) & ((found != 0).mean(axis=1) >= 0.2)
        all_noise = (found**2).mean() / 2 > 0.95 * Brightness(grey).variance
        expected = 0.0 if all_noise else varied.mean()
    assert quality.echo_share(Brightness(grey)) == pytest.approx(expected)


def test_writing_lowers_its_score(picture):
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for line in range(4):
        draw.text((20, 20 + 30 * line), "DOE JANE 1970-01-01 LEFT BREAST", fill=255)
    clean = quality_scores(picture, 320, 240)["overlay_text"]
    written = np.asarray(image)
    assert quality_scores(written, 320, 240)["overlay_text"] < clean - 0.01
    assert "overlay_text" in flagged(written)


@settings(max_examples=40, deadline=None)
@given(GREY)
def test_scores_are_within_bounds_and_flags_follow_from_them(pixels):
    columns = quality_columns(pixels, pixels.shape[1], pixels.shape[0], QualitySettings())
    table = pa.Table.from_pylist([columns], schema=pa.schema(list(POOL_SCHEMA)))
    again = flags(table, QualitySettings())
    for issue in QUALITY_ISSUES:
        assert 0 <= columns[score_column(issue)] <= 1
        assert again[issue].to_pylist() == [columns[issue]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (2, 3), (7, 7)])
def test_tiny_pictures_have_scores(shape):
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, shape), rng.integers(0, 256, (*shape, 3))):
        scores = quality_scores(pixels.astype(np.uint8), shape[1], shape[0])
        assert all(0 <= score <= 1 for score in scores.values())


def test_thresholds_move_the_flags():
    columns = quality_columns(np.zeros((20, 20), dtype=np.uint8), 20, 20, QualitySettings())
    table = pa.Table.from_pylist([columns, {}], schema=pa.schema(list(POOL_SCHEMA)))
    never = flags(table, QualitySettings(**dict.fromkeys(QUALITY_ISSUES, 0.0)))
    assert all(never[issue].to_pylist() == [False, None] for issue in QUALITY_ISSUES)
    assert flags(table, QualitySettings())["blank"].to_pylist() == [True, None]


@settings(max_examples=40, deadline=None)
@given(GREY)
def test_opening_is_scipys(grey):
    padded = np.pad(grey, ((0, 0), (4, 4)), mode="edge")
    eroded = ndimage.grey_erosion(padded, size=(1, 5))
    expected = ndimage.grey_dilation(eroded, size=(1, 5))[:, 4:-4]
    np.testing.assert_array_equal(quality._opened_along_rows(grey, 5), expected)


@settings(max_examples=40, deadline=None)
@given(GREY)
def test_sharpness_is_the_laplacians_energy(grey):
    exact = grey.astype(np.float64)
    laplacian = exact[:-2, 1:-1] + exact[2:, 1:-1] + exact[1:-1, :-2] + exact[1:-1, 2:]
    laplacian -= 4 * exact[1:-1, 1:-1]
    variance = exact.var()
    expected = 0.0
    if variance > 0:
        energy = max(0.0, (laplacian**2).mean() - 20 / 12)
        expected = 1 - np.exp(-energy / variance / quality.SHARPNESS_SCALE)
    found = quality._sharpness(Brightness(grey))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), fill=st.just(9)))
def test_text_share_is_that_of_a_plain_count(grey):
    rows, columns = (side // 8 for side in grey.shape)
    background = ndimage.grey_opening(np.pad(grey, ((0, 0), (4, 4)), mode="edge"), size=(1, 5))
    background = background[:, 4:-4].astype(int)
    blocks = [
        (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        for row in range(rows)
        for column in range(columns)
    ]
    written = [
        (grey[block] - background[block] > quality.STROKE_STEP).mean() >= quality.TEXT_STROKE_SHARE
        and background[block].std() <= 255 * quality.TEXT_FLATNESS
        for block in blocks
    ]
    assert quality.text_share(grey) == (np.mean(written) if written else 0)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(bool, (2, 9, 9)))
def test_gaps_are_filled_between_the_outermost_lit_cells(lit):
    expected = np.zeros_like(lit)
    for view, row in np.ndindex(2, 9):
        places = np.flatnonzero(lit[view, row])
        if len(places):
            expected[view, row, places[0] : places[-1] + 1] = True
    np.testing.assert_array_equal(quality._between(lit), expected)


def test_the_sector_spans_its_shadows_and_leaves_writing_out():
    picture = np.zeros((256, 256), dtype=np.uint8)
    picture[64:192, 64:192] = 120
    picture[80:192, 112:136] = 0  # a shadow from under the skin to the bottom
    picture[184:192, 112:136] = 60  # what the shadow lets through
    picture[8:12, 8:40] = 255  # writing in the border
    sector = quality.sector_grid(Brightness(picture))
    assert sector[8:24, 8:24].all()
    assert sector.sum() == 16 * 16
