"""NRRD volumes against arrays written by hand, as the format's page says."""

import bz2
import gzip

import numpy as np
import pytest

from echostill.platform.imaging.containers import container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (4, 5, 7), dtype=np.uint8)  # z, y, x, as they lie in the file
COLOURS = RANDOM.integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
PACKED = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}


def nrrd(values, kind="uint8", encoding="raw", junk=b"", **fields):
    """Write a volume; the axes of ``values`` lie in the file from the last to the first."""
    lines = {
        "type": kind,
        "dimension": values.ndim,
        "sizes": " ".join(str(size) for size in reversed(values.shape)),
        "encoding": encoding,
        **{name.replace("_", " "): value for name, value in fields.items()},
    }
    head = "NRRD0005\n# a comment: with a colon\n" + "".join(
        f"{name}: {value}\n" for name, value in lines.items()
    )
    return head.encode() + b"key:=value\n\n" + junk + PACKED.get(encoding, bytes)(values.tobytes())


def shown(data, **limits):
    clip = open_clip(SourceFile("a.nrrd", data=data), Limits(**limits))
    frames = list(clip.decode(range(clip.frames)))
    assert not [str(frame.error) for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


@pytest.mark.parametrize("encoding", PACKED)
def test_slices_of_bytes_are_exact(encoding):
    data = nrrd(BYTES, encoding=encoding)
    assert container_of(data, "IM0001") == "nrrd"
    assert np.array_equal(shown(data), BYTES)
    series = RANDOM.integers(0, 256, (2, 3, 5, 7), dtype=np.uint8)
    assert np.array_equal(shown(nrrd(series, encoding=encoding)), series.reshape(6, 5, 7))
    assert np.array_equal(shown(nrrd(BYTES[0], encoding=encoding)), BYTES[:1])


@pytest.mark.parametrize(
    ("kind", "dtype", "order"),
    [
        ("short", "<i2", "little"),
        ("unsigned short", ">u2", "big"),
        ("int32_t", "<i4", "little"),
        ("float", ">f4", "big"),
        ("double", "<f8", "little"),
        ("longlong", "<i8", "little"),
    ],
)
def test_other_types_are_scaled_by_the_volumes_range(kind, dtype, order):
    values = (BYTES.astype(int) * 37 - (0 if "u" in dtype else 900)).astype(dtype)
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.astype(float) - low) * (255 / (high - low)))
    assert np.array_equal(shown(nrrd(values, kind, endian=order)), expected)


@pytest.mark.parametrize("axis", [0, 2, 3])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_colours_on_any_axis_but_the_second(axis, encoding):
    kinds = ["domain"] * 3
    kinds.insert(axis, "RGB-color")
    values = np.moveaxis(COLOURS, 3, 3 - axis)
    data = nrrd(np.ascontiguousarray(values), encoding=encoding, kinds=" ".join(kinds))
    assert np.array_equal(shown(data), COLOURS)


def test_colours_apart_in_a_series():
    """x, y, z, colours, time: the colours lie apart by the slices of one time."""
    series = RANDOM.integers(0, 256, (3, 4, 5, 7, 3), dtype=np.uint8)  # time, z, y, x, colours
    values = np.ascontiguousarray(np.moveaxis(series, 4, 1))
    data = nrrd(values, kinds="domain domain domain vector list")
    assert np.array_equal(shown(data), series.reshape(12, 5, 7, 3))


def test_three_columns_are_colours_without_a_word():
    assert np.array_equal(shown(nrrd(COLOURS)), COLOURS)


def test_frames_as_the_fastest_axis():
    values = np.ascontiguousarray(np.moveaxis(BYTES, 0, 2))  # y, x, frames
    data = nrrd(values, encoding="gzip", kinds="list domain domain")
    assert np.array_equal(shown(data), BYTES)
    with pytest.raises(DecodeError, match="max_bytes=100"):
        shown(data, max_bytes=100)
    with pytest.raises(DecodeError, match="holds 134 of 140 bytes"):
        shown(nrrd(values, kinds="list domain domain")[:-6])


def test_lines_and_bytes_that_are_skipped():
    assert np.array_equal(shown(nrrd(BYTES, junk=b"one\ntwo\n", line_skip=2)), BYTES)
    assert np.array_equal(shown(nrrd(BYTES, junk=b"12345", byte_skip=5)), BYTES)
    assert np.array_equal(shown(nrrd(BYTES, junk=b"12345678", byte_skip=-1)), BYTES)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (nrrd(BYTES, encoding="hex"), "encoding 'hex', which is not read"),
        (nrrd(BYTES, "block"), "wrong or not read"),
        (nrrd(BYTES, data_file="other.raw"), "in another file"),
        (nrrd(BYTES, sizes="7 five 4"), "wrong or not read"),
        (nrrd(BYTES, sizes="7"), "at least two sizes"),
        (nrrd(BYTES)[:60], "header does not end"),
        (b"NRRD0005", "header does not end"),
        (b"no such thing", "does not begin as one"),
    ],
)
def test_headers_that_are_not_read(data, said):
    with pytest.raises(DecodeError, match=said):
        shown(data)


def test_limits_and_a_cut_off_file():
    for limits, said in (
        ({"max_pixels": 30}, "7 x 5 pixels"),
        ({"max_frames": 3}, "holds 4 slices"),
    ):
        with pytest.raises(DecodeError, match=said):
            shown(nrrd(BYTES), **limits)
    with pytest.raises(DecodeError, match="max_pixels"):
        shown(nrrd(BYTES, sizes="70000 70000 4"))
    for encoding in PACKED:
        clip = open_clip(SourceFile("a", data=nrrd(BYTES, encoding=encoding)[:-40]))
        frames = list(clip.decode(range(clip.frames)))
        assert frames[-1].error is not None
