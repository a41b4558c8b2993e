import io
from pathlib import Path

import av
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from echostill.platform.imaging.dicom.opening import is_bare_dicom, is_dicom, open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import FrameSampling, Limits
from echostill.platform.imaging.header import Region
from echostill.platform.imaging.images import DecodeError

SAMPLE = Path(__file__).parents[4] / "examples/quickstart/pool/dicom"
PALETTE_CINE = SAMPLE / "OBXXXX1A_rle_2frame.dcm"
JPEG_CINE = SAMPLE / "examples_ybr_color.dcm"
RANDOM = np.random.default_rng(0)


def opened(data, **limits):
    """Open bytes or a path: the header and all frames, one by one."""
    file = SourceFile("file", data=data) if isinstance(data, bytes) else SourceFile("f", str(data))
    clip = open_dicom(file, Limits(**limits))
    return clip.header, clip.decode(range(clip.frames))


def pixels_of(data):
    _, frames = opened(data)
    frames = list(frames)
    assert not [frame.error for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def test_header(dicom):
    data = dicom(
        np.zeros((2, 4, 4), np.uint8), BodyPartExamined="LIVER", ManufacturerModelName="EPIQ 7C"
    )
    header, _ = opened(data)
    assert (header.sop_instance_uid, header.study_instance_uid) == ("1.2.3", "1.2")
    assert (header.organ, header.device, header.frames) == ("liver", "EPIQ 7C", 2)
    assert header.patient_id == "SECRET-7"
    assert "SECRET" not in repr(header)
    assert is_dicom(data)
    assert not is_dicom(b"\x89PNG")


def test_shipped_palette_cine():
    header, frames = opened(PALETTE_CINE)
    first, second = (frame.pixels for frame in frames)
    assert header.frames == 2
    assert first.shape == (600, 800, 3)
    # The second frame of this file holds the first one's palette indices, inverted.
    assert not np.array_equal(first, second)


def test_shipped_jpeg_cine_has_the_colours_of_its_jpegs():
    dataset = pydicom.dcmread(JPEG_CINE)
    jpegs = generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames))
    header, frames = opened(JPEG_CINE.read_bytes())
    assert header.frames == 30
    for frame, jpeg in zip(frames, jpegs, strict=True):
        expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        assert np.abs(frame.pixels.astype(int) - expected).max() <= 3


def test_stride_takes_every_nth_frame():
    every = pixels_of(JPEG_CINE)
    clip = open_dicom(SourceFile("cine", str(JPEG_CINE)))
    frames = FrameSampling(every=7).read(clip)
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
    _, frames = opened(sink.getvalue())
    read = list(frames)
    assert [frame.index for frame in read] == list(range(30))
    assert [frame.index for frame in read if frame.error] == [4]
    assert read[4].pixels is None
    assert "cannot be decoded" in str(read[4].error)


def test_missing_frames_are_said_once_however_many():
    dataset = pydicom.dcmread(JPEG_CINE)
    jpegs = list(generate_frames(dataset.PixelData, number_of_frames=30))
    dataset.PixelData = encapsulate(jpegs[:3])
    dataset.NumberOfFrames = 2_000_000_000
    sink = io.BytesIO()
    dataset.save_as(sink)
    _, frames = opened(sink.getvalue())
    *whole, missing = frames
    assert [frame.index for frame in whole] == [0, 1, 2]
    assert not any(frame.error for frame in whole)
    assert "holds 3 of the 2000000000 frames" in str(missing.error)


def test_frames_that_the_header_does_not_count_are_read(dicom):
    values = RANDOM.integers(0, 256, (4, 6, 8), dtype=np.uint8)
    assert np.array_equal(pixels_of(dicom(values, NumberOfFrames=2)), values)
    assert np.array_equal(pixels_of(dicom(values[:1, :1, :1])), values[:1, :1, :1])  # padded


@pytest.mark.parametrize(("stated", "said"), [("0", None), ("-3", "states -3 frames")])
def test_stated_frames_that_cannot_be(dicom, stated, said):
    data = dicom(RANDOM.integers(0, 256, (1, 6, 8), dtype=np.uint8), NumberOfFrames=stated)
    if said is None:
        assert len(pixels_of(data)) == 1
    else:
        with pytest.raises(DecodeError, match=said):
            opened(data)


def test_a_file_without_pixels_is_refused(dicom):
    with pytest.raises(DecodeError, match="holds no pixel data"):
        opened(dicom())


def test_a_missing_decoder_is_named_with_its_package(dicom, monkeypatch):
    twelve = dicom(
        np.zeros((1, 4, 4), np.uint16),
        syntax=JPEGExtended12Bit,
        PixelData=encapsulate([b"12"]),
        BitsStored=12,
        HighBit=11,
    )
    with pytest.raises(DecodeError, match=r"JPEG Extended.*of 12 bits.*pip install pylibjpeg"):
        opened(twelve)
    decoder = pydicom.pixels.get_decoder(JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    lossless = dicom(
        np.zeros((1, 4, 4), np.uint8), syntax=JPEGLosslessSV1, PixelData=encapsulate([b"12"])
    )
    with pytest.raises(DecodeError, match=r"JPEG Lossless.*not installed: pip install python-gdcm"):
        opened(lossless)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.94", "1.2.3.4.5.6"])
def test_a_transfer_syntax_that_nothing_reads_is_named(dicom, syntax):
    data = dicom(np.zeros((1, 4, 4), np.uint8), syntax=syntax, PixelData=encapsulate([b"12"]))
    with pytest.raises(DecodeError, match=r"transfer syntax '.*', which is not read"):
        opened(data)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, RLELossless, JPEGLosslessSV1])
