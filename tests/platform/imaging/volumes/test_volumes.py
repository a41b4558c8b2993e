"""Volumes against nibabel and against arrays written by hand."""

import gzip
import struct
import zlib

import nibabel
import numpy as np
import pytest

from echostill.platform.imaging.containers import container_of
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError, NoImageError
from echostill.platform.imaging.volumes.meta_image import open_meta_image
from echostill.platform.imaging.volumes.nifti import is_nifti, open_nifti

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (7, 5, 4), dtype=np.uint8)  # x, y, z


def nifti(values, kind=nibabel.Nifti1Image, packed=False):
    data = kind(values, np.eye(4)).to_bytes()
    return gzip.compress(data) if packed else data


def meta(values, kind="MET_UCHAR", packed=False, **fields):
    """Write a MetaImage; ``values`` (z, y, x[, channels]) as they lie in the file."""
    shape = values.shape[:3]
    data = zlib.compress(values.tobytes()) if packed else values.tobytes()
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "DimSize": " ".join(str(size) for size in reversed(shape)),
        "ElementType": kind,
        "CompressedData": str(packed),
        **({"ElementNumberOfChannels": "3"} if values.ndim == 4 else {}),
        **fields,
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{name} = {value}\n" for name, value in lines.items()).encode() + data


def frames_of(reader, data, **limits):
    clip = reader(SourceFile("v", data=data), Limits(**limits))
    return list(clip.decode(range(clip.frames)))


