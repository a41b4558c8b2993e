"""What kind of ultrasound a picture shows: from what its file states, else from its colours.

The rules, in this order:

1. DICOM ultrasound regions (PS3.3 C.8.5.5). A region of format 2 is M-mode, one of format 3 or of
   data type 3 or 4 spectral Doppler, one of data type 2 colour Doppler, and of format 1 with tissue
   B-mode; where a picture has several, the first of this list names it. DICOM has no region type
   for elastography: scanners write it as tissue or flow. So where the regions say either of these,
   colours that are an elastogram's (rule 3) win.
2. DICOM Image Type, value 4: a hexadecimal mask (PS3.3 C.8.5.6.1.1).
3. Colours. Counted are pixels of the sector (not black) that are clearly coloured, without specks,
   such as text, and without a tint that lies over the whole picture. Fewer than 0.5% of the sector:
   B-mode. Otherwise an elastogram covers a box with a rainbow, much of it green; a Doppler map is
   red and blue at its ends, with little green. What fits neither is unknown.

Rule 3 is a heuristic: power Doppler counts as colour Doppler, a grey M-mode or spectrum without
regions as B-mode, and a contrast or 3D rendering in one tint as B-mode.
"""

import numpy as np
from scipy import ndimage

from echostill.platform.imaging.header import DicomHeader

B_MODE = "b_mode"
COLOUR_DOPPLER = "colour_doppler"
SPECTRAL_DOPPLER = "spectral_doppler"
ELASTOGRAPHY = "elastography"
M_MODE = "m_mode"
UNKNOWN = "unknown"
MODALITIES = (B_MODE, COLOUR_DOPPLER, SPECTRAL_DOPPLER, ELASTOGRAPHY, M_MODE, UNKNOWN)

_BLACK = 16  # of 255: darker is outside of the sector
_COLOURED = 48  # difference between the largest and the least channel
_LEAST_SHARE = 0.005  # of the sector
_SPECK = 4  # pixels: a smaller side is text, a cursor or a trace
_TINT_SHARE = 0.5
_GREEN_SHARE = 0.15
_ELASTOGRAM_SHARE = 0.03  # of the sector


def modality(header: DicomHeader | None, pixels: np.ndarray) -> str:
    """Return one of :data:`MODALITIES`.

    Args:
        header: Of a DICOM file, else None.
        pixels: uint8 (H, W) or (H, W, 3).
    """
    stated = stated_modality(header) if header is not None else ""
    if stated in ("", B_MODE, COLOUR_DOPPLER):
        seen = modality_of_colours(pixels)
        if not stated or seen == ELASTOGRAPHY:
            return seen
    return stated


def stated_modality(header: DicomHeader) -> str:
    """Return what the header states, ``""`` where it states nothing."""
    shown = {(region.spatial_format, region.data_type) for region in header.regions}
    formats, types = {form for form, _ in shown}, {kind for _, kind in shown}
    if 2 in formats:
        return M_MODE
    if 3 in formats or types & {3, 4}:
        return SPECTRAL_DOPPLER
    if 2 in types:
        return COLOUR_DOPPLER
    if (1, 1) in shown:
        return B_MODE
    return _of_mask(header.image_type[3]) if len(header.image_type) > 3 else ""


def _of_mask(text: str) -> str:
    try:
        mask = int(text, 16)
    except ValueError:
        return ""
    for bits, name in (
        (0x0002 | 0x0020, M_MODE),
        (0x0004 | 0x0008, SPECTRAL_DOPPLER),
        (0x0010 | 0x0100, COLOUR_DOPPLER),
        (0x0001, B_MODE),
    ):
        if mask & bits:
            return name
    return ""


def modality_of_colours(pixels: np.ndarray) -> str:
    """Return what a picture's colours say: B-mode, colour Doppler, elastography or unknown."""
    if pixels.ndim == 2:
        return B_MODE
    # Channel by channel: extremes over an axis of three take many times as long.
    red, green, blue = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    largest = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    sector = int((largest > _BLACK).sum())
    coloured = (largest - least) > _COLOURED
    if coloured.sum() < _LEAST_SHARE * max(sector, 1):
        return B_MODE
    coloured = ndimage.binary_opening(coloured, np.ones((_SPECK, _SPECK)))
    count = int(coloured.sum())
    if count < _LEAST_SHARE * max(sector, 1):
        return B_MODE
    hues = _hues(pixels[coloured])
    if count > _TINT_SHARE * sector and _spread(hues) < 30:
        return B_MODE
    green = _share(hues, 75, 165)
    warm, cold = _share(hues, 330, 360) + _share(hues, 0, 75), _share(hues, 165, 270)
    rainbow = green >= _GREEN_SHARE and max(warm, cold) >= 0.05 and warm + cold >= 0.1
    if rainbow and count >= _ELASTOGRAM_SHARE * sector:
        return ELASTOGRAPHY
    if green < _GREEN_SHARE and warm + cold >= 0.7:
        return COLOUR_DOPPLER
    return UNKNOWN


def _hues(colours: np.ndarray) -> np.ndarray:
    """Return the hues (N,) in degrees of RGB colours (N, 3) that are not grey."""
    red, green, blue = colours.astype(np.float32).T
    # The angle in the plane across the grey axis.
    angle = np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue)
    hues: np.ndarray = np.degrees(angle) % 360
    return hues


def _spread(hues: np.ndarray) -> float:
    """Return the circular standard deviation in degrees."""
    length = abs(np.exp(1j * np.radians(hues)).mean())
    return float(np.degrees(np.sqrt(-2 * np.log(max(float(length), 1e-12)))))


def _share(hues: np.ndarray, low: float, high: float) -> float:
    return float(((hues >= low) & (hues < high)).mean())
