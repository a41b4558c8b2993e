"""Image files to pixels and back: one decoder for every stage, so that all see the same picture.

A picture is a uint8 array, (H, W) where it is grey and (H, W, 3) where it is RGB.
"""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from echostill.platform.errors import EchostillError
from echostill.platform.imaging.deep import deep_values, over_black

MAX_PIXELS = 50_000_000
# Named one by one: Pillow would start Ghostscript on what looks like PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112  # of EXIF
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # of TIFF
_OUTLIERS = 1000  # one value of so many at either end may be one
_INNER_SHARE = 0.25
_SQUARE = 0.01  # pixels this near to square are square
_LONGEST = 8.0  # a pixel so much higher than wide (or wider than high) is a mistake of the header
Image.MAX_IMAGE_PIXELS = None  # the limit is ours, checked below before pixels are read
_GREY_MODES = ("1", "L")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class DecodeError(EchostillError):
    """A file cannot be turned into pixels; the message completes the sentence "this file ..."."""


class NoImageError(DecodeError):
    """A file that is no picture of ultrasound and was not meant to be one, as a mask or a report.

    Attributes:
        kind: What it is, in words that follow a number: ``masks or label maps``.
    """

    def __init__(self, message: str, kind: str) -> None:
        """Take the message and the kind."""
        super().__init__(message)
        self.kind = kind


def decode_image(data: bytes, max_pixels: float = MAX_PIXELS) -> np.ndarray:
    """Decode an image file (of several pictures, the first).

    Grey stays grey. More than 8 bits are scaled by the picture's own range, palettes and CMYK
    become RGB, transparent pixels are laid over black, and the EXIF orientation is applied.

    Args:
        data: The file's bytes.
        max_pixels: Refuse larger pictures, before their pixels are read.

    Returns:
        uint8 array (H, W) or (H, W, 3).

    Raises:
        DecodeError: The bytes are no whole image, or the picture is too large.
    """
    image = open_image(io.BytesIO(data), max_pixels)
    return picture_of(image, data)


def open_image(file: BinaryIO, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """Open an image file of one of :data:`FORMATS`; its pixels are not read yet.

    Raises:
        DecodeError: The bytes are no image, or the picture is too large.
    """
    if not file.read(1):
        raise DecodeError("is empty (0 bytes)")
    file.seek(0)
    with damage_in_words():
        image = Image.open(file, formats=FORMATS)
        check_size(image.width, image.height, max_pixels)
        return image


def picture_of(image: Image.Image, data: bytes | None = None) -> np.ndarray:
    """Return the pixels of an opened picture, as :func:`decode_image` says.

    Args:
        image: As :func:`open_image` gives it, and turned to the picture that is meant.
        data: The file, where it is the first picture: with it none of its bits is lost.

    Raises:
        DecodeError: The picture is damaged, or holds nothing that is finite.
    """
    with damage_in_words():
        deep = None if data is None else deep_values(data, image)
        image.load()
        if deep is None:
            # Of eight bits Pillow turns white round itself.
            tags = getattr(image, "tag_v2", {})
            inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode in _DEEP_MODES
            shown = to_array(ImageOps.exif_transpose(image))
            return 255 - shown if inverted else shown
        turned = Image.fromarray(scale_to_bytes(over_black(deep)))
        turned.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
        return np.array(ImageOps.exif_transpose(turned))


@contextlib.contextmanager
def damage_in_words() -> Iterator[None]:
    """Turn what Pillow raises into a DecodeError; its plug-ins raise many types on damage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(
            "is not an image in a known format (PNG, JPEG, BMP, TIFF, GIF, WebP, PNM, JPEG 2000, "
            "AVIF), or stores its pixels in a way that is not read"
        ) from None
    except Exception:
        raise DecodeError("is damaged or truncated") from None


def check_size(width: int, height: int, max_pixels: float) -> None:
    """Refuse a picture with too many pixels, or none.

    Raises:
        DecodeError: ``width * height`` is 0 or above ``max_pixels``.
    """
    if width * height == 0:
        raise DecodeError(f"has no pixels: it is {width} x {height}")
    if width * height > max_pixels:
        raise DecodeError(
            f"has {width} x {height} pixels, more than allowed (max_pixels={max_pixels:.0f})"
        )


def decode_staged(data: bytes) -> np.ndarray:
    """Decode a pool row's staged image into uint8 (H, W) or (H, W, 3).

    Raises:
        DecodeError: The bytes are not a whole image.
    """
    pixels = decode_image(data, max_pixels=float("inf"))
    # WebP knows no grey: what was staged grey comes back as channels that differ by rounding.
    if data[8:12] == b"WEBP" and pixels.ndim == 3 and int(np.ptp(pixels, axis=2).max()) <= 1:
        return np.ascontiguousarray(pixels[..., 1])
    return pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W) or (H, W, 3) as PNG, without loss."""
    return encode(pixels, "png")


def encode(pixels: np.ndarray, codec: str, quality: int = 90) -> bytes:
    """Encode uint8 (H, W) or (H, W, 3).

    Args:
        pixels: The picture.
        codec: ``png`` (lossless), ``jpeg`` or ``webp``.
        quality: Of JPEG and WebP, 1 to 100.
    """
    options = {} if codec == "png" else {"quality": quality}
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format=codec.upper(), **options)
    return sink.getvalue()


