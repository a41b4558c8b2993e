"""Areas without pixels, against a brute force over all pixel centres."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from echostill.eval.unius.delimited import read_delimited
from echostill.eval.unius.shapes import (
    between,
    draw,
    fill_outline,
    read_coco,
    read_contour,
    read_polygon,
    read_via,
)
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import DecodeError


def brute_force(polygon, width, height):
    """Even-odd rule at each pixel centre in exact fractions; on the border counts."""
    corners = [(Fraction(x), Fraction(y)) for x, y in polygon]
    edges = list(zip(corners, [*corners[1:], corners[0]], strict=True))
    found = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            inside = on = False
            for (x0, y0), (x1, y1) in edges:
                cross = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
                between_both = min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
                on |= cross == 0 and between_both
                if (y0 > y) != (y1 > y):
                    inside ^= x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            found[y, x] = inside or on
    return found


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_a_polygon_is_the_pixel_centres_inside_or_on_it(seed, whole):
    """Star-shaped polygons, which do not cross themselves, in either direction."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    polygon = 6 + rng.uniform(1, 7, len(angles))[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], axis=1
    )
    polygon = np.round(polygon) if whole else polygon
    polygon = polygon[::-1] if seed % 2 else polygon
    found, expected = draw([polygon], 13, 11), brute_force(polygon, 13, 11)
    if not whole:
        assert np.array_equal(found, expected)
        return
    # Rounded corners may make edges touch or cross; only centres on an edge are in doubt then.
    assert (found != expected).mean() < 0.05


def test_a_rectangle_of_whole_numbers_has_its_border():
    square = np.array([[2, 3], [6, 3], [6, 8], [2, 8]])
    for polygon in (square, square[::-1]):
        assert np.argwhere(draw([polygon], 12, 12)).tolist() == [
            [y, x] for y in range(3, 9) for x in range(2, 7)
        ]
    assert draw([square, square + 4], 12, 12).sum() == 30 + 25 - 2


def ellipse(left, top, height=60, width=80):
    y, x = np.mgrid[:height, :width]
    return ((x - left) / 30) ** 2 + ((y - top) / 18) ** 2 <= 1


@pytest.mark.parametrize("centre", [(40, 30), (40, 5), (8, 30), (76, 56)])
def test_an_outline_is_filled_where_the_image_cuts_it_off_too(centre):
    whole = ellipse(*centre)
    drawn = whole & ~ndimage.binary_erosion(whole, border_value=1)
    filled = fill_outline(drawn)
    assert (filled != whole).sum() <= 0.01 * whole.sum()


def test_an_outline_with_a_gap_encloses_its_hull():
    whole = ellipse(40, 30)
    drawn = whole & ~ndimage.binary_erosion(whole)
    drawn[:, 38:42] = False
    assert (fill_outline(drawn) != whole).sum() <= 0.02 * whole.sum()


def test_an_outline_in_a_line_along_the_border_stays_as_it_is():
    drawn = np.zeros((5, 5), dtype=bool)
    drawn[0] = True
    assert np.array_equal(fill_outline(drawn), drawn)


@pytest.mark.parametrize(
    "text", ["1 5\n3 6\n2 7\n", "1,5\n3,6\n2,7", "1.0 3.0 2.0 \n5 6 7 \n", "\n1\t5\n3\t6\n2\t7\n\n"]
)
def test_both_forms_of_contours(text):
    assert read_contour(text.encode()).tolist() == [[1, 5], [2, 7], [3, 6]]


def test_between_two_contours():
    upper, lower = np.array([[1, 2], [5, 2]]), np.array([[1, 4], [5, 4]])
    assert draw([between(upper, lower)], 8, 8).sum() == 15


@pytest.mark.parametrize(
    "data", [b"", b"1 2", b"1 2 3\n4 5", b"a b\nc d", b"\xff\xfe", b"1 nan\n2 3"]
)
def test_what_is_no_contour_is_said(data):
    with pytest.raises(DecodeError):
        read_contour(data)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[[1, 2]]", b"[[1, 2, 3]]", b"[1, 2, 3]", b'[["a", 1]]']
)
def test_what_is_no_polygon_is_said(data):
    with pytest.raises(DecodeError, match="JSON list of points"):
        read_polygon(data)


def test_coco_images_and_areas():
    document = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [
            {
                "image_id": 7,
                "category_id": 2,
                "segmentation": [[0, 0, 4, 0, 4, 4], [5, 5, 6, 5, 6, 6]],
            }
        ],
    }
    images, areas = read_coco("x.json", json.dumps(document).encode())
    assert [image["file_name"] for image in images] == ["a.jpg", "b.jpg"]
    assert [area.category for area in areas[7]] == [2, 2]
    assert areas[8] == []
    document["annotations"][0]["segmentation"] = {"counts": [1, 2], "size": [2, 2]}
    with pytest.raises(UsageError, match=r"'x.json' is not a COCO file of polygons"):
        read_coco("x.json", json.dumps(document).encode())


def test_via_written_by_python_and_an_attribute():
    text = (
        "filename,region_shape_attributes,region_attributes\n"
        "a.png,\"{'name': 'polygon', 'all_points_x': [1, 2, 2], 'all_points_y': [1, 1, 2]}\","
        "\"{'Anatomy': 'Capsule'}\"\n"
        'a.png,"{""name"":""circle""}","{}"\n'
        "b.png,{},{}\n"
    )
    rows = read_delimited("via.csv", text.encode(), "comma", "yes")
    found = read_via("via.csv", rows, "Anatomy=Capsule")
    assert [(row["filename"], area is not None) for row, area in found] == [
        ("a.png", True),
        ("a.png", False),
        ("b.png", False),
    ]
    assert read_via("via.csv", rows, "Anatomy=Cortex")[0][1] is None
    rows[0]["region_shape_attributes"] = "not a mapping"
    with pytest.raises(UsageError, match="row 2"):
        read_via("via.csv", rows, "")
