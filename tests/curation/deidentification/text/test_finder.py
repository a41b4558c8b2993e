from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont, features

from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.deidentification.text import finder as finder_module
from echostill.curation.deidentification.text.finder import OwnFinder, find_text, finder
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import decode_image

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[4] / "examples/quickstart/pool"
LIKELY = DeidentifySettings().max_text
DEJAVU = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
DEBIAN = Path("/usr/share/fonts")
NOTO = "truetype/noto/Noto{}-Regular.ttf"
# The letters of the Arabic name are presentation forms in the order of the picture, so that they
# join without a library that shapes text.
SCRIPTS = [
    ("Latin", DEJAVU, "DOE, JANE"),
    ("Greek", DEJAVU, "Παπαδόπουλος"),
    ("Cyrillic", DEJAVU, "КУЗНЕЦОВА"),
    ("Armenian", DEJAVU, "Խաչատրյան"),
    ("Georgian", DEJAVU, "ბერიძე"),
    ("Arabic", DEJAVU, "ﺪﻤﺤﻣ ﻦﺴﺣ"),
    ("Arabic, Amiri", DEBIAN / "opentype/fonts-hosny-amiri/Amiri-Regular.ttf", "محمد حسين"),
    ("Urdu, Nastaliq", DEBIAN / NOTO.format("NastaliqUrdu"), "فاطمہ بیگم"),
    ("Hebrew", DEBIAN / NOTO.format("SansHebrew"), "משה כהן"),
    ("Hindi", DEBIAN / NOTO.format("SansDevanagari"), "राजेश कुमार"),
    ("Bengali", DEBIAN / NOTO.format("SansBengali"), "শেখ মুজিব"),
    ("Tamil", DEBIAN / NOTO.format("SansTamil"), "லட்சுமி"),
    ("Telugu", DEBIAN / NOTO.format("SansTelugu"), "లక్ష్మి దేవి"),
    ("Thai", DEBIAN / NOTO.format("SansThai"), "สมชาย ใจดี"),
    ("Ethiopic", DEBIAN / NOTO.format("SansEthiopic"), "ገብረመድህን"),
    ("Korean", DEBIAN / "truetype/wqy/wqy-zenhei.ttc", "김민수 박지영"),
    ("Chinese", DEBIAN / "truetype/wqy/wqy-zenhei.ttc", "王小明 李静怡"),
    ("Japanese", DEBIAN / "truetype/wqy/wqy-zenhei.ttc", "タナカ ハナコ"),
]
SHAPED = {"Arabic, Amiri", "Urdu, Nastaliq", "Hindi", "Bengali", "Tamil", "Telugu"}


def likely(frame):
    return [text.box for text in find_text(frame) if text.score > LIKELY]


def touches(box, other):
    return min(box[2], other[2]) > max(box[0], other[0]) and min(box[3], other[3]) > max(
        box[1], other[1]
    )


def samples(step):
    files = sorted(QUICKSTART.glob("*/*.jpg"))[::step]
    for number, file in enumerate(files):
        value = decode_image(file.read_bytes())
        yield number, value if value.ndim == 2 else value.max(axis=2)


def inked(text, font, size, angle=0):
    """A text alone, uint8 (H, W)."""
    loaded = ImageFont.truetype(font, size)
    left, top, right, bottom = (int(edge) for edge in loaded.getbbox(text))
    picture = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), text, fill=255, font=loaded)
    picture = picture.crop(picture.getbbox())
    return np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC, expand=True))


def planted(value, ink, at, level=235):
    """The picture with ink laid over it; the box of the ink."""
    x, y = at
    height, width = ink.shape
    out = value.copy()
    part = out[y : y + height, x : x + width].astype(float)
    share = ink / 255
    out[y : y + height, x : x + width] = np.rint(part * (1 - share) + level * share)
    return out, (x, y, x + width, y + height)


