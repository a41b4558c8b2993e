"""Pictures that de-identification left blank, told from those that are blank in their files."""

import numpy as np

from echostill.curation.deidentification.brightness import brightest

BLANK = "BlankPicture"  # class of the quarantine's rows

_SPAN = 8  # grey levels that a picture without anything to see spans at most
_VISIBLE = 16  # of 255: darker is outside of the sector
_LEFT = 0.005  # share of the visible pixels below which nothing is left


def why_blank(before: np.ndarray, after: np.ndarray) -> str:
    """Return why a picture became blank, ``""`` where it did not, or was blank in its file.

    Args:
        before: uint8 (H, W) or (H, W, 3), as the file shows it.
        after: The same after de-identification.
    """
    if after is before:
        return ""
    shown = brightest(before)
    if int(shown.max()) - int(shown.min()) <= _SPAN:
        return ""
    visible = int((shown > _VISIBLE).sum())
    kept = brightest(after)
    left = int((kept > _VISIBLE).sum())
    constant = int(kept.max()) == int(kept.min())
    if not constant and left >= _LEFT * visible:
        return ""
    return (
        f"the picture is blank after de-identification: of {visible} pixels that show something "
        f"{left} are in the sector. Its regions may be declared wrongly: see deidentify.masks"
    )
