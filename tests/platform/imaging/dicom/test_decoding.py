"""Every transfer syntax that is read, against the values that were encoded or pydicom's own."""

import io
import struct

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8)
GREY = np.stack([SMOOTH * 2, SMOOTH * 3, 255 - SMOOTH])
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=3)
NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
ENCODED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def frames_of(data):
    clip = open_dicom(SourceFile("file", data=data))
    return list(clip.decode(range(clip.frames)))


def pixels_of(data):
    frames = frames_of(data)
    assert not [str(frame.error) for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def saved(dataset):
    sink = io.BytesIO()
    dataset.save_as(sink)
    return sink.getvalue()


def compressed(data, syntax, **options):
    """Compress with the encoder that pydicom has for the syntax."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    if syntax in (JPEG2000, JPEG2000Lossless) and dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "YBR_RCT" if syntax == JPEG2000Lossless else "YBR_ICT"
    dataset.compress(syntax, generate_instance_uid=False, **options)
    return saved(dataset)


def compressed_by_gdcm(data, syntax, folder):
    """GDCM is the one encoder of JPEG lossless here; it writes a frame per fragment."""
    (folder / "plain.dcm").write_bytes(data)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    kind = gdcm.TransferSyntax.GetTSType(str(syntax))
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "lossless.dcm").read_bytes()


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_uncompressed_kinds_are_exact(dicom, syntax):
    assert np.array_equal(pixels_of(dicom(GREY, syntax=syntax)), GREY)
    assert np.array_equal(pixels_of(dicom(COLOUR, "RGB", syntax)), COLOUR)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_uncompressed_words_are_exact(dicom, syntax, kind):
    values = (GREY.astype(np.int64) * 200 - 20_000).astype(kind)
    low, high = int(values.min()), int(values.max())
    expected = [np.rint((v - float(v.min())) * 255 / (v.max() - float(v.min()))) for v in values]
    assert low < high
    assert np.array_equal(pixels_of(dicom(values, syntax=syntax)), expected)


def test_big_endian_bytes_in_words_of_an_odd_frame(dicom):
    """Frames of 15 bytes: every second one begins in the middle of a swapped word."""
    values = RANDOM.integers(0, 256, (3, 3, 5), dtype=np.uint8)
    stored = np.frombuffer(values.tobytes() + b"\0", "<u2").byteswap().tobytes()
    data = dicom(values, syntax=ExplicitVRBigEndian, PixelData=stored)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset["PixelData"].VR = "OW"
    assert np.array_equal(pixels_of(saved(dataset)), values)


@pytest.mark.parametrize("syntax", ENCODED, ids=lambda uid: uid.name)
def test_lossless_kinds_are_exact(dicom, syntax):
    assert np.array_equal(pixels_of(compressed(dicom(GREY), syntax)), GREY)
    assert np.array_equal(pixels_of(compressed(dicom(COLOUR, "RGB"), syntax)), COLOUR)


@pytest.mark.parametrize("syntax", ENCODED, ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_lossless_words_are_exact(dicom, syntax, kind):
    values = (GREY.astype(np.int64) * 200 - (20_000 if kind is np.int16 else 0)).astype(kind)
    window = {"WindowCenter": 0, "WindowWidth": 65_536}
    plain = dicom(values, **window)
    assert np.array_equal(pixels_of(compressed(plain, syntax)), pixels_of(plain))


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda uid: uid.name)
@pytest.mark.parametrize("values", [GREY, COLOUR, GREY.astype(np.uint16) * 200])
def test_jpeg_lossless_is_exact(dicom, syntax, values, tmp_path):
    plain = dicom(values, "RGB" if values.ndim == 4 else "MONOCHROME2")
    packed = compressed_by_gdcm(plain, syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(pixels_of(packed), pixels_of(plain))


@pytest.mark.parametrize(
    ("syntax", "options"),
    [(JPEGLSNearLossless, {"jls_error": 3}), (JPEG2000, {"j2k_cr": [4]})],
)
def test_lossy_kinds_are_near(dicom, syntax, options):
    shown = pixels_of(compressed(dicom(COLOUR, "RGB"), syntax, **options))
    assert np.abs(shown.astype(int) - COLOUR).mean() < 4


def jpegs(quality=95, **options):
    frames = []
    for frame in COLOUR:
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "JPEG", quality=quality, **options)
        frames.append(sink.getvalue())
    return frames


def without_markers(jpeg):
    """Drop the JFIF segment, as scanners write JPEGs."""
    (length,) = struct.unpack(">H", jpeg[4:6])
    assert jpeg[6:10] == b"JFIF"
    return jpeg[:2] + jpeg[4 + length :]


def adobe(jpeg, transform):
    segment = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return jpeg[:2] + b"\xff\xee" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def numbered_components(jpeg):
    """Name the components 1, 2, 3 in place of R, G, B, in the frame's and the scan's header."""
    for marker, step in ((b"\xff\xc0", 3), (b"\xff\xda", 2)):
        start = jpeg.index(marker) + (10 if marker == b"\xff\xc0" else 5)
        for number, letter in enumerate(b"RGB"):
            place = start + number * step
            assert jpeg[place] == letter
            jpeg = jpeg[:place] + bytes([number + 1]) + jpeg[place + 1 :]
    return jpeg


def baseline(dicom, frames, photometric):
    return dicom(COLOUR, photometric, JPEGBaseline8Bit, PixelData=encapsulate(frames))


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_baseline_jpeg_with_and_without_jfif(dicom, photometric, subsampling):
    marked = jpegs(subsampling=subsampling)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in marked])
    bare = [without_markers(frame) for frame in marked]
    for frames in (marked, bare):
        assert np.array_equal(pixels_of(baseline(dicom, frames, photometric)), expected)


def test_baseline_jpeg_whose_components_are_named_rgb(dicom):
    frames = jpegs(keep_rgb=True)
    for header in ("RGB", "YBR_FULL_422"):
        shown = pixels_of(baseline(dicom, frames, header))
        assert np.abs(shown.astype(int) - COLOUR).max() < 20, header


def test_adobe_says_rgb_where_the_header_says_ybr(dicom):
    numbered = [numbered_components(frame) for frame in jpegs(keep_rgb=True)]
    frames = [adobe(frame, 0) for frame in numbered]
    for header in ("RGB", "YBR_FULL_422"):
        shown = pixels_of(baseline(dicom, frames, header))
        assert np.abs(shown.astype(int) - COLOUR).max() < 20, header


def test_adobe_says_ybr_where_the_header_says_rgb(dicom):
    """Pillow converts such a JPEG by itself; converting once more would turn the colours."""
    frames = [adobe(without_markers(frame), 1) for frame in jpegs(subsampling=0)]
    for header in ("RGB", "YBR_FULL_422"):
        shown = pixels_of(baseline(dicom, frames, header))
        assert np.abs(shown.astype(int) - COLOUR).max() < 20, header


def test_unmarked_components_are_what_the_header_says(dicom):
    frames = [without_markers(frame) for frame in jpegs(subsampling=0)]
    raw = pixels_of(baseline(dicom, frames, "RGB"))
    expected = [np.asarray(Image.fromarray(frame).convert("YCbCr")) for frame in COLOUR]
    assert np.abs(raw.astype(int) - expected).max() < 20


@pytest.mark.parametrize("name", ["OBXXXX1A_rle_2frame.dcm", "examples_ybr_color.dcm"])
def test_shipped_files_against_pydicom(name, sample):
    path = sample / "dicom" / name
    reference = pixel_array(path)
    dataset = pydicom.dcmread(path)
    frames = frames_of(path.read_bytes())
    assert len(frames) == int(dataset.NumberOfFrames) == len(reference)
    for frame, expected in zip(frames, reference, strict=True):
        shown = expected
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            shown = pydicom.pixels.apply_color_lut(expected, dataset) >> 8
        assert np.abs(frame.pixels.astype(int) - shown).max() <= 2


def test_frames_in_several_fragments_with_an_empty_or_a_wrong_table(dicom):
    frames = [without_markers(frame) for frame in jpegs()]
    pieces = [piece for frame in frames for piece in (frame[:100], frame[100:])]

    def item(data):
        data += b"\0" * (len(data) % 2)
        return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data

    expected = pixels_of(baseline(dicom, frames, "YBR_FULL_422"))
    for table in (b"", struct.pack("<3I", 0, 77, 12), struct.pack("<3I", 0, 4_000_000_000, 5)):
        data = item(table) + b"".join(item(piece) for piece in pieces)
        shown = pixels_of(dicom(COLOUR, "YBR_FULL_422", JPEGBaseline8Bit, PixelData=data))
        assert np.array_equal(shown, expected)


def test_a_size_that_is_not_the_headers_is_refused_before_decoding(dicom):
    (frame,) = list(
        generate_frames(
            pydicom.dcmread(io.BytesIO(compressed(dicom(GREY[:1]), JPEGLSLossless))).PixelData,
            number_of_frames=1,
        )
    )
    forged = frame.replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 65_000, 65_000), 1)
    assert forged != frame
    (bad,) = frames_of(dicom(GREY[:1], syntax=JPEGLSLossless, PixelData=encapsulate([forged])))
    assert "holds compressed pixels of 65000 x 65000" in str(bad.error)


def test_a_file_cut_inside_its_last_frame_keeps_the_others(dicom):
    data = dicom(GREY, PixelData=GREY.tobytes()[: 40 * 48 * 2 + 100])
    frames = frames_of(data)
    assert np.array_equal([frame.pixels for frame in frames[:2]], GREY[:2])
    assert "holds 2 of the 3 frames" in str(frames[2].error)
    with pytest.raises(DecodeError, match="less than one frame"):
        frames_of(dicom(GREY, PixelData=b"\0" * 100))
