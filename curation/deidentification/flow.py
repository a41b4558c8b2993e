"""Colour flow in a frame, which branches like handwriting: hidden before text is looked for.

Doppler paints smooth areas in many shades; what is written has one colour and sharp strokes, also
where compression has spread its colour to the ground around it.
"""

import numpy as np
from scipy import ndimage

from echostill.curation.deidentification.brightness import brightest
from echostill.curation.deidentification.filters import grow, shrink

COLOURED = 48  # difference of channels that grey pixels do not have
_TINTED = 24  # the same of the rim of an area, which compression blurs
_THICK = 5  # pixels that flow is wide, at least; strokes of letters are thinner, or of one shade
_SMOOTH = 20  # grey levels between neighbours that flow has, mostly; of small strokes more
_LARGE = 60  # pixels of an area that may be twice as rough
_SHADE = 16  # grey levels around the commonest colour that are the same shade
_ONE_COLOUR = 0.45  # share of one shade from which an area is drawn, not measured
_AROUND = 31  # pixels around flow whose mean grey stands for it


def colour_of(frame: np.ndarray) -> np.ndarray:
    """Return the difference of the channels of (H, W, 3) at each pixel, (H, W) uint8."""
    low = np.minimum(np.minimum(frame[..., 0], frame[..., 1]), frame[..., 2])
    difference: np.ndarray = brightest(frame) - low
    return difference


def hide_flow(frame: np.ndarray) -> np.ndarray:
    """Give areas of flow the grey of what is around them.

    Args:
        frame: uint8 (H, W, 3).

    Returns:
        The frame itself if it has none, otherwise a new array.
    """
    colour = colour_of(frame)
    core = shrink((colour >= COLOURED).astype(np.uint8), _THICK)
    if not core.any():
        return frame
    labels, _ = ndimage.label(grow(core, _THICK), structure=np.ones((3, 3), dtype=np.int8))
    value = brightest(frame)
    rough = grow(value, 3) - shrink(value, 3)
    flow = np.zeros(labels.shape, dtype=np.uint8)
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[place] == number
        inner = own & (core[place] > 0)
        shades = frame[place][inner].astype(np.int16)
        alike = (np.abs(shades - np.median(shades, axis=0)) <= _SHADE).all(axis=1)
        allowed = _SMOOTH if len(shades) < _LARGE else 2 * _SMOOTH
        if alike.mean() < _ONE_COLOUR and np.median(rough[place][inner]) <= allowed:
            flow[place] |= own
    if not flow.any():
        return frame
    hidden = (grow(flow, _THICK) > 0) & (colour >= _TINTED)
    out = frame.copy()
    out[hidden] = _grey_around(value, ~hidden)[hidden, None]
    return out


def _grey_around(value: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean grey of the known pixels around each pixel, (H, W) uint8; 0 without any."""
    weight = ndimage.uniform_filter(known.astype(np.float64), _AROUND)
    total = ndimage.uniform_filter(value * known.astype(np.float64), _AROUND)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-6)
    grey: np.ndarray = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    return grey
