"""The Image Pixel module's elements: what is left out, and bits that are not the value's."""

import io

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.dicom.pixels import PixelFormat, without_other_bits
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (2, 40, 48), dtype=np.uint8)
COLOURS = RANDOM.integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
EXACT = (ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}  # of all that twelve bits hold


def pixels_of(data):
    clip = open_dicom(SourceFile("file", data=data))
    frames = list(clip.decode(range(clip.frames)))
    assert not [str(frame.error) for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "missing",
    [
        ("BitsStored",),
        ("BitsStored", "HighBit"),
        ("BitsAllocated", "BitsStored", "HighBit"),
        ("SamplesPerPixel",),
        ("PixelRepresentation",),
        ("PhotometricInterpretation",),
        ("PhotometricInterpretation", "SamplesPerPixel"),
        ("NumberOfFrames",),
    ],
)
def test_grey_with_elements_missing(dicom, syntax, missing):
    assert np.array_equal(pixels_of(dicom(BYTES, syntax=syntax, **dict.fromkeys(missing))), BYTES)


@pytest.mark.parametrize(
    "missing",
    [
        ("PlanarConfiguration",),
        ("SamplesPerPixel",),
        ("SamplesPerPixel", "PlanarConfiguration", "PixelRepresentation"),
        ("PhotometricInterpretation",),
        ("NumberOfFrames", "BitsStored"),
    ],
)
def test_colours_with_elements_missing(dicom, missing):
    data = dicom(COLOURS, "RGB", **dict.fromkeys(missing))
    assert np.array_equal(pixels_of(data), COLOURS)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize(
    "missing", [("BitsStored", "HighBit"), ("SamplesPerPixel", "PlanarConfiguration"), ()]
)
def test_compressed_frames_with_elements_missing(dicom, syntax, missing):
    for values, photometric in ((BYTES, "MONOCHROME2"), (COLOURS, "RGB")):
        dataset = pydicom.dcmread(io.BytesIO(dicom(values, photometric)))
        dataset.compress(syntax, generate_instance_uid=False)
        for keyword in ("PixelRepresentation", *missing):
            if keyword in dataset:
                delattr(dataset, keyword)
        sink = io.BytesIO()
        dataset.save_as(sink)
        assert np.array_equal(pixels_of(sink.getvalue()), values)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", ["bytes", "colours", "words"])
def test_a_codestream_says_all_that_its_header_does_not(dicom, syntax, kind):
    values, photometric = {
        "bytes": (BYTES, "MONOCHROME2"),
        "colours": (COLOURS, "RGB"),
        "words": (words(11)[0], "MONOCHROME2"),
    }[kind]
    bits = {"BitsStored": 12, "HighBit": 11} if kind == "words" else {}
    plain = dicom(values, photometric, **bits)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.compress(syntax, generate_instance_uid=False)
    for keyword in (
        *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "NumberOfFrames"),
    ):
        if keyword in dataset:
            delattr(dataset, keyword)
    sink = io.BytesIO()
    dataset.save_as(sink)
    assert np.array_equal(pixels_of(sink.getvalue()), pixels_of(plain))


def test_words_whose_bits_are_not_stated(dicom):
    values = np.arange(40 * 48, dtype=np.uint16).reshape(1, 40, 48)
    missing = dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))
    expected = np.rint(values * (255 / float(values.max())))
    assert np.array_equal(pixels_of(dicom(values, **missing)), expected)


@pytest.mark.parametrize("stored", [0, 99])
def test_stored_bits_that_cannot_be(dicom, stored):
    assert np.array_equal(pixels_of(dicom(BYTES, BitsStored=stored)), BYTES)


def test_bits_that_no_value_has_are_refused(dicom):
    with pytest.raises(DecodeError, match=r"12 bits each \(BitsAllocated\)"):
        pixels_of(dicom(BYTES, BitsAllocated=12))


def test_missing_rows_are_said(dicom):
    with pytest.raises(DecodeError, match="has no pixels: it is 48 x 0"):
        pixels_of(dicom(BYTES, Rows=None))


# --- bits that are not the value's ---------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_against_arithmetic_on_single_values(data):
    size = data.draw(st.sampled_from([8, 16, 32]))
    stored = data.draw(st.integers(1, size - 1))
    high = data.draw(st.integers(stored - 1, size - 1))
    signed = data.draw(st.booleans())
    words = data.draw(st.lists(st.integers(0, 2**size - 1), min_size=1, max_size=9))
    layout = PixelFormat(1, len(words), 1, size, stored, high, signed, False, "MONOCHROME2")
    kind = f"{'i' if signed else 'u'}{size // 8}"
    values = np.array(words, f"u{size // 8}").view(kind)
    expected = []
    for word in words:
        value = (word >> (high + 1 - stored)) % 2**stored
        expected.append(value - 2**stored if signed and value >= 2 ** (stored - 1) else value)
    assert without_other_bits(values, layout, size).tolist() == expected
    assert without_other_bits(values, layout, stored) is values


def words(high):
    """Twelve bits of a picture, at a place in sixteen, and an overlay in the others."""
    values = RANDOM.integers(0, 4096, (1, 40, 48)).astype(np.uint16)
    low = high - 11
    overlay = RANDOM.integers(0, 2**16, values.shape).astype(np.uint16)
    mask = np.uint16((4095 << low) & 0xFFFF)
    return values, (values << low & mask) | (overlay & ~mask)


@pytest.mark.parametrize("syntax", EXACT, ids=lambda uid: uid.name)
@pytest.mark.parametrize("high", [11, 13, 15])
def test_an_overlay_in_the_other_bits_is_masked(dicom, syntax, high):
    values, stored = words(high)
    clean = pixels_of(dicom(values, BitsStored=12, HighBit=11, **WINDOW))
    native = syntax in (ExplicitVRLittleEndian, ExplicitVRBigEndian)
    data = dicom(stored, syntax=syntax if native else ExplicitVRLittleEndian, **WINDOW)
    dataset = pydicom.dcmread(io.BytesIO(data))
    if not native:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit = 12, high
    sink = io.BytesIO()
    dataset.save_as(sink)
    assert np.array_equal(pixels_of(sink.getvalue()), clean)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_codestream_of_the_stored_bits_is_not_shifted_again(dicom, syntax):
    """HighBit 15 over a codestream of 12 bits: there is nothing above or below the values."""
    values, _ = words(11)
    plain = dicom(values, BitsStored=12, HighBit=11, **WINDOW)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.HighBit = 15
    sink = io.BytesIO()
    dataset.save_as(sink)
    assert np.array_equal(pixels_of(sink.getvalue()), pixels_of(plain))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_eight_bits_in_a_codestream_under_a_header_of_twelve_are_eight(dicom, syntax):
    dataset = pydicom.dcmread(io.BytesIO(dicom(BYTES)))
    dataset.compress(syntax, generate_instance_uid=False)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=2))
    header = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, **WINDOW}
    data = dicom(BYTES, syntax=syntax, PixelData=encapsulate(frames), **header)
    assert np.array_equal(pixels_of(data), BYTES)


def test_eight_bits_in_sixteen_are_shown_as_they_are(dicom):
    values = (BYTES // 2).astype(np.uint16)
    assert np.array_equal(pixels_of(dicom(values, BitsStored=8, HighBit=7)), values)


def test_signed_values_keep_their_sign_under_an_overlay(dicom):
    values = RANDOM.integers(-2048, 2048, (1, 40, 48)).astype(np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    marked = (values & 0x0FFF) | 0x5000
    assert np.array_equal(pixels_of(dicom(marked, **window)), pixels_of(dicom(values, **window)))
