import gzip
import io
import tarfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.containers import READERS, SUFFIXES, container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError

KINDS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)


def image(kind):
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, kind)
    return sink.getvalue()


def archive():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return sink.getvalue()


def volume():
    return nibabel.Nifti1Image(PIXELS[..., None], np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        *((image(kind), "image") for kind in KINDS),
        (archive(), "archive"),
        (gzip.compress(archive(), mtime=0), "archive"),
        (volume(), "nifti"),
        (gzip.compress(volume(), mtime=0), "nifti"),
        (b"NDims = 2\nDimSize = 2 2\nElementDataFile = LOCAL\n", "meta"),
        (b"\0\0\0\x18ftypisom", "video"),
        (b"\0\0\0\x18ftypavif", "image"),
        (b"\0\0\0\x18ftypheic", "heic"),
        (b"\0\0\0\x18ftypmif1", "heic"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "image"),
        (b"\xff\x4f\xff\x51\0\x2f", "image"),
        (b"NRRD0004\ntype: uchar\n", "nrrd"),
        (b"ObjectType = Image\nDimSize = 2 2 9\nElementType = MET_UCHAR\n", "meta"),
        (b"\0\0\0\x01\x67\x64", "video"),
        (b"\0\0\x01\x67\x64", "video"),
        (b"\0\0\x01\0\x01\0", ""),  # an icon
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", ""),
        (b"plain text", ""),
        (b"", ""),
        (gzip.compress(b"plain text", mtime=0), ""),
        (b"\x1f\x8b" + b"\xff" * 20, ""),
    ],
)
def test_content_tells_the_container_whatever_the_name(data, kind):
    for name in ("a", "a.xyz"):
        assert container_of(data, name) == kind
    if kind:
        assert container_of(data, "a.dcm") == container_of(data, "a.png") == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("A.DCM", "dicom"), ("a.mp4", "video"), ("a.nii.gz", "nifti"), ("a.mhd", "meta")],
)
def test_the_name_tells_where_content_is_mute(name, kind):
    assert container_of(b"mute", name) == kind


def test_dicom_by_content(dicom):
    data = dicom(PIXELS[None])
    assert container_of(data, "a.png") == "dicom"
    assert container_of(data[132:], "IM0001") == "dicom"


def test_every_container_opens_under_a_lying_name(dicom):
    for data in (image("PNG"), volume(), gzip.compress(volume()), dicom(PIXELS[None])):
        clip = open_clip(SourceFile("lies.mp4", data=data))
        (frame,) = clip.decode([0])
        assert frame.pixels.shape in ((12, 16), (16, 12))


def test_names_and_suffixes_are_each_one_readers():
    assert len({reader.name for reader in READERS}) == len(READERS)
    assert len(set(SUFFIXES)) == len(SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    for reader in READERS:
        for suffix in reader.suffixes:
            assert container_of(b"mute", f"A{suffix.upper()}") == reader.name


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.png", b"", "is empty"),
        ("a", b"text", "is in no known format"),
        ("a.png", b"text", "not an image in a known format"),
        ("a.mp4", b"text", "truncated video"),
        ("a.nii", b"text", "no readable NIfTI"),
        ("a.mha", b"text", "no MetaImage"),
        ("a.dcm", b"text", "not a readable DICOM file"),
        ("a.tar", archive(), "archive of files"),
    ],
)
def test_what_is_not_read_is_said(name, data, said):
    with pytest.raises(DecodeError, match=said):
        open_clip(SourceFile(name, data=data))