def drop_equal_channels(pixels: np.ndarray) -> np.ndarray:
    """Return grey that is stored as RGB as (H, W); anything else as it is."""
    if pixels.ndim == 2:
        return pixels
    # Where channels differ, a few rows show it already.
    for rows in (pixels[:: max(1, len(pixels) // 8)], pixels):
        red, green, blue = rows.transpose(2, 0, 1)
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            return pixels
    return np.ascontiguousarray(pixels[..., 0])


def resize_longest(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shrink so that the longest side is ``side`` pixels, antialiased; never enlarge."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    return _resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))


def to_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Squash the whole picture into a square, antialiased; grey is repeated.

    Nothing is cropped: what a coreset is chosen for may lie at the picture's edge.

    Returns:
        uint8 array (3, size, size).
    """
    square = _resize(pixels, size, size)
    if square.ndim == 2:
        return np.repeat(square[None], 3, axis=0)
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness (H, W) as float32 in 0..1 (ITU-R 601-2 weights, as in Pillow)."""
    grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    return grey.astype(np.float32) / 255


def content_hash(pixels: np.ndarray) -> str:
    """Return 32 hexadecimal digits that depend on the shape and the pixels alone."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def scale_to_bytes(values: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """Scale any numbers to uint8 by their own range; a constant picture becomes black.

    Scanners write 10 or 12 bits into 16 without saying so, so the type's range would be too dark.
    A few outliers do not set the range (see :func:`typical_range`); what is not finite is black.

    Args:
        values: Any shape.
        excluded: Values that stand for no picture, and do not set the range either.
    """
    low, high = typical_range(values, excluded)
    if high == low:
        return np.zeros(values.shape, dtype=np.uint8)
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=low, neginf=low)
    return np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def typical_range(values: np.ndarray, excluded: np.ndarray | None = None) -> tuple[float, float]:
    """Return the least and the largest finite value, unless a few outliers set them.

    Outliers are at most a thousandth of the values at either end, and what lies between spans less
    than a quarter of the whole range: a dead pixel, a mark, a number that stands for "nothing".

    Args:
        values: Any shape.
        excluded: Values that are outliers, if they are that far away, however many they are.

    Returns:
        Two equal values where there is no other.
    """
    there = np.isfinite(values)
    kept = values[there]
    if not kept.size:
        return 0.0, 0.0
    low, high = float(kept.min()), float(kept.max())
    if excluded is not None and (there & ~excluded).any():
        others = values[there & ~excluded]
        inner_low, inner_high = float(others.min()), float(others.max())
        if inner_high - inner_low < _INNER_SHARE * (high - low):
            kept, low, high = others, inner_low, inner_high
    few = kept.size // _OUTLIERS
    inner = np.partition(kept, (few, kept.size - 1 - few))
    inner_low, inner_high = float(inner[few]), float(inner[kept.size - 1 - few])
    if 0 < inner_high - inner_low < _INNER_SHARE * (high - low):
        return inner_low, inner_high
    return low, high


def square_size(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Return the height and width of a picture once its pixels are square; it never gets smaller.

    Args:
        height: Rows.
        width: Columns.
        aspect: Height of a pixel divided by its width. One that is nearly 1, or that no display
            has, changes nothing.
    """
    if abs(aspect - 1) <= _SQUARE or not 1 / _LONGEST <= aspect <= _LONGEST:
        return height, width
    return (round(height * aspect), width) if aspect > 1 else (height, round(width / aspect))


def square_pixels(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Stretch a picture so that its pixels are square; see :func:`square_size`."""
    height, width = square_size(pixels.shape[0], pixels.shape[1], aspect)
    return pixels if (height, width) == pixels.shape[:2] else _resize(pixels, width, height)


def to_array(image: Image.Image) -> np.ndarray:
    """Turn a loaded picture into uint8 (H, W) or (H, W, 3), as :func:`decode_image` says.

    Raises:
        DecodeError: Its values are all not finite.
    """
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        if not np.isfinite(values).any():
            raise DecodeError("holds no finite value")
        return scale_to_bytes(values)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _over_black(image)
    return np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))


def _over_black(image: Image.Image) -> np.ndarray:
    grey = image.mode in (*_GREY_MODES, "LA", "La")
    layers = np.asarray(image.convert("LA" if grey else "RGBA"), dtype=np.float32)
    pixels = np.rint(layers[..., :-1] * (layers[..., -1:] / 255)).astype(np.uint8)
    return pixels[..., 0] if grey else pixels


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
