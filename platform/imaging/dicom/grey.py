"""From the stored grey values of a DICOM frame to what a viewer shows (PS3.3 C.11, PS3.4 N.2).

Stored values go through the modality's table or rescale, then a table or window of the values of
interest, then the polarity, then the presentation's table. Where the file says nothing of interest,
the frame's own range is shown. Enhanced files keep these elements in groups: a frame's own count
before those that its frames share, and these before the file's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.multival import MultiValue

from echostill.platform.imaging.images import DecodeError, scale_to_bytes, typical_range

_VISIBLE = 1 / 256  # of the range of values: what spans less is no picture at any window


@dataclass(frozen=True)
class LookupTable:
    """A lookup table (PS3.3 C.11.1.1): ``entries`` of ``bits`` for the inputs from ``first`` on."""

    entries: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of whole numbers; those outside get the first or the last one."""
        places = np.rint(values).astype(np.int64) - self.first
        found: np.ndarray = self.entries[np.clip(places, 0, len(self.entries) - 1)]
        return found

    def fraction(self, values: np.ndarray) -> np.ndarray:
        """Return the entries as 0..1 of what their bits can hold."""
        looked_up: np.ndarray = self.look_up(values) / (2**self.bits - 1)
        return looked_up


@dataclass(frozen=True)
class Window:
    """A window of the values of interest (PS3.3 C.11.2.1.2); ``width`` is above 0."""

    centre: float
    width: float
    function: str  # LINEAR, LINEAR_EXACT or SIGMOID


@dataclass(frozen=True)
class GreyRules:
    """What a file says of the way from stored to shown values; None where it says nothing."""

    modality: LookupTable | tuple[float, float] | None = None  # slope and intercept
    interest: LookupTable | Window | None = None
    presentation: LookupTable | None = None
    inverse: bool = False
    padding: tuple[int, int] | None = None  # values that stand for no picture


def grey_rules(dataset: pydicom.Dataset, index: int) -> GreyRules:
    """Read the rules of one frame."""
    groups = [*_group(dataset, "PerFrameFunctionalGroupsSequence", index)]
    groups += _group(dataset, "SharedFunctionalGroupsSequence", 0)
    values = [*_inside(groups, "PixelValueTransformationSequence"), dataset]
    interest = [*_inside(groups, "FrameVOILUTSequence"), dataset]
    order = ">" if dataset.original_encoding[1] is False else "<"
    return GreyRules(
        modality=next((r for item in values if (r := _modality(item, order))), None),
        interest=next((w for item in interest if (w := _interest(item, order))), None),
        presentation=_table(_first_item(dataset, "PresentationLUTSequence"), order),
        inverse=str(dataset.get("PresentationLUTShape") or "").strip().upper() == "INVERSE",
        padding=_padding(dataset),
    )


def show_grey(values: np.ndarray, bits: int, rules: GreyRules, inverted: bool) -> np.ndarray:
    """Turn stored values into what a viewer shows.

    Values of eight bits are what the scanner showed: of the rules only tables and polarity change
    them.

    Args:
        values: (H, W), numbers.
        bits: Bits that a value has.
        rules: What the file says of them.
        inverted: Whether small values are the bright ones (MONOCHROME1).

    Returns:
        uint8 array (H, W).

    Raises:
        DecodeError: The picture would be blank, though its values are not.
    """
    shown_before = bits == 8 and values.dtype.kind == "u"
    tables = isinstance(rules.modality, LookupTable) or isinstance(rules.interest, LookupTable)
    padded = None
    if shown_before and not tables:
        shown = values.astype(np.uint8, copy=False)
    else:
        padded = None if rules.padding is None else _between(values, rules.padding)
        shown = _of_interest(_rescaled(values, rules.modality), bits, rules.interest, padded)
    if inverted or rules.inverse:
        shown = 255 - shown
    if rules.presentation is not None:
        table = rules.presentation
        entries = table.entries[np.rint(np.linspace(0, len(table.entries) - 1, 256)).astype(int)]
        shown = np.rint(entries * (255 / (2**table.bits - 1))).astype(np.uint8)[shown]
    if padded is not None:
        shown = np.where(padded, np.uint8(0), shown)
    _refuse_blank(shown, values, bits, "what its header says of its grey values", padded)
    return shown


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


