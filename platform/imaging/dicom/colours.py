"""From a DICOM frame's stored values to what a viewer shows: colours, palettes, and grey."""

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut

from echostill.platform.imaging.dicom.decoding import Values
from echostill.platform.imaging.dicom.grey import grey_rules, show_grey
from echostill.platform.imaging.images import DecodeError

# Studio range YCbCr to RGB, the inverse of PS3.3 C.7.6.3.1.2 (ITU-R BT.601).
_PARTIAL = np.array(
    [[1.1644, 0.0, 1.5960], [1.1644, -0.3917, -0.8129], [1.1644, 2.0173, 0.0]], dtype=np.float32
)
_DEPTHS = (8, 10, 12, 14)  # bits that scanners fill of a longer word, without always saying so


def display(frame: Values, dataset: pydicom.Dataset, index: int) -> np.ndarray:
    """Turn stored values into what a viewer shows.

    Args:
        frame: As decoded.
        dataset: Palettes, rescale and window.
        index: Number of the frame, which may have rules of its own.

    Returns:
        uint8 array (H, W) or (H, W, 3).

    Raises:
        DecodeError: The photometric interpretation is not read, or the picture would be blank.
    """
    values, photometric, bits = frame
    if photometric == "PALETTE COLOR":
        return _palette(values, dataset)
    if photometric.startswith("MONOCHROME") and values.ndim == 2:
        return show_grey(values, bits, grey_rules(dataset, index), photometric == "MONOCHROME1")
    if values.ndim != 3 or values.shape[2] != 3:
        raise DecodeError(
            f"has the photometric interpretation '{photometric}' with "
            f"{1 if values.ndim == 2 else values.shape[2]} value(s) a pixel, which is not read"
        )
    values = _eight_bits(values, bits)
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        # Pillow has the same full-range conversion as PS3.3 C.7.6.3.1.2, many times quicker.
        size = (values.shape[1], values.shape[0])
        picture = Image.frombytes("YCbCr", size, np.ascontiguousarray(values).tobytes())
        return np.array(picture.convert("RGB"))
    if photometric.startswith("YBR_PARTIAL"):
        shifted = values.astype(np.float32) - np.array([16, 128, 128], dtype=np.float32)
        colours: np.ndarray = np.rint(shifted @ _PARTIAL.T).clip(0, 255).astype(np.uint8)
        return colours
    # JPEG 2000's YBR_ICT and YBR_RCT come out of the decoder as RGB.
    if photometric in ("RGB", "YBR_ICT", "YBR_RCT"):
        return np.ascontiguousarray(values)
    raise DecodeError(f"has the photometric interpretation '{photometric}', which is not read")


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale colours to eight bits by what theirs can hold, or by what they do hold of far more."""
    if bits == 8 or values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    largest = 2**bits - 1
    found = int(values.max())
    if found < largest // 8:
        largest = 2 ** next(depth for depth in (*_DEPTHS, bits) if found < 2**depth) - 1
    scaled = np.rint(values.astype(np.float64) * (255 / largest)).clip(0, 255)
    shown: np.ndarray = scaled.astype(np.uint8)
    return shown


def _palette(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Look a frame up in its palette; a palette of greys gives a grey picture."""
    try:
        entries, first = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor[:2])
        stored = np.arange(first, first + (entries or 2**16), dtype=np.int64)
        palette = apply_color_lut(stored[None], dataset)[0]
    except (AttributeError, TypeError, ValueError, IndexError):
        raise DecodeError("has colours of a palette, which is missing or damaged") from None
    # Entries of 16 bits hold the 8-bit value in the high byte (PS3.3 C.7.6.3.1.6), but some
    # writers leave it in the low one.
    if palette.dtype != np.uint8:
        swapped = (
            dataset.original_encoding[1] is False
        )  # pydicom leaves big-endian tables as stored
        if swapped and "RedPaletteColorLookupTableData" in dataset:
            palette = palette.byteswap()
        palette = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)
    shown = palette[np.clip(values.astype(np.int64) - first, 0, len(palette) - 1)]
    grey = bool((shown[..., :1] == shown).all())
    return np.ascontiguousarray(shown[..., 0]) if grey else shown