def stack(frames):
    assert not [str(frame.error) for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def scaled(values):
    values = values.astype(np.float64)
    return np.rint((values - values.min()) * (255 / (values.max() - values.min())))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
def test_slices_of_bytes_are_exact(kind, packed):
    data = nifti(BYTES, kind, packed)
    assert is_nifti(gzip.decompress(data) if packed else data)
    assert np.array_equal(stack(frames_of(open_nifti, data)), BYTES.transpose(2, 1, 0))


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<i4", "<f4", ">f8", "<u4"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_other_types_are_scaled_by_the_volumes_range(dtype, kind):
    values = (BYTES.astype(np.float64) * 37 + 5).astype(dtype)
    image = kind(values, np.eye(4))
    if dtype[0] == ">":
        image = kind(values, np.eye(4), image.header.as_byteswapped(">"))
    image.header.set_slope_inter(2.0, -300.0)
    expected = scaled(
        nibabel.Nifti1Image.from_bytes(image.to_bytes()).get_fdata()
        if kind is nibabel.Nifti1Image
        else nibabel.Nifti2Image.from_bytes(image.to_bytes()).get_fdata()
    )
    shown = stack(frames_of(open_nifti, image.to_bytes()))
    assert np.array_equal(shown, expected.transpose(2, 1, 0))


def test_colours_and_more_axes():
    colour = np.zeros((7, 5, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    channels = RANDOM.integers(0, 256, (7, 5, 2, 3), dtype=np.uint8)
    for number, name in enumerate("RGB"):
        colour[name] = channels[..., number]
    assert np.array_equal(
        stack(frames_of(open_nifti, nifti(colour))), channels.transpose(2, 1, 0, 3)
    )
    series = RANDOM.integers(0, 256, (7, 5, 2, 3), dtype=np.uint8)
    expected = series.reshape(7, 5, 6, order="F").transpose(2, 1, 0)
    assert np.array_equal(stack(frames_of(open_nifti, nifti(series))), expected)
    flat = frames_of(open_nifti, nifti(series[:, :, 0, 0]))
    assert np.array_equal(stack(flat), series[None, :, :, 0, 0].transpose(0, 2, 1))


def test_a_slice_of_nan_is_its_own_failure_and_a_volume_of_nan_is_refused():
    values = BYTES.astype(np.float32)
    values[:, :, 1] = np.nan
    values[0, 0, 0] = np.inf
    frames = frames_of(open_nifti, nifti(values))
    assert [frame.error is None for frame in frames] == [True, False, True, True]
    assert "no finite value" in str(frames[1].error)
    with pytest.raises(DecodeError, match="without a finite value"):
        frames_of(open_nifti, nifti(np.full((4, 4, 4), np.nan, np.float32)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_off_volume_gives_its_whole_slices(packed):
    noise = RANDOM.integers(0, 256, (70, 50, 4), dtype=np.uint8)
    data = nifti(noise, packed=packed)
    frames = frames_of(open_nifti, data[:-6000])
    assert np.array_equal(frames[0].pixels, noise[:, :, 0].T)
    assert frames[-1].error is not None
    assert len(frames) <= 4


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (40, b"\x09\0", "9 dimensions"),
        (40, b"\x01\0", "at least two sizes"),
        (42, b"\0\0", "at least two sizes"),
        (70, b"\x20\0", "data type 32"),
        (344, b"ni1", "another file"),
        (344, b"xx", "no readable NIfTI"),
        (108, b"\0\0\x80\xbf", "begins at byte"),
    ],
)
def test_headers_that_cannot_be_right_are_refused(offset, value, said):
    data = bytearray(nifti(BYTES))
    data[offset : offset + len(value)] = value
    with pytest.raises(DecodeError, match=said):
        frames_of(open_nifti, bytes(data))


@pytest.mark.parametrize(
    ("dim", "said"),
    [((3, 30_000, 30_000, 4), "max_pixels"), ((4, 7, 5, 30_000, 30_000), "max_frames")],
)
def test_forged_sizes_are_refused_before_reading(dim, said):
    data = bytearray(nifti(BYTES))
    struct.pack_into(f"<{len(dim)}h", data, 40, *dim)
    with pytest.raises(DecodeError, match=said):
        frames_of(open_nifti, bytes(data))


def test_damaged_gzip_is_refused():
    with pytest.raises(DecodeError, match="damaged or truncated"):
        frames_of(open_nifti, b"\x1f\x8b" + b"\xff" * 40)


@pytest.mark.parametrize("packed", [False, True])
def test_meta_images(packed):
    values = RANDOM.integers(0, 256, (4, 5, 7), dtype=np.uint8)
    assert np.array_equal(stack(frames_of(open_meta_image, meta(values, packed=packed))), values)
    words = values.astype("<i2") * 37 - 900
    shown = stack(frames_of(open_meta_image, meta(words, "MET_SHORT", packed)))
    assert np.array_equal(shown, scaled(words))
    large = words.astype(">i2")
    shown = stack(
        frames_of(open_meta_image, meta(large, "MET_SHORT", packed, BinaryDataByteOrderMSB="True"))
    )
    assert np.array_equal(shown, scaled(words))
    colour = RANDOM.integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(stack(frames_of(open_meta_image, meta(colour, packed=packed))), colour)


def test_a_large_packed_meta_image_is_read_piece_by_piece():
    values = RANDOM.integers(0, 256, (3, 700, 900), dtype=np.uint8)
    assert np.array_equal(stack(frames_of(open_meta_image, meta(values, packed=True))), values)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"ObjectType = Image\n", "does not end with ElementDataFile"),
        (b"x" * 9000, "no MetaImage"),
        (b"DimSize = 3 4\nElementType = MET_UCHAR\nElementDataFile = a.raw\n", "another file"),
        (b"DimSize = 3 4\nElementType = MET_ODD\nElementDataFile = LOCAL\n", "MET_ODD"),
        (b"DimSize = x\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "wrong or not read"),
    ],
)
def test_wrong_meta_headers_are_refused(data, said):
    with pytest.raises(DecodeError, match=said):
        frames_of(open_meta_image, data)


def test_a_cut_off_meta_image():
    values = RANDOM.integers(0, 256, (4, 50, 70), dtype=np.uint8)
    for packed in (False, True):
        frames = frames_of(open_meta_image, meta(values, packed=packed)[:-5000])
        assert np.array_equal(frames[0].pixels, values[0])
        assert frames[-1].error is not None


# --- colours, labels, outliers -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_colours_as_the_fifth_axis(kind, packed, times):
    values = RANDOM.integers(0, 256, (7, 5, 4, times, 3), dtype=np.uint8)
    image = kind(values, np.eye(4))
    image.header.set_intent("vector")
    data = gzip.compress(image.to_bytes()) if packed else image.to_bytes()
    slices = values.transpose(3, 2, 1, 0, 4).reshape(4 * times, 5, 7, 3)
    assert np.array_equal(stack(frames_of(open_nifti, data)), slices)


def test_transparency_as_the_fifth_axis_is_ignored_and_deep_colours_share_their_range():
    values = RANDOM.integers(0, 256, (7, 5, 4, 1, 4), dtype=np.uint8)
    expected = values.transpose(2, 1, 0, 3, 4)[..., 0, :3]
    assert np.array_equal(stack(frames_of(open_nifti, nifti(values))), expected)
    deep = (values[..., :3].astype(np.uint16) * 16).astype("<u2")
    expected = scaled(deep).transpose(2, 1, 0, 3, 4)[..., 0, :]
    assert np.array_equal(stack(frames_of(open_nifti, nifti(deep))), expected)


def test_vectors_that_are_directions_are_no_pictures():
    image = nibabel.Nifti1Image(RANDOM.normal(size=(7, 5, 4, 1, 3)).astype(np.float32), np.eye(4))
    image.header.set_intent("vector")
    with pytest.raises(DecodeError, match="volume of vectors"):
        frames_of(open_nifti, image.to_bytes())


def labels(*values):
    made = np.zeros((40, 30, 6))
    for number, value in enumerate(values):
        made[5 + 3 * number : 30, 5 : 25 - 4 * number, 1 + number :] = value
    return made


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (255,)])
def test_a_volume_of_labels_is_refused_with_all_its_slices(dtype, values):
    data = nifti(labels(*values).astype(dtype))
    with pytest.raises(NoImageError, match=r"only the values 0, .* a mask or label map"):
        frames_of(open_nifti, data)


