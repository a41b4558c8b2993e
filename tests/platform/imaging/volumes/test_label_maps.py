"""Volumes of labels: read as stored, whatever their type and packing; anything else is refused."""

import numpy as np
import pytest

from echostill.platform.imaging.containers import open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.volumes.label_maps import read_label_map

nibabel = pytest.importorskip("nibabel")


def nifti(values, dtype, suffix=".nii.gz"):
    """A NIfTI as nibabel writes it; its axes are x, y, slice."""
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(dtype), np.eye(4))
    data = image.to_bytes()
    if suffix.endswith(".gz"):
        import gzip

        data = gzip.compress(data)
    return SourceFile(f"labels{suffix}", data=data)


def meta(values, kind="MET_UCHAR", dtype="<u1", orientation=""):
    sizes = " ".join(str(size) for size in values.shape[::-1])
    turned = f"UltrasoundImageOrientation = {orientation}\n" if orientation else ""
    header = (
        f"ObjectType = Image\nNDims = {values.ndim}\nDimSize = {sizes}\nElementType = {kind}\n"
        f"{turned}ElementDataFile = LOCAL\n"
    )
    return SourceFile("labels.mha", data=header.encode() + values.astype(dtype).tobytes())


@pytest.fixture
def labels():
    values = np.zeros((3, 5, 8), dtype=np.int64)
    values[0, 1:3, 2:7] = 1
    values[1, 2:5, 1:4] = 3
    values[2, :2, :] = 200
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_labels_are_read_as_stored(labels, dtype, suffix):
    assert np.array_equal(read_label_map(nifti(labels, dtype, suffix)), labels)


@pytest.mark.parametrize(("kind", "dtype"), [("MET_UCHAR", "<u1"), ("MET_USHORT", "<u2")])
def test_meta_images_labels_are_read_as_stored(labels, kind, dtype):
    assert np.array_equal(read_label_map(meta(labels, kind, dtype)), labels)
    assert np.array_equal(read_label_map(meta(labels[0], kind, dtype)), labels[:1])


def test_labels_are_turned_as_their_image_is(labels):
    picture = np.random.default_rng(0).integers(0, 256, labels.shape)
    for orientation in ("UF", "MN", "UN"):
        turned = read_label_map(meta(labels, orientation=orientation))
        clip = open_clip(meta(picture, orientation=orientation))
        shown = np.stack([frame.pixels for frame in clip.decode(range(3))])
        flips = {"UF": np.s_[:, :, ::-1], "MN": np.s_[:, ::-1], "UN": np.s_[:, ::-1, ::-1]}
        assert np.array_equal(turned, labels[flips[orientation]])
        assert np.array_equal(shown, picture[flips[orientation]])


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan])
def test_values_that_are_no_labels_are_refused(labels, value):
    wrong = labels.astype(np.float64)
    wrong[0, 0, 0] = value
    with pytest.raises(DecodeError, match="no labels"):
        read_label_map(nifti(wrong, np.float32))


def test_a_truncated_volume_is_refused(labels):
    whole = meta(labels)
    short = SourceFile("labels.mha", data=whole.data[:-9])
    with pytest.raises(DecodeError, match="2 of the 3 slices"):
        read_label_map(short)
    with pytest.raises(DecodeError, match="no MetaImage"):
        read_label_map(SourceFile("labels.mha", data=b"not a volume"))
