"""Colours and transparency of sixteen bits, of which Pillow keeps eight.

Files hold 10 or 12 bits in 16 without saying so, and the upper eight of these are nearly black. So
the picture is unpacked twice, once for the upper and once for the lower byte of each value.
"""

import io
import sys
from collections.abc import Sequence

import numpy as np
from openjpeg import decode, get_parameters  # type: ignore[attr-defined]  # it has no __all__
from PIL import Image
from PIL.ImageFile import ImageFile

_UPPER, _LOWER = ("B", "L") if sys.byteorder == "big" else ("L", "B")


def deep_values(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Return the values of a picture that has more than eight bits in several channels.

    Args:
        data: The file.
        image: The same, opened and not loaded; its first picture is meant.

    Returns:
        (H, W, channels) unsigned, with two and four channels where the last is transparency; None
        where Pillow keeps every bit, or there are no more than eight.
    """
    if image.format == "JPEG2000":
        return _jpeg_2000(data)
    tiles = getattr(image, "tile", None)
    if not tiles or image.mode not in ("RGB", "RGBA"):
        return None
    raw = _raw_mode(tiles[0].args)
    if image.format == "PPM" and image.mode == "RGB" and tiles[0].codec_name == "ppm":
        return _portable(data, image, tiles)
    if raw == "LA;16B":
        # Two values of two bytes are four bytes: unpacked as such, none is lost.
        parts = _unpacked(data, "RGBA").astype(np.uint16)
        joined: np.ndarray = parts[..., 0::2] << 8 | parts[..., 1::2]
        return joined
    name, separator, order = raw.partition(";16")
    if not separator or name not in ("RGB", "RGBA", "RGBX", "RGBa"):
        return None
    upper, lower = order, {"B": "L", "L": "B"}.get(order, "")
    if order == "N":  # the order of this machine, in which a library has unpacked
        upper, lower = _UPPER, _LOWER
    high, low = (_unpacked(data, f"{name};16{part}") for part in (upper, lower))
    if high is None or low is None:
        return None
    values: np.ndarray = high.astype(np.uint16) << 8 | low
    return values[..., :3] if name in ("RGB", "RGBX") else values


def over_black(values: np.ndarray) -> np.ndarray:
    """Lay a picture with transparency, of any depth, over black.

    Args:
        values: (H, W, 2) or (H, W, 4), the last channel the transparency; (H, W, 3) has none.

    Returns:
        Floats (H, W) or (H, W, 3); (H, W, 3) as it came.
    """
    if values.shape[2] == 3:
        return values
    alpha = values[..., -1:].astype(np.float64)
    # The most opaque pixel is opaque: transparency has no more bits than the colours.
    laid = values[..., :-1] * (alpha / max(float(alpha.max()), 1.0))
    return laid[..., 0] if laid.shape[2] == 1 else laid


def _raw_mode(arguments: object) -> str:
    first = arguments[0] if isinstance(arguments, tuple) else arguments
    return first if isinstance(first, str) else ""


def _unpacked(data: bytes, raw: str) -> np.ndarray:
    """Decode a file again, with another way of unpacking its values."""
    image = Image.open(io.BytesIO(data))
    assert isinstance(image, ImageFile)
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in image.tile
    ]
    return np.asarray(image)


def _portable(data: bytes, image: Image.Image, tiles: Sequence[object]) -> np.ndarray | None:
    """Read a portable pixmap of two bytes a value, which lie in the file as they are."""
    offset = int(tiles[0].offset)  # type: ignore[attr-defined]
    count = image.width * image.height * 3
    if len(data) - offset < 2 * count:
        return None
    return np.frombuffer(data, ">u2", count, offset).reshape(image.height, image.width, 3)


def _jpeg_2000(data: bytes) -> np.ndarray | None:
    found = get_parameters(data)
    if int(found["precision"]) <= 8 or found["samples_per_pixel"] not in (2, 3, 4):
        return None
    values: np.ndarray = decode(data)
    return values
