"""Areas as they are distributed without pixels: polygons, contours, COCO and VIA files.

A polygon is an array (P, 2) of x and y in pixels of the image.
"""

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.path import Path
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import DecodeError

LEAST = 3  # points of a polygon
_SHARE = 0.05  # of a hull, at most, lies outside of its own outline, by rounding
_ON = 1e-6  # pixels: a centre that near to a border lies on it


@dataclass(frozen=True)
class MarkedArea:
    """A polygon of a file that describes many images; ``category`` is 0 where there is none."""

    polygon: np.ndarray
    category: int = 0


def draw(polygons: Iterable[np.ndarray], width: int, height: int) -> np.ndarray:
    """Return where any of the polygons is, bool (height, width).

    A pixel counts if its centre, at whole numbers, lies inside a polygon or on it.
    """
    drawn = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        drawn |= _draw_one(polygon, width, height)
    return drawn


def _draw_one(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """Fill a polygon quickly, and decide anew near its border, where Pillow rounds outwards."""
    points = [(float(x), float(y)) for x, y in polygon]
    filled, border = Image.new("1", (width, height)), Image.new("1", (width, height))
    ImageDraw.Draw(filled).polygon(points, fill=1)
    ImageDraw.Draw(border).line([*points, points[0]], fill=1, width=5)
    inside: np.ndarray = np.array(filled, dtype=bool)
    near: np.ndarray = np.array(border, dtype=bool)
    rows, columns = np.nonzero(near)
    path, centres = Path(polygon, closed=False), np.stack([columns, rows], axis=1)
    # Which sign means outwards depends on the direction of the points.
    inside[near] = path.contains_points(centres, radius=_ON) | path.contains_points(
        centres, radius=-_ON
    )
    return inside


def fill_outline(drawn: np.ndarray) -> np.ndarray:
    """Return what the outline of a convex shape encloses, bool (H, W), with the outline itself.

    The outline may be cut off by the border of the image. What it encloses is then the part of the
    image, of those that it separates, in which its convex hull lies. An outline with a gap
    separates nothing, and encloses its convex hull.
    """
    points = np.argwhere(drawn)[:, ::-1].astype(np.float64)
    try:
        corners = points[ConvexHull(points).vertices] if len(points) >= LEAST else points
    except QhullError:  # points in a line
        return drawn
    if len(corners) < LEAST:
        return drawn
    hull = draw([corners], drawn.shape[1], drawn.shape[0])
    parts, count = ndimage.label(~drawn)
    if count < 2:
        whole: np.ndarray = drawn | hull
        return whole
    in_hull = np.bincount(parts[hull & ~drawn], minlength=count + 1)
    enclosed = in_hull > _SHARE * in_hull.sum()
    enclosed[0] = True  # the outline
    filled: np.ndarray = enclosed[parts]
    return filled


def read_polygon(data: bytes) -> np.ndarray:
    """Read a JSON list of [x, y].

    Raises:
        DecodeError: It is something else.
    """
    try:
        points = np.asarray(json.loads(data), dtype=np.float64)
    except (ValueError, TypeError, RecursionError):
        raise DecodeError("is not a JSON list of points [x, y]") from None
    return _checked(points, "a JSON list of points [x, y]")


def read_contour(data: bytes) -> np.ndarray:
    """Read a contour from text: a point in each line, or a line of all x and a line of all y.

    Returns:
        (P, 2), sorted by x: the contours of a vessel run from left to right.

    Raises:
        DecodeError: It is something else.
    """
    what = "text with a point in each line, or with a line of x and a line of y"
    try:
        text = data.decode("ascii").replace(",", " ").replace(";", " ")
        lines = [
            [float(word) for word in line.split()] for line in text.splitlines() if line.strip()
        ]
        points = np.array(lines, dtype=np.float64)
    except ValueError:  # also text that is no number, and lines of unlike length
        raise DecodeError(f"is not {what}") from None
    if len(points) == 2 and points.ndim == 2 and points.shape[1] != 2:
        points = points.T
    points = _checked(points, what, least=2)
    return points[np.argsort(points[:, 0], kind="stable")]


def between(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the polygon between two contours: along the one and back along the other."""
    return np.concatenate([upper, lower[::-1]])


def read_coco(name: str, data: bytes) -> tuple[list[dict[str, Any]], dict[int, list[MarkedArea]]]:
    """Read a COCO file: its images as they are described, and the regions of each by its id.

    Raises:
        UsageError: It is no COCO file, or its areas are no polygons.
    """
    try:
        document = json.loads(data)
        images = list(document["images"])
        found: dict[int, list[MarkedArea]] = {int(image["id"]): [] for image in images}
        for annotation in document["annotations"]:
            for flat in annotation["segmentation"]:
                polygon = np.asarray(flat, dtype=np.float64).reshape(-1, 2)
                region = MarkedArea(_checked(polygon, "a polygon"), int(annotation["category_id"]))
                found[int(annotation["image_id"])].append(region)
    except (ValueError, KeyError, TypeError, DecodeError, RecursionError) as error:
        raise UsageError(
            f"'{name}' is not a COCO file of polygons ({type(error).__name__}: {error}): download "
            "it again."
        ) from None
    return images, found


def read_via(
    name: str, rows: list[dict[str, str]], only: str
) -> list[tuple[dict[str, str], MarkedArea | None]]:
    """Read the rows of a VIA file (VGG image annotator).

    Args:
        name: What the file is called, for messages.
        rows: Its rows.
        only: ``attribute=value``: other regions are left out; empty takes all.

    Returns:
        Each row with its polygon, None where it has none that is taken.

    Raises:
        UsageError: A column is missing, or a value cannot be read.
    """
    attribute, _, wanted = only.partition("=")
    found: list[tuple[dict[str, str], MarkedArea | None]] = []
    for number, row in enumerate(rows, start=2):
        try:
            shape = _mapping(row["region_shape_attributes"])
            about = _mapping(row["region_attributes"])
        except (KeyError, ValueError, SyntaxError) as error:
            raise UsageError(f"'{name}' row {number} is not one of a VIA file: {error}.") from None
        if shape.get("name") != "polygon" or (attribute and about.get(attribute) != wanted):
            found.append((row, None))
            continue
        try:
            points = np.array([shape["all_points_x"], shape["all_points_y"]], dtype=np.float64).T
            found.append((row, MarkedArea(_checked(points, "a polygon"))))
        except (KeyError, ValueError, DecodeError):
            raise UsageError(f"'{name}' row {number} has a polygon without its points.") from None
    return found


def _mapping(text: str) -> dict[str, Any]:
    """Read a mapping from JSON, or from how Python writes one."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError(f"'{text[:40]}' is no mapping")
    return value


def _checked(points: np.ndarray, what: str, least: int = LEAST) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least:
        raise DecodeError(f"is not {what}: {least} points or more of two numbers are expected")
    if not np.isfinite(points).all():
        raise DecodeError("has a point that is not finite")
    return points
