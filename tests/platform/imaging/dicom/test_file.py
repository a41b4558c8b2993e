"""Files whose headers are incomplete or wrong, and pixels that stay in the file."""

import io
import tracemalloc

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from echostill.platform.imaging.containers import container_of
from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.dicom.file import is_bare_dicom, open_file
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.integers(0, 256, (2, 40, 48), dtype=np.uint8)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
PACKED = (JPEGLSLossless, JPEG2000Lossless)


def pixels_of(data):
    clip = open_dicom(SourceFile("file", data=data))
    frames = list(clip.decode(range(clip.frames)))
    assert not [str(frame.error) for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def bare(data):
    """The data set alone, as networks send it: no preamble, no group 2."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    sink = io.BytesIO()
    pydicom.dcmwrite(
        sink,
        without_meta(dataset),
        implicit_vr=dataset.original_encoding[0],
        little_endian=dataset.original_encoding[1],
    )
    return sink.getvalue()


def without_meta(dataset):
    plain = pydicom.Dataset()
    plain.update(dict(dataset.items()))
    return plain


def stating(data, syntax):
    """The same bytes under another transfer syntax; None states none."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    meta = int.from_bytes(data[140:144], "little") + 144
    if syntax is None:
        del dataset.file_meta.TransferSyntaxUID
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    sink = io.BytesIO()
    sink.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(sink, dataset.file_meta, enforce_standard=False)
    return sink.getvalue() + data[meta:]


def packed(dicom, syntax):
    dataset = pydicom.dcmread(io.BytesIO(dicom(VALUES)))
    dataset.compress(syntax, generate_instance_uid=False)
    sink = io.BytesIO()
    dataset.save_as(sink)
    return sink.getvalue()


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_a_bare_data_set_is_told_and_read(dicom, syntax):
    data = bare(dicom(VALUES, syntax=syntax))
    assert is_bare_dicom(data)
    assert container_of(data, "IM0001") == "dicom"
    assert np.array_equal(pixels_of(data), VALUES)


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_without_a_transfer_syntax_the_data_set_tells_its_own(dicom, syntax):
    data = stating(dicom(VALUES, syntax=syntax), None)
    assert np.array_equal(pixels_of(data), VALUES)


def test_a_preamble_with_nothing_of_group_two(dicom):
    data = dicom(VALUES, syntax=ImplicitVRLittleEndian)
    assert np.array_equal(pixels_of(bytes(128) + b"DICM" + bare(data)), VALUES)


@pytest.mark.parametrize("syntax", PACKED, ids=lambda uid: uid.name)
@pytest.mark.parametrize("stated", [None, ExplicitVRLittleEndian, "bare"])
def test_frames_tell_what_compressed_them_where_the_header_does_not(dicom, syntax, stated):
    data = packed(dicom, syntax)
    data = bare(data) if stated == "bare" else stating(data, stated)
    assert np.array_equal(pixels_of(data), VALUES)


def test_frames_that_do_not_tell_it_are_refused_by_name(dicom):
    data = stating(packed(dicom, RLELossless), None)
    with pytest.raises(DecodeError, match=r"transfer syntax \(0002,0010\).*no JPEG, JPEG-LS or"):
        pixels_of(data)


@pytest.mark.parametrize("stated", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
def test_uncompressed_pixels_under_a_compressed_syntax_are_read(dicom, stated):
    assert np.array_equal(pixels_of(stating(dicom(VALUES), stated)), VALUES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08\0\x05\0",
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100",  # nothing behind it
        b"\x08\0\x05\0" + b"\xff" * 40,
        b"\0\0\x01\0\x01\0\x20\x20" + bytes(40),  # an icon
        b"\x02\0\0\0" + bytes(400),
        bytes(400),
    ],
)
def test_what_begins_like_a_data_set_and_is_none(data):
    assert not is_bare_dicom(data)


@pytest.mark.parametrize("syntax", [*NATIVE, DeflatedExplicitVRLittleEndian])
def test_where_the_pixels_lie(dicom, syntax):
    data = dicom(VALUES, syntax=syntax)
    pixels = open_file(SourceFile("f", data=data), Limits()).pixels
    with pixels.source.opened() as stream:
        stream.seek(pixels.place.offset)
        assert stream.read(pixels.place.length) == VALUES.tobytes()
    assert not pixels.encapsulated


def test_floating_pixels_are_scaled_by_their_range(dicom):
    data = dicom(VALUES[:1], PixelData=None, BitsAllocated=32)
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = VALUES[:1].astype("<f4") / 7 - 3
    dataset.FloatPixelData = values.tobytes()
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    sink = io.BytesIO()
    dataset.save_as(sink)
    low, high = float(values.min()), float(values.max())
    expected = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    assert np.array_equal(pixels_of(sink.getvalue()), expected)


@pytest.mark.parametrize("kind", ["native", "encapsulated"])
def test_a_long_cine_takes_the_memory_of_a_frame(dicom, tmp_path, kind):
    """A file of 24 MiB: opening it and reading its frames one by one takes a tenth of that."""
    frames = np.broadcast_to(RANDOM.integers(0, 256, (1, 512, 512), np.uint8), (96, 512, 512))
    if kind == "native":
        data = dicom(frames)
    else:
        dataset = pydicom.dcmread(io.BytesIO(dicom(frames[:1])))
        dataset.compress(RLELossless, generate_instance_uid=False)
        (fragment,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        data = dicom(frames, syntax=RLELossless, PixelData=encapsulate([fragment] * 96))
    path = tmp_path / "cine.dcm"
    path.write_bytes(data)
    size = len(data)
    del data
    tracemalloc.start()
    clip = open_dicom(SourceFile("cine", str(path)))
    for frame in clip.decode(range(clip.frames)):
        assert np.array_equal(frame.pixels, frames[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 20 * 2**20
    assert peak < size / 10
    assert clip.frames == 96