def test_volumes_that_are_no_labels():
    dark = np.minimum(RANDOM.rayleigh(4, (40, 30, 6)), 30).astype(np.uint8)
    for values in (dark, np.zeros((9, 8, 3), np.uint8), labels(1) + dark):
        assert len(stack(frames_of(open_nifti, nifti(values.astype(np.uint8))))) == values.shape[2]
    # A picture behind slices of a scanner's mask.
    mixed = labels(1)
    mixed[..., -1] = RANDOM.integers(0, 256, (40, 30))
    assert len(frames_of(open_nifti, nifti(mixed.astype(np.uint8)))) == 6


def test_a_few_outliers_do_not_set_a_volumes_range():
    values = RANDOM.integers(1000, 2000, (40, 50, 4)).astype(np.float32)
    values[0, 0, 0], values[1, 0, 0] = 1000, 1999
    clean = stack(frames_of(open_nifti, nifti(values)))
    values[3, 3, 2], values[4, 4, 2] = 1e30, -1e30
    shown = stack(frames_of(open_nifti, nifti(values)))
    assert (shown[2, 3, 3], shown[2, 4, 4]) == (255, 0)
    shown[2, 3, 3], shown[2, 4, 4] = clean[2, 3, 3], clean[2, 4, 4]
    assert np.abs(shown.astype(int) - clean).max() <= 2


# --- tracked sweeps ------------------------------------------------------------------------------


def sweep(values, orientation="MFA", frames=None):
    """A PLUS sequence: lines on each frame stand before the last of the header."""
    lines = {
        f"Seq_Frame{number:04}_{name}": "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"
        for number in range(frames or len(values))
        for name in ("ProbeToTracker", "ProbeToTrackerStatus", "ImageStatus", "Timestamp")
    }
    return meta(values, UltrasoundImageOrientation=orientation, **lines)


def test_a_sweep_with_a_line_for_everything_of_each_frame():
    values = RANDOM.integers(0, 256, (400, 5, 7), dtype=np.uint8)
    data = sweep(values)
    assert data.index(b"ElementDataFile") > 60_000
    assert container_of(data[:4096], "IM0001") == "meta"
    assert np.array_equal(stack(frames_of(open_meta_image, data)), values)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        ("MFA", lambda frames: frames),
        ("MF", lambda frames: frames),
        ("UFA", lambda frames: frames[:, :, ::-1]),
        ("MNA", lambda frames: frames[:, ::-1]),
        ("UNA", lambda frames: frames[:, ::-1, ::-1]),
        ("FMA", lambda frames: frames.transpose(0, 2, 1)),
        ("NUA", lambda frames: frames[:, ::-1, ::-1].transpose(0, 2, 1)),
        ("", lambda frames: frames),
        ("XX", lambda frames: frames),
    ],
)
def test_a_stored_direction_is_turned_back(orientation, stored):
    frames = RANDOM.integers(0, 256, (4, 5, 7), dtype=np.uint8)
    data = sweep(np.ascontiguousarray(stored(frames)), orientation)
    assert np.array_equal(stack(frames_of(open_meta_image, data)), frames)


def test_numbers_as_text_are_refused():
    with pytest.raises(DecodeError, match="numbers are text"):
        frames_of(open_meta_image, meta(BYTES.transpose(2, 1, 0), BinaryData="False"))
