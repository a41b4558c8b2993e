"""Image files to pixels and back: one decoder for every stage, so that all see the same picture.

A picture is a uint8 array, (H, W) where it is grey and (H, W, 3) where it is RGB.
"""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from echostill.platform.errors import EchostillError

MAX_PIXELS = 50_000_000
# Named one by one: Pillow would start Ghostscript on what looks like PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
Image.MAX_IMAGE_PIXELS = None  # the limit is ours, checked below before pixels are read
_GREY_MODES = ("1", "L")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class DecodeError(EchostillError):
    """A file cannot be turned into pixels; the message completes the sentence "this file ..."."""


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
    image = open_image(data, max_pixels)
    with damage_in_words():
        image.load()
        return to_array(ImageOps.exif_transpose(image))


def open_image(data: bytes, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """Open an image file of one of :data:`FORMATS`; its pixels are not read yet.

    Raises:
        DecodeError: The bytes are no image, or the picture is too large.
    """
    if not data:
        raise DecodeError("is empty (0 bytes)")
    with damage_in_words():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image.width, image.height, max_pixels)
        return image


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
            "is not an image in a known format (PNG, JPEG, BMP, TIFF, GIF, WebP, PNM)"
        ) from None
    except Exception as error:
        raise DecodeError(f"is damaged or truncated: {' '.join(str(error).split())}") from None


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


def scale_to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale any numbers to uint8 by their own range; a constant picture becomes black.

    Scanners write 10 or 12 bits into 16 without saying so, so the type's range would be too dark.
    """
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


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
