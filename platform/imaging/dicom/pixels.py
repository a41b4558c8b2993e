"""How a DICOM file stores its pixel values (PS3.3 C.7.6.3), with a default for what it leaves out.

What is missing or cannot be is taken from what is there: the number of samples from the colours,
the bits from the length of the data. Only rows and columns have no default.
"""

from dataclasses import dataclass, replace

import numpy as np
import pydicom

from echostill.platform.imaging.dicom.codestream import Codestream
from echostill.platform.imaging.dicom.file import PixelElement
from echostill.platform.imaging.images import DecodeError

_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_WORDS = (1, 8, 16, 32, 64)  # bits that a value may take in the file
_COLOURS = {1: "MONOCHROME2", 3: "RGB"}  # of values of which the header says nothing
HALVED = ("YBR_FULL_422", "YBR_PARTIAL_422")  # two pixels share their colour


@dataclass(frozen=True)
class PixelFormat:
    """The form of stored values; 0 is what only compressed frames say.

    Attributes:
        rows, columns: Of a frame.
        samples: Values of a pixel: 1, or 3 of colours.
        allocated: Bits that a value takes in the file.
        stored: Bits of those that are the value.
        high: Number of the value's highest bit.
        signed: Whether it is a two's complement.
        planes: Whether colours lie one after the other, not pixel by pixel.
        photometric: Photometric Interpretation.
    """

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planes: bool
    photometric: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to a compressed frame to say."""
        return min(self.rows, self.columns, self.samples, self.allocated) > 0

    def completed(self, found: Codestream | None) -> "PixelFormat":
        """Return the format with what a compressed frame says where the header says nothing."""
        samples = self.samples or (1 if found is None else found.components)
        stored = self.stored or (8 if found is None else found.precision)
        return replace(
            self,
            rows=self.rows or (0 if found is None else found.rows),
            columns=self.columns or (0 if found is None else found.columns),
            samples=samples,
            allocated=self.allocated or next(size for size in _WORDS[1:] if stored <= size),
            stored=stored,
            high=self.high if self.stored else stored - 1,
            photometric=self.photometric or _COLOURS.get(samples, ""),
        )


def pixel_format(dataset: pydicom.Dataset, pixels: PixelElement, frames: int) -> PixelFormat:
    """Read the elements of the Image Pixel module.

    Args:
        dataset: The file's elements.
        pixels: Its pixel data, whose length says what they leave out.
        frames: Stated number of frames.

    Raises:
        DecodeError: Values of a kind that is not read.
    """
    rows, columns = whole_number(dataset, "Rows") or 0, whole_number(dataset, "Columns") or 0
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    coloured = photometric == "RGB" or photometric.startswith("YBR_")
    samples = whole_number(dataset, "SamplesPerPixel") or (3 if coloured else 0)
    if not pixels.encapsulated:
        samples = samples or 1
    if samples == 3 and not coloured:
        photometric = "RGB" if photometric.startswith("MONOCHROME") else photometric
    stored = whole_number(dataset, "BitsStored") or 0
    allocated = _FLOAT_BITS.get(pixels.keyword) or whole_number(dataset, "BitsAllocated") or 0
    if not allocated and (stored or not pixels.encapsulated):
        values = rows * columns * samples * frames
        words = pixels.place.length >= 2 * values > 0 and not pixels.encapsulated
        allocated = 16 if stored > 8 or (words and not stored) else 8
    if allocated not in (0, *_WORDS):
        raise DecodeError(
            f"stores values in {allocated} bits each (BitsAllocated); 1, 8, 16, 32 and 64 are read"
        )
    if not 0 < stored <= allocated:
        stored = allocated
    high = whole_number(dataset, "HighBit")
    if high is None or not stored - 1 <= high < allocated:
        high = stored - 1
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=whole_number(dataset, "PixelRepresentation") == 1,
        planes=whole_number(dataset, "PlanarConfiguration") == 1,
        photometric=photometric or _COLOURS.get(samples, ""),
    )


def whole_number(dataset: pydicom.Dataset, keyword: str) -> int | None:
    """Return an element's value as a whole number, None where it has none that is one."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except (TypeError, ValueError, ArithmeticError):
        return None


def without_other_bits(values: np.ndarray, layout: PixelFormat, held: int) -> np.ndarray:
    """Return values without the bits that are not theirs: overlays and the like (PS3.5 8.1.1).

    Args:
        values: Whole numbers, as decoded.
        layout: Which bits are the value's.
        held: Bits that the decoded values have: those allocated, or a codestream's precision. A
            codestream of no more than the stored bits has none but the value's.
    """
    if held <= layout.stored or values.dtype.kind not in "iu":
        return values
    width = 8 * values.dtype.itemsize
    high = layout.high if layout.high < held else layout.stored - 1
    # To the top of the word and down again: a signed type spreads the sign, an unsigned one zeros.
    up, down = width - 1 - high, width - layout.stored
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{values.dtype.itemsize}")
    shifted: np.ndarray = np.left_shift(values.view(kind), up)
    down_again: np.ndarray = np.right_shift(shifted, down, out=shifted)
    return down_again
