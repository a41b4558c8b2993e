"""Masks from the files that a layout names, in values of the card's structures."""

import io

import numpy as np
from PIL import Image

from echostill.eval.datasets import grey_values
from echostill.eval.unius.download import Download
from echostill.eval.unius.items import LayerOf
from echostill.eval.unius.layouts import MaskFiles
from echostill.eval.unius.shapes import between, draw, fill_outline, read_contour, read_polygon
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import MAX_PIXELS, DecodeError, damage_in_words, open_image
from echostill.platform.imaging.volumes.label_maps import read_label_map


def read_layer(download: Download, part: LayerOf, shape: tuple[int, int, int]) -> np.ndarray:
    """Read one layer of an image's mask; several files are united.

    Args:
        download: What the files are read from.
        part: The layer and its files.
        shape: Frames, height and width of the image.

    Returns:
        (frames, H, W) uint8: the layer's value, or with the rule ``values`` those of the files, and
        0 elsewhere.

    Raises:
        DecodeError: A file is damaged or missing, or has another size than the image.
    """
    frames, height, width = shape
    how, value = part.how, part.layer.value
    if part.regions is not None:
        if frames != 1:
            raise DecodeError("has regions, but several frames")
        return _drawn(part, width, height)[None]
    if how.reads == "contours":
        polygon = between(*_contours(download, part))
        return (draw([polygon], width, height) * np.uint8(value))[None]
    united = np.zeros(shape, dtype=np.uint8)
    for name in part.files:
        try:
            one = _read_one(download, name, how, shape)
        except DecodeError as error:
            raise DecodeError(f"has a mask '{name}' that {error}") from None
        painted = one if how.rule == "values" else (one > 0) * np.uint8(value)
        united = np.where(painted > 0, painted, united)
    return united


def _drawn(part: LayerOf, width: int, height: int) -> np.ndarray:
    assert part.regions is not None
    drawn = np.zeros((height, width), dtype=np.uint8)
    for region in part.regions:
        value = region.category if part.how.rule == "values" else part.layer.value
        if not 0 < value <= 255:
            raise DecodeError(f"has a region of category {value}: 1 to 255 are expected")
        drawn[draw([region.polygon], width, height)] = value
    return drawn


def _contours(download: Download, part: LayerOf) -> tuple[np.ndarray, np.ndarray]:
    """Read the two contours in the order of their names, of which each must be there once."""
    if len(part.files) != 2:
        raise DecodeError(f"has {len(part.files)} contour file(s) instead of two: {part.files}")
    found = []
    for name in part.files:
        try:
            found.append(read_contour(download.read(name)))
        except DecodeError as error:
            raise DecodeError(f"has a contour '{name}' that {error}") from None
    return found[0], found[1]


def _read_one(
    download: Download, name: str, how: MaskFiles, shape: tuple[int, int, int]
) -> np.ndarray:
    data = download.read(name)
    if how.reads == "polygon":
        return draw([read_polygon(data)], shape[2], shape[1])[None].astype(np.uint8)
    if how.reads == "volume":
        values = read_label_map(SourceFile(name, data=data))
    else:
        with damage_in_words():
            image: Image.Image = open_image(io.BytesIO(data), MAX_PIXELS)
            image.load()
        values = grey_values(image)[None]
    if values.shape != shape:
        raise DecodeError(f"is {_size(values.shape)}, but the image {_size(shape)}")
    return apply_rule(values, how)


def apply_rule(values: np.ndarray, how: MaskFiles) -> np.ndarray:
    """Return what of raw values (frames, H, W) counts: 1 and 0, or the values themselves."""
    if how.rule == "values":
        return values
    above = values > (0 if how.rule == "nonzero" else how.threshold)
    if how.rule == "outline":
        above = np.stack([fill_outline(frame) for frame in above])
    return above.astype(np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    frames, height, width = shape
    many = f" in {frames} frames" if frames > 1 else ""
    return f"{width} x {height}{many}"