def test_damaged_compressed_pixels_become_the_frames_error(dicom, syntax):
    values = np.zeros((1, 4, 4), np.uint8)
    _, frames = opened(dicom(values, syntax=syntax, PixelData=encapsulate([b"not it"])))
    (frame,) = frames
    assert frame.pixels is None
    assert "cannot be decoded" in str(frame.error)


@pytest.mark.parametrize(
    ("syntax", "codec", "container"),
    [
        ("1.2.840.10008.1.2.4.100", "mpeg2video", "mpeg2video"),
        ("1.2.840.10008.1.2.4.102", "libx264", "mp4"),
        ("1.2.840.10008.1.2.4.102", "libx264", "h264"),
    ],
)
def test_films_inside_dicom(dicom, syntax, codec, container):
    sink, levels = io.BytesIO(), range(20, 230, 10)
    with av.open(sink, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "rgb24")
            for packet in stream.encode(picture):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    film = encapsulate([sink.getvalue()])
    data = dicom(np.zeros((1, 48, 64, 3), np.uint8), "YBR_PARTIAL_420", syntax, PixelData=film)
    header, frames = opened(data)
    means = [frame.pixels.mean() for frame in frames]
    assert header.patient_id == "SECRET-7"
    assert len(means) == len(levels)
    assert np.abs(np.array(means) - levels).max() < 6
    values = np.zeros((1, 48, 64, 3), np.uint8)
    broken = dicom(values, "RGB", syntax, PixelData=encapsulate([b"no film"]))
    with pytest.raises(DecodeError, match="damaged or truncated video"):
        opened(broken)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({}, ""),
        ({"BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "NO"}, ""),
        ({"BurnedInAnnotation": ""}, ""),
        ({"BurnedInAnnotation": "YES"}, "burned-in annotation"),
        ({"BurnedInAnnotation": "yes "}, "burned-in annotation"),
        ({"RecognizableVisualFeatures": "YES"}, "recognizable visual features"),
        (
            {"BurnedInAnnotation": "MAYBE", "RecognizableVisualFeatures": "YES"},
            "burned-in annotation, recognizable visual features",
        ),
    ],
)
def test_what_identifies_the_patient_in_the_picture_is_read(dicom, elements, said):
    data = dicom(np.zeros((1, 8, 8), np.uint8), **elements)
    assert open_dicom(SourceFile("", data=data)).header.identifying == said


def test_regions_are_read_and_damaged_ones_left_out(dicom):
    region = pydicom.Dataset()
    region.RegionSpatialFormat, region.RegionDataType = 1, 2
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 3, 4
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 50, 60
    header, _ = opened(
        dicom(
            np.zeros((1, 4, 4), np.uint8), SequenceOfUltrasoundRegions=[region, pydicom.Dataset()]
        )
    )
    assert header.regions == (Region(3, 4, 50, 60, spatial_format=1, data_type=2),)


def test_a_deflated_file_is_not_unpacked_beyond_the_limit(dicom):
    values = np.zeros((1, 2000, 2000), np.uint8)
    data = dicom(values, syntax=DeflatedExplicitVRLittleEndian)
    assert len(data) < 20_000
    with pytest.raises(DecodeError, match="unpacks to more bytes than allowed"):
        opened(data, max_bytes=1_000_000)
    assert np.array_equal(pixels_of(data), values)


def test_a_file_without_preamble_is_read(dicom):
    values = RANDOM.integers(0, 256, (1, 6, 8), dtype=np.uint8)
    bare = dicom(values)[132:]
    assert is_bare_dicom(bare)
    assert np.array_equal(pixels_of(bare), values)


@pytest.mark.parametrize("data", [b"", b"no DICOM at all", b"\0" * 128 + b"DICM" + b"\xff" * 50])
def test_what_is_no_dicom_is_refused(data):
    with pytest.raises(DecodeError):
        opened(data)


def test_a_cut_off_file_gives_its_whole_frames(dicom):
    values = RANDOM.integers(0, 256, (2, 32, 32), dtype=np.uint8)
    data = dicom(values)
    _, (first, missing) = opened(data[:-600])
    assert np.array_equal(first.pixels, values[0])
    assert "holds 1 of the 2 frames" in str(missing.error)
    with pytest.raises(DecodeError, match="less than one frame"):
        opened(data[:-1600])
    with pytest.raises(DecodeError, match="holds no pixel data, or ends before it"):
        opened(data[: data.index(values.tobytes()) - 12])


def test_no_message_holds_the_patient(dicom):
    for data in (dicom(), dicom(np.zeros((1, 4, 4), np.uint8), NumberOfFrames=3)):
        try:
            _, frames = opened(data)
            said = [str(frame.error) for frame in frames]
        except DecodeError as error:
            said = [str(error)]
        assert not any("SECRET" in text for text in said)


def test_too_large_frames_are_refused(dicom):
    with pytest.raises(DecodeError, match="max_pixels=15"):
        opened(dicom(np.zeros((1, 4, 4), np.uint8)), max_pixels=15)


def test_too_many_frames_and_bytes_are_refused(dicom):
    data = dicom(np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(DecodeError, match=r"holds 5 frames.*max_frames=4"):
        opened(data, max_frames=4)
    with pytest.raises(DecodeError, match=r"bytes, more than allowed \(max_bytes=100\)"):
        opened(data, max_bytes=100)