def _rescaled(values: np.ndarray, rule: LookupTable | tuple[float, float] | None) -> np.ndarray:
    if rule is None:
        return values
    if isinstance(rule, LookupTable):
        return rule.look_up(values)
    slope, intercept = rule
    return values.astype(np.float64) * slope + intercept


def _of_interest(
    values: np.ndarray, bits: int, rule: LookupTable | Window | None, padded: np.ndarray | None
) -> np.ndarray:
    if rule is None:
        return scale_to_bytes(values, padded)
    if isinstance(rule, LookupTable):
        shown: np.ndarray = np.rint(rule.fraction(values) * 255).astype(np.uint8)
        what = "its table of the values of interest (VOI LUT)"
    else:
        centre, width = rule.centre, rule.width
        fraction = window_fraction(values.astype(np.float64), centre, width, rule.function)
        shown = np.rint(fraction * 255).astype(np.uint8)
        what = f"its window (centre {centre:g}, width {width:g})"
    _refuse_blank(shown, values, bits, what, padded)
    return shown


def _refuse_blank(
    shown: np.ndarray, values: np.ndarray, bits: int, what: str, padded: np.ndarray | None
) -> None:
    """Refuse a picture that only its way to the screen made blank.

    A frame that holds no picture is black in any window, and its values say so.
    """
    if shown.min() != shown.max():
        return
    low, high = typical_range(values, padded)
    if high - low > _VISIBLE * max(2.0**bits, abs(low), abs(high)):
        raise DecodeError(
            f"is blank in {what}, though its values are not: they go from {low:g} to {high:g}"
        )


def _between(values: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    low, high = bounds
    between: np.ndarray = (values >= low) & (values <= high)
    return between


def _group(dataset: pydicom.Dataset, keyword: str, index: int) -> Sequence[pydicom.Dataset]:
    items = dataset.get(keyword) or ()
    return [items[index]] if index < len(items) else []


def _inside(groups: Iterable[pydicom.Dataset], keyword: str) -> list[pydicom.Dataset]:
    items = (_first_item(group, keyword) for group in groups)
    return [item for item in items if item is not None]


def _first_item(dataset: pydicom.Dataset, keyword: str) -> pydicom.Dataset | None:
    items = dataset.get(keyword)
    return items[0] if items else None


def _modality(item: pydicom.Dataset, order: str) -> LookupTable | tuple[float, float] | None:
    table = _table(_first_item(item, "ModalityLUTSequence"), order)
    if table is not None:
        return table
    slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    # A slope of nothing would leave nothing.
    return (slope or 1.0), (intercept or 0.0)


def _interest(item: pydicom.Dataset, order: str) -> LookupTable | Window | None:
    table = _table(_first_item(item, "VOILUTSequence"), order)
    if table is not None:
        return table
    centre, width = _number(item, "WindowCenter"), _number(item, "WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    return Window(centre, width, str(item.get("VOILUTFunction") or "LINEAR").strip().upper())


def _table(item: pydicom.Dataset | None, order: str) -> LookupTable | None:
    """Read a lookup table; its data comes as numbers or, in the file's byte order, as bytes."""
    if item is None:
        return None
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if isinstance(descriptor, bytes):
        descriptor = np.frombuffer(descriptor, f"{order}u2").tolist()
    if descriptor is None or len(descriptor) < 3 or not data:
        return None
    count, first, bits = (int(value) for value in descriptor[:3])
    count = (count & 0xFFFF) or 2**16
    if isinstance(data, bytes):
        entries = np.frombuffer(data, "u1" if len(data) in (count, count + 1) else f"{order}u2")
    else:
        entries = np.atleast_1d(data) & 0xFFFF
    entries = entries[:count].astype(np.int64)
    if not 0 < bits <= 16:
        return None
    # Some writers state fewer bits than their entries have.
    return LookupTable(entries, first, max(bits, int(entries.max()).bit_length()))


def _padding(dataset: pydicom.Dataset) -> tuple[int, int] | None:
    value, limit = _number(dataset, "PixelPaddingValue"), _number(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return None
    other = value if limit is None else limit
    return int(min(value, other)), int(max(value, other))


def _number(item: pydicom.Dataset, keyword: str) -> float | None:
    """Return an element's first value, None where it has none that is a finite number."""
    value = item.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
