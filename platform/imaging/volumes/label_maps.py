"""Volumes of labels, which :func:`echostill.platform.imaging.containers.open_clip` refuses."""

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.packed import unpacked_head
from echostill.platform.imaging.volumes import meta_image, nifti
from echostill.platform.imaging.volumes.slices import stored_slices


def read_label_map(source: SourceFile, limits: Limits | None = None) -> np.ndarray:
    """Read a NIfTI or MetaImage volume of labels.

    Args:
        source: The file.
        limits: What it may ask for.

    Returns:
        Labels, (slices, H, W) uint8, with rows and columns as the frames of an image volume have
        them.

    Raises:
        DecodeError: It is no such volume, or its values are no whole numbers in 0..255.
    """
    limits = limits or Limits()
    if nifti.is_nifti(unpacked_head(source.head())):
        layout, seek = nifti.lay_out(source)
        values = stored_slices(source, layout, seek, limits)
    else:
        layout, seek, turn = meta_image.lay_out(source)
        values = stored_slices(source, layout, seek, limits, turn)
    values = values * layout.slope + layout.intercept
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise DecodeError("holds values that are no labels: whole numbers in 0..255 are expected")
    labels: np.ndarray = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        raise DecodeError("holds values that are no labels: whole numbers in 0..255 are expected")
    return labels
