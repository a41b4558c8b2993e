import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from echostill.platform.dicom import is_dicom, read_frames, window_fraction
from echostill.platform.images import DecodeError

SAMPLE = Path(__file__).parents[2] / "examples/quickstart/pool/dicom"
PALETTE_CINE = SAMPLE / "OBXXXX1A_rle_2frame.dcm"
JPEG_CINE = SAMPLE / "examples_ybr_color.dcm"
RANDOM = np.random.default_rng(0)


def dicom(values=None, photometric="MONOCHROME2", syntax=ExplicitVRLittleEndian, **elements):
    """Write a DICOM file; ``values`` (frames, H, W[, 3]) unsigned, or None for no pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundImageStorage, "1.2.3"
    dataset.StudyInstanceUID, dataset.PatientID = "1.2", "SECRET-7"
    if values is not None:
        bits = values.dtype.itemsize * 8
        dataset.SamplesPerPixel = 3 if values.ndim == 4 else 1
        if values.ndim == 4:
            dataset.PlanarConfiguration = 0
        dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape[:3]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = 0
        dataset.PhotometricInterpretation = photometric
        dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    sink = io.BytesIO()
    dataset.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def pixels_of(data):
    _, frames = read_frames(data)
    frames = list(frames)
    assert not [frame.error for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def test_header():
    data = dicom(
        np.zeros((2, 4, 4), np.uint8), BodyPartExamined="LIVER", ManufacturerModelName="EPIQ 7C"
    )
    header, _ = read_frames(data)
    assert (header.sop_instance_uid, header.study_instance_uid) == ("1.2.3", "1.2")
    assert (header.organ, header.device, header.frames) == ("liver", "EPIQ 7C", 2)
    assert header.patient_id == "SECRET-7"
    assert "SECRET" not in repr(header)
    assert is_dicom(data)
    assert not is_dicom(b"\x89PNG")


def test_grey_and_inverted_grey():
    values = RANDOM.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    assert np.array_equal(pixels_of(dicom(values)), values)
    assert np.array_equal(pixels_of(dicom(values, "MONOCHROME1")), 255 - values)


def test_rgb_in_either_planar_configuration():
    values = RANDOM.integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(dicom(values, "RGB")), values)
    planes = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).tobytes()
    data = dicom(values, "RGB", PlanarConfiguration=1, PixelData=planes)
    assert np.array_equal(pixels_of(data), values)


def test_ybr_becomes_rgb():
    rgb = RANDOM.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    ybr = np.asarray(Image.fromarray(rgb[0]).convert("YCbCr"))[None]
    decoded = pixels_of(dicom(np.ascontiguousarray(ybr), "YBR_FULL"))
    assert np.abs(decoded.astype(int) - rgb).max() <= 3


def test_window_is_applied_to_sixteen_bits():
    values = np.array([[[0, 100, 200, 300, 4000]]], dtype=np.uint16)
    data = dicom(values, WindowCenter=200, WindowWidth=201, RescaleSlope=1, RescaleIntercept=0)
    expected = np.clip((values - 199.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(data), np.rint(expected))


def test_rescale_comes_before_the_window():
    values = np.array([[[0, 50, 100, 150]]], dtype=np.uint16)
    rescaled = dicom(
        values, WindowCenter=100, WindowWidth=201, RescaleSlope=2, RescaleIntercept=-10
    )
    expected = np.clip((values * 2.0 - 10 - 99.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(rescaled), np.rint(expected))


def test_sixteen_bits_without_a_window_use_their_own_range():
    values = np.array([[[1000, 1500, 3000]]], dtype=np.uint16)
    assert pixels_of(dicom(values)).tolist() == [[[0, 64, 255]]]


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_rise_from_zero_to_one_around_the_centre(kind):
    shown = window_fraction(np.linspace(-5000, 5000, 1001), 40.0, 400.0, kind)
    assert (np.diff(shown) >= 0).all()
    assert shown[0] < 1e-6
    assert shown[-1] > 1 - 1e-6
    assert abs(float(window_fraction(np.array([40.0]), 40.0, 400.0, kind)[0]) - 0.5) < 0.01


def test_window_of_width_one_is_a_step():
    assert window_fraction(np.array([9.0, 9.5, 10.0]), 10.0, 1.0, "LINEAR").tolist() == [0, 0, 1]


@pytest.mark.parametrize("shift", [8, 0], ids=["high byte", "low byte"])
def test_palette_in_either_byte(shift):
    table = RANDOM.integers(0, 256, (4, 3)).astype("<u2")
    table[0] = 255
    values = RANDOM.integers(0, 4, (2, 4, 4), dtype=np.uint8)
    elements = {}
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        elements[f"{colour}PaletteColorLookupTableData"] = (table[:, channel] << shift).tobytes()
    data = dicom(values, "PALETTE COLOR", **elements)
    assert np.array_equal(pixels_of(data), table.astype(np.uint8)[values])


def test_shipped_palette_cine():
    header, frames = read_frames(PALETTE_CINE)
    first, second = (frame.pixels for frame in frames)
    assert header.frames == 2
    assert first.shape == (600, 800, 3)
    # The second frame of this file holds the first one's palette indices, inverted.
    assert not np.array_equal(first, second)


def test_shipped_jpeg_cine_has_the_colours_of_its_jpegs():
    dataset = pydicom.dcmread(JPEG_CINE)
    jpegs = generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames))
    header, frames = read_frames(JPEG_CINE.read_bytes())
    assert header.frames == 30
    for frame, jpeg in zip(frames, jpegs, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert np.abs(frame.pixels.astype(int) - expected).max() <= 3


def test_stride_takes_every_nth_frame():
    every = pixels_of(JPEG_CINE)
    _, frames = read_frames(JPEG_CINE, stride=7)
    for expected, frame in zip((0, 7, 14, 21, 28), frames, strict=True):
        assert frame.index == expected
        assert np.array_equal(frame.pixels, every[expected])


def test_one_damaged_frame_costs_one_frame():
    dataset = pydicom.dcmread(JPEG_CINE)
    jpegs = list(generate_frames(dataset.PixelData, number_of_frames=30))
    jpegs[4] = b"\xff\xd8 damaged "
    dataset.PixelData = encapsulate(jpegs)
    sink = io.BytesIO()
    dataset.save_as(sink)
    _, frames = read_frames(sink.getvalue())
    read = list(frames)
    assert [frame.index for frame in read] == list(range(30))
    assert [frame.index for frame in read if frame.error] == [4]
    assert read[4].pixels is None
    assert "cannot be decoded" in str(read[4].error)


def test_missing_frames_are_named():
    dataset = pydicom.dcmread(JPEG_CINE)
    jpegs = list(generate_frames(dataset.PixelData, number_of_frames=30))
    dataset.PixelData = encapsulate(jpegs[:3])
    dataset.NumberOfFrames = 5
    sink = io.BytesIO()
    dataset.save_as(sink)
    _, frames = read_frames(sink.getvalue())
    assert [frame.error is None for frame in frames] == [True, True, True, False, False]


def test_a_file_without_pixels_is_refused():
    with pytest.raises(DecodeError, match="holds no pixel data"):
        read_frames(dicom())


def test_a_missing_decoder_is_named_with_its_package():
    values = np.zeros((1, 4, 4), np.uint8)
    data = dicom(values, syntax=JPEGLSLossless, PixelData=encapsulate([b"12"]))
    with pytest.raises(DecodeError, match=r"JPEG-LS Lossless.*not installed.*pip install"):
        read_frames(data)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, RLELossless])
def test_damaged_compressed_pixels_become_the_frames_error(syntax):
    values = np.zeros((1, 4, 4), np.uint8)
    _, frames = read_frames(dicom(values, syntax=syntax, PixelData=encapsulate([b"not it"])))
    (frame,) = frames
    assert frame.pixels is None
    assert frame.error is not None


@pytest.mark.parametrize("data", [b"", b"no DICOM at all", b"\0" * 128 + b"DICM" + b"\xff" * 50])
def test_what_is_no_dicom_is_refused(data):
    with pytest.raises(DecodeError):
        read_frames(data)


def test_a_cut_off_file_is_refused_or_gives_an_error():
    data = dicom(RANDOM.integers(0, 256, (2, 32, 32), dtype=np.uint8))
    try:
        _, frames = read_frames(data[:-600])
    except DecodeError:
        return
    assert any(frame.error for frame in frames)


def test_no_message_holds_the_patient():
    for data in (dicom(), dicom(np.zeros((1, 4, 4), np.uint8), NumberOfFrames=3)):
        try:
            _, frames = read_frames(data)
            said = [str(frame.error) for frame in frames]
        except DecodeError as error:
            said = [str(error)]
        assert not any("SECRET" in text for text in said)


def test_too_large_frames_are_refused():
    with pytest.raises(DecodeError, match="max_pixels=15"):
        read_frames(dicom(np.zeros((1, 4, 4), np.uint8)), max_pixels=15)
