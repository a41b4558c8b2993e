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
    window = {"WindowCenter": 0 if kind is np.int16 else 32_768, "WindowWidth": 65_536}
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


# --- the codestream decides ----------------------------------------------------------------------

TISSUE = np.repeat(np.abs(GREY.astype(int) - 128).astype(np.uint8)[..., None], 3, axis=3)
TISSUE[:, 10:14, 10:20] = (220, 30, 40)
TISSUE[:, 20:24, 30:36] = (20, 60, 230)
STORED = {
    "RGB": TISSUE,
    "YBR_FULL": np.stack([np.array(Image.fromarray(f).convert("YCbCr")) for f in TISSUE]),
}
HEADERS = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
    "MONOCHROME2",
)


def fragments_of(data, count=3):
    dataset = pydicom.dcmread(io.BytesIO(data))
    return list(generate_frames(dataset.PixelData, number_of_frames=count))


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000], ids=lambda uid: uid.name)
def test_jpeg_2000_with_a_colour_transform_of_its_own_is_rgb(dicom, syntax, header):
    options = {"j2k_cr": [2]} if syntax == JPEG2000 else {}
    right = compressed(dicom(TISSUE, "RGB"), syntax, **options)
    data = dicom(TISSUE, header, syntax, PixelData=encapsulate(fragments_of(right)))
    assert np.array_equal(pixels_of(data), pixels_of(right))
    assert np.abs(pixels_of(right).astype(int) - TISSUE).mean() < 2


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("stored", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_header_over_a_codestream_that_it_was_not_written_for(dicom, syntax, stored, header):
    """Neither codestream says what its components are; the grey of the picture does."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED[stored], "RGB")))
    dataset.PhotometricInterpretation = stored
    dataset.compress(syntax, generate_instance_uid=False)
    data = dicom(TISSUE, header, syntax, PixelData=encapsulate(fragments_of(saved(dataset))))
    assert np.abs(pixels_of(data).astype(int) - TISSUE).max() <= 4


def test_without_grey_the_header_is_believed(dicom):
    """Noise in all channels tells nothing."""
    noise = RANDOM.integers(0, 256, (1, 40, 48, 3), dtype=np.uint8)
    packed = fragments_of(compressed(dicom(noise, "RGB"), JPEGLSLossless), 1)
    shown = {
        header: pixels_of(dicom(noise, header, JPEGLSLossless, PixelData=encapsulate(packed)))
        for header in ("RGB", "YBR_FULL")
    }
    assert np.array_equal(shown["RGB"], noise)
    assert np.array_equal(shown["YBR_FULL"], pixels_of(dicom(noise, "YBR_FULL")))


def test_components_under_a_header_of_another_count(dicom):
    (grey,) = fragments_of(compressed(dicom(GREY[:1]), JPEGLSLossless), 1)
    data = dicom(TISSUE[:1], "RGB", JPEGLSLossless, PixelData=encapsulate([grey]))
    assert np.array_equal(pixels_of(data), GREY[:1])
    for syntax, frame in ((JPEGBaseline8Bit, jpegs()[0]), (JPEGLSLossless, None)):
        colour = frame or fragments_of(compressed(dicom(TISSUE[:1], "RGB"), JPEGLSLossless), 1)[0]
        (bad,) = frames_of(dicom(GREY[:1], syntax=syntax, PixelData=encapsulate([colour])))
        assert "picture of 3 components, and the header says 1" in str(bad.error)


def test_colour_planes_in_the_header_mean_nothing_to_a_codestream(dicom):
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        packed = fragments_of(compressed(dicom(TISSUE, "RGB"), syntax))
        header = {"PlanarConfiguration": 1, "PixelData": encapsulate(packed)}
        assert np.array_equal(pixels_of(dicom(TISSUE, "RGB", syntax, **header)), TISSUE)


def test_marked_lossless_jpeg_is_what_its_marker_says(dicom, tmp_path):
    for stored, transform in (("RGB", 0), ("YBR_FULL", 1)):
        plain = dicom(STORED[stored], "RGB")
        packed = fragments_of(compressed_by_gdcm(plain, JPEGLosslessSV1, tmp_path))
        marked = [saying(without_letters(frame), transform) for frame in packed]
        for header in ("RGB", "YBR_FULL"):
            data = dicom(TISSUE, header, JPEGLosslessSV1, PixelData=encapsulate(marked))
            assert np.abs(pixels_of(data).astype(int) - TISSUE).max() <= 4, (stored, header)


def saying(jpeg, transform):
    """Set the transform of the Adobe marker, which GDCM writes too."""
    place = jpeg.find(b"Adobe")
    if place < 0:
        return adobe(jpeg, transform)
    return jpeg[: place + 11] + bytes([transform]) + jpeg[place + 12 :]


def without_letters(jpeg):
    """Name the components of a lossless JPEG 1, 2, 3, if they are named R, G, B."""
    place = jpeg.index(b"\xff\xc3") + 10
    return jpeg if jpeg[place] != ord("R") else numbered(jpeg, place)


def numbered(jpeg, place):
    scan = jpeg.index(b"\xff\xda") + 5
    changed = bytearray(jpeg)
    for number in range(3):
        changed[place + 3 * number] = number + 1
        changed[scan + 2 * number] = number + 1
    return bytes(changed)


# --- frames that are whole, and frames that are not ----------------------------------------------


def lossless_jpegs(dicom, folder):
    return fragments_of(compressed_by_gdcm(dicom(GREY), JPEGLosslessSV1, folder))


@pytest.fixture(
    params=["baseline", "baseline colour", "lossless", "JPEG-LS", "JPEG 2000"], scope="module"
)
def kind(request, dicom, tmp_path_factory):
    """A way of compressing: its syntax, the values, and the frames without padding."""
    if request.param == "baseline":
        sinks = [io.BytesIO() for _ in GREY]
        for sink, frame in zip(sinks, GREY, strict=True):
            Image.fromarray(frame).save(sink, "JPEG", quality=95)
        return JPEGBaseline8Bit, GREY, [sink.getvalue() for sink in sinks]
    if request.param == "baseline colour":
        return JPEGBaseline8Bit, COLOUR, jpegs()
    if request.param == "lossless":
        frames = lossless_jpegs(dicom, tmp_path_factory.mktemp("gdcm"))
        return JPEGLosslessSV1, GREY, [frame.rstrip(b"\0") for frame in frames]
    syntax = JPEGLSLossless if request.param == "JPEG-LS" else JPEG2000Lossless
    frames = fragments_of(compressed(dicom(GREY), syntax))
    return syntax, GREY, [frame.rstrip(b"\0") for frame in frames]


def file_of(dicom, kind, frames):
    syntax, values, _ = kind
    photometric = "YBR_FULL_422" if values.ndim == 4 else "MONOCHROME2"
    return dicom(values, photometric, syntax, PixelData=encapsulate(frames))


def test_a_frame_without_its_end_is_read_where_all_of_it_is_there(dicom, kind):
    whole = pixels_of(file_of(dicom, kind, kind[2]))
    assert all(frame.endswith(b"\xff\xd9") for frame in kind[2])
    for frames in (
        [frame[:-2] for frame in kind[2]],
        [frame + b"\x12\x34" * 90 for frame in kind[2]],  # and one with something behind it
    ):
        assert np.array_equal(pixels_of(file_of(dicom, kind, frames)), whole)


@pytest.mark.parametrize("lost", [6, 20, 200])
def test_a_frame_that_lacks_some_of_its_data_is_refused(dicom, kind, lost):
    cut = [frame[: max(len(frame) - lost, len(frame) // 2)] for frame in kind[2]]
    frames = frames_of(file_of(dicom, kind, cut))
    assert all(frame.pixels is None for frame in frames)
    assert all("decoded" in str(frame.error) or "cut off" in str(frame.error) for frame in frames)


def test_empty_fragments_and_odd_ones(dicom):
    frames = [without_markers(jpeg) for jpeg in jpegs()]
    expected = pixels_of(baseline(dicom, frames, "YBR_FULL_422"))
    odd = [frame if len(frame) % 2 else frame + b"\0" for frame in frames]

    def item(data, counted):
        padded = data + b"\0" * (len(data) % 2)
        length = len(data) if not counted else len(padded)
        return b"\xfe\xff\x00\xe0" + struct.pack("<I", length) + padded

    for pixels in (
        item(b"", True) + b"".join(item(frame, False) for frame in odd),
        item(b"", True) + item(b"", True).join(item(frame, True) for frame in frames),
    ):
        data = dicom(COLOUR, "YBR_FULL_422", JPEGBaseline8Bit, PixelData=pixels)
        assert np.array_equal(pixels_of(data), expected)


def test_more_jpegs_than_the_header_counts_are_all_read(dicom):
    frames = jpegs()
    expected = pixels_of(baseline(dicom, frames, "YBR_FULL_422"))
    data = dicom(
        COLOUR, "YBR_FULL_422", JPEGBaseline8Bit, PixelData=encapsulate(frames), NumberOfFrames=1
    )
    assert np.array_equal(pixels_of(data), expected)


def test_an_empty_fragment_that_stands_for_a_frame_is_that_frames_error(dicom):
    first, _, last = jpegs()
    items = b"".join(
        b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame)) + frame
        for frame in (b"", first + b"\0" * (len(first) % 2), b"", last + b"\0" * (len(last) % 2))
    )
    data = dicom(COLOUR, "YBR_FULL_422", JPEGBaseline8Bit, PixelData=items)
    assert [frame.error is None for frame in frames_of(data)] == [True, False, True]


def test_damage_is_said_in_words(dicom, kind):
    damaged = [frame[: len(frame) // 3] + b"\0" * 40 for frame in kind[2]]
    for frame in frames_of(file_of(dicom, kind, damaged)):
        text = str(frame.error)
        assert "Process" in text or "JPEG" in text or "cut off" in text
        for word in (
            "pillow",
            "gdcm:",
            "Unable",
            "NoneType",
            "broadcast",
            "plugin",
            "opj",
            "ctype",
        ):
            assert word not in text


def test_run_lengths_that_are_too_long_end_no_worker(dicom):
    """The decoder of RLE panics over them, which is an exception that nothing else catches."""
    values = np.zeros((3, 8, 8), np.uint16)
    good = pydicom.dcmread(io.BytesIO(dicom(values)))
    good.compress(RLELossless, generate_instance_uid=False)
    frames = list(generate_frames(good.PixelData, number_of_frames=3))
    segment = bytes([127]) + bytes(128)  # twice the bytes of a plane of 8 x 8
    header = struct.pack("<16I", 2, 64, 64 + len(segment), *([0] * 13))
    frames[1] = header + segment + segment
    first, bad, last = frames_of(dicom(values, syntax=RLELossless, PixelData=encapsulate(frames)))
    assert first.error is None
    assert last.error is None
    assert str(bad.error) == "cannot be decoded: its compressed data is damaged (RLE Lossless)"


def test_a_file_format_around_jpeg_2000_is_no_trap(dicom):
    """In a damaged box of it, readers of its parameters run in circles."""
    sink = io.BytesIO()
    Image.fromarray(GREY[0]).save(sink, "JPEG2000", irreversible=False)
    for frame in (sink.getvalue(), sink.getvalue().replace(b"jp2h", b"\0\0\0\0")):
        data = dicom(GREY[:1], syntax=JPEG2000Lossless, PixelData=encapsulate([frame]))
        assert np.array_equal(pixels_of(data), GREY[:1])
