"""From a DICOM frame's stored values to what a viewer shows: colours, palettes, windows."""

from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from echostill.platform.imaging.images import DecodeError, scale_to_bytes

# Studio range YCbCr to RGB, the inverse of PS3.3 C.7.6.3.1.2 (ITU-R BT.601).
_PARTIAL = np.array(
    [[1.1644, 0.0, 1.5960], [1.1644, -0.3917, -0.8129], [1.1644, 2.0173, 0.0]], dtype=np.float32
)


def display(values: np.ndarray, photometric: str, dataset: pydicom.Dataset) -> np.ndarray:
    """Turn stored values into what a viewer shows.

    Args:
        values: (H, W) or (H, W, 3), as decoded.
        photometric: What the values are; the decoder may know better than the header.
        dataset: Palettes, rescale and window.

    Returns:
        uint8 array (H, W) or (H, W, 3).

    Raises:
        DecodeError: The photometric interpretation is not read.
    """
    if photometric == "PALETTE COLOR":
        return _palette(values, dataset)
    if photometric.startswith("MONOCHROME"):
        shown = _window(values, dataset)
        return 255 - shown if photometric == "MONOCHROME1" else shown
    if values.ndim != 3 or values.shape[2] != 3:
        raise DecodeError(
            f"has the photometric interpretation '{photometric}' with pixels of shape "
            f"{values.shape}, which is not read"
        )
    if values.dtype != np.uint8:
        largest = 2 ** int(dataset.get("BitsStored") or 16) - 1
        values = np.rint(values.astype(np.float64) * (255 / largest)).clip(0, 255).astype(np.uint8)
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


def _palette(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Look a frame up in its palette; a palette of greys gives a grey picture."""
    entries, first = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor[:2])
    stored = np.arange(first, first + (entries or 2**16), dtype=np.int64)
    palette = apply_color_lut(stored[None], dataset)[0]
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


def _window(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if values.dtype == np.uint8 and int(dataset.get("BitsStored") or 8) == 8:
        return values  # already what the scanner showed
    rescaled = apply_modality_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        table = apply_voi_lut(rescaled.astype(values.dtype), dataset)
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        levels: np.ndarray = np.rint(table * (255 / (2**bits - 1))).astype(np.uint8)
        return levels
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return scale_to_bytes(rescaled)
    kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    shown = window_fraction(rescaled.astype(np.float64), centre, width, kind)
    scaled: np.ndarray = np.rint(shown * 255).astype(np.uint8)
    return scaled


def window_fraction(values: np.ndarray, centre: float, width: float, kind: str) -> np.ndarray:
    """Map values through a window to 0..1 (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Rescaled values, any shape.
        centre: Window Center.
        width: Window Width, above 0.
        kind: VOI LUT Function: LINEAR, LINEAR_EXACT or SIGMOID.
    """
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
