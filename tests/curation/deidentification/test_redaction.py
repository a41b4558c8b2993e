import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.deidentification.redaction import covered, lost_share, redact, widened
from echostill.curation.deidentification.text.found import Text

BOXES = st.tuples(
    st.integers(0, 40), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30)
).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
TEXTS = st.lists(BOXES.map(lambda box: Text(box, 0.9)), max_size=4)


@given(TEXTS, st.booleans())
def test_boxes_are_black_with_their_margin_and_nothing_else_is(texts, colour):
    pixels = np.full((50, 60, 3) if colour else (50, 60), 200, dtype=np.uint8)
    expected = pixels.copy()
    for x0, y0, x1, y1 in (text.box for text in texts):
        margin = int(min(max(0.15 * min(x1 - x0, y1 - y0), 3), 12))
        expected[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = 0
    assert (redact(pixels, texts) == expected).all()
    assert (pixels == 200).all()


@given(TEXTS)
def test_what_is_lost_is_counted_pixel_by_pixel(texts):
    mask = np.zeros((50, 60), dtype=bool)
    mask[5:45, 10:50] = True
    gone = 0
    for y in range(50):
        for x in range(60):
            black = any(
                x0 <= x < x1 and y0 <= y < y1
                for x0, y0, x1, y1 in (widened(text.box, mask.shape) for text in texts)
            )
            gone += bool(mask[y, x] and black)
    assert lost_share(texts, mask) == pytest.approx(gone / mask.sum())


def test_of_a_slanted_line_only_its_cells_are_black():
    """Its box would take the tissue above and below it."""
    cells = tuple((x, x // 2, x + 4, x // 2 + 4) for x in range(20, 100, 4))
    slanted = Text((20, 10, 100, 53), 0.9, cells)
    black = covered([slanted], (80, 140))
    assert all(black[y0 - 3 : y1 + 3, x0 - 3 : x1 + 3].all() for x0, y0, x1, y1 in cells)
    assert not black[12, 95]
    assert not black[50, 25]
    level = tuple((x, 20, x + 4, 28) for x in range(20, 100, 8))  # every other cell: one line
    assert covered([Text((20, 20, 100, 28), 0.9, level)], (80, 140))[20:28, 20:100].all()


def test_of_an_empty_sector_nothing_is_lost():
    assert lost_share([Text((0, 0, 5, 5), 0.9)], np.zeros((8, 8), dtype=bool)) == 0


def test_an_upright_line_has_the_margin_of_its_width():
    assert widened((100, 20, 112, 220), (400, 400)) == (97, 17, 115, 223)