def found_share(phantom, text, font, sizes=range(14, 34), angle=0):
    """Of a text drawn once in each size over drawn tissue, the share that is found."""
    hits = []
    for number, size in enumerate(sizes):
        tissue = phantom.speckle((260, 420), seed=number, level=60)
        ink = inked(text, font, size, angle)
        at = (10 + 7 * number % (410 - ink.shape[1]), 8 + 11 * number % (250 - ink.shape[0]))
        frame, box = planted(tissue, ink, at)
        hits.append(any(touches(found, box) for found in likely(frame)))
    return np.mean(hits)


@given(
    arrays(
        np.uint8,
        st.one_of(
            st.tuples(st.integers(1, 80), st.integers(1, 80)),
            st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
        ),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_picture_gives_texts_inside_it(frame):
    texts = find_text(frame)
    assert [text.score for text in texts] == sorted((t.score for t in texts), reverse=True)
    for text in texts:
        x0, y0, x1, y1 = text.box
        assert 0 <= x0 < x1 <= frame.shape[1]
        assert 0 <= y0 < y1 <= frame.shape[0]
        assert 0 <= text.score <= 1
        edges = np.array(text.cells)
        assert (*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0)) == text.box
    assert find_text(frame) == texts


@pytest.mark.parametrize(("script", "font", "text"), SCRIPTS, ids=[item[0] for item in SCRIPTS])
def test_every_script_is_seen_over_tissue(phantom, script, font, text):
    if not font.exists():
        pytest.skip("the font is not installed: .ci/run names its package")
    if script in SHAPED and not features.check("raqm"):
        pytest.skip("Pillow cannot join letters here")
    assert found_share(phantom, text, font) >= 0.95


@pytest.mark.parametrize("angle", [90, 270, 180, 15, -15])
def test_text_is_seen_in_every_direction(phantom, angle):
    assert found_share(phantom, "DOE, JANE", DEJAVU, angle=angle) >= 0.95


def test_letters_below_each_other_are_seen(phantom):
    letters = [inked(letter, DEJAVU, 20) for letter in "SMITHJONES"]
    frame, height = phantom.speckle((260, 260), level=60), 10
    for letter in letters:
        frame, _ = planted(frame, letter, (100 - letter.shape[1] // 2, height))
        height += 24
    assert any(touches(found, (90, 10, 110, 250)) for found in likely(frame))


def test_names_drawn_over_real_images_are_seen(phantom):
    """At 12 to 24 pixels and with a contrast that a person would read."""
    seen = []
    for number, value in samples(25):
        at = (10 + number % 40, value.shape[0] // 2 + number % 60)
        dark = value[at[1] : at[1] + 24, at[0] : at[0] + 100].max(initial=0) < 170
        drawn, box = phantom.write(value, "DOE, JANE", at, 12 + number % 13, 255)
        if dark and box[2] < value.shape[1] and box[3] < value.shape[0]:
            seen.append(any(touches(found, box) for found in likely(drawn)))
    assert len(seen) > 15
    assert np.mean(seen) > 0.9


def test_real_tissue_seldom_alarms():
    alarms = [bool(likely(value)) for _, value in samples(10)]
    assert len(alarms) >= 100
    assert np.mean(alarms) < 0.03


def test_bright_walls_and_septa_are_no_text(phantom):
    """Curves as bright as lettering, of its stroke's width: valves, walls, a skull's halves."""
    alarms = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        picture = Image.fromarray(phantom.speckle((240, 320), seed, 50))
        pen = ImageDraw.Draw(picture)
        for _ in range(4):
            x, y = (int(v) for v in generator.integers(20, 200, 2))
            wide, high = (int(v) for v in generator.integers(30, 120, 2))
            start = int(generator.integers(0, 360))
            pen.arc((x, y, x + wide, y + high), start, start + 120, fill=235, width=4)
        wall = np.asarray(picture).astype(float)
        rough = phantom.speckle((240, 320), seed + 99, 200) / 200
        alarms.append(bool(likely(np.clip(wall * rough, 0, 255).astype(np.uint8))))
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_large_text_is_seen_at_a_smaller_scale(phantom, scale):
    frame = phantom.speckle((100 * scale, 300 * scale), level=40)
    drawn, box = phantom.write(frame, "DOE, JANE", (20, 20), 20 * scale)
    assert any(touches(found, box) for found in likely(drawn))


def test_dark_text_on_a_bright_band_is_seen(phantom):
    frame = phantom.speckle((120, 240), level=40)
    frame[:30] = 220
    drawn, box = phantom.write(frame, "DOE, JANE", (20, 6), 16, 10)
    assert any(touches(found, box) for found in likely(drawn))


def test_coloured_text_as_bright_as_the_tissue_under_it_is_seen(phantom):
    grey = phantom.speckle((120, 240), level=120)
    ink, box = phantom.write(np.zeros_like(grey), "DOE, JANE", (60, 50), 14, 255)
    colour = np.repeat(grey[..., None], 3, axis=2)
    colour[ink > 128] = (0, 150, 0)
    assert any(touches(found, box) for found in likely(colour))


def test_small_text_in_a_small_picture_is_seen(phantom):
    drawn, box = phantom.write(phantom.speckle((60, 90), level=40), "DOE, JANE", (10, 20), 10)
    assert any(touches(found, box) for found in likely(drawn))


def test_a_box_covers_its_text(phantom):
    """What is redacted must not leave the ends of a name."""
    for size in (12, 16, 22, 30):
        ink = inked("WOLKENSTEIN", DEJAVU, size)
        frame, box = planted(phantom.speckle((160, 400), level=60), ink, (40, 60))
        boxes = [found for found in likely(frame) if touches(found, box)]
        margin = size // 3
        assert min(found[0] for found in boxes) <= box[0] + margin
        assert max(found[2] for found in boxes) >= box[2] - margin


def test_what_is_found_in_a_frame_does_not_depend_on_the_frames_before_it(phantom):
    still = phantom.picture(phantom.fan())
    named, _ = phantom.write(still, "DOE, JANE", (110, 120))
    moved, _ = phantom.write(phantom.picture(phantom.fan(), 1), "SMITH", (60, 90))
    colour = np.repeat(moved[..., None], 3, axis=2)
    colour[100:130, 100:140, 0] = 0
    find = OwnFinder()
    for frame in (still, named, moved, colour, still, np.zeros_like(still), named):
        assert find(frame) == find_text(frame)


def test_a_long_cine_takes_no_more_memory_than_two_frames():
    def held():
        return sum(layer.nbytes for last in find._last.values() for layer in last._layers)

    find, noise = OwnFinder(), np.random.default_rng(0)
    sizes = set()
    for _ in range(12):
        find(noise.integers(0, 256, (130, 160, 3), dtype=np.uint8))
        sizes.add(held())
    assert len(sizes) == 1
    assert sizes.pop() < 2 * 20 * 160 * 200


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_doubling_keeps_every_pixel(value):
    double = finder_module._double(value)
    assert double.shape == (2 * value.shape[0], 2 * value.shape[1])
    assert (double[::2, ::2] == value).all()


# --- the extra finder ----------------------------------------------------------------------------


def test_both_finders_find_what_either_does(phantom):
    pytest.importorskip("rapidocr_onnxruntime")
    frame, box = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    own, both = find_text(frame), finder("both")(frame)
    assert both[: len(own)] == own
    more = both[len(own) :]
    assert any(touches(text.box, box) for text in more)
    assert finder("both")(np.zeros((40, 40), np.uint8)) == []


def test_without_its_package_the_second_finder_is_refused(monkeypatch):
    from echostill.curation.deidentification.text import ocr

    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    ocr._detector.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'echostill\[ocr\]'"):
        ocr.require_ocr()
    ocr._detector.cache_clear()
