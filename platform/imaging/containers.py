"""Which reader a file needs: told by its content, since names lie, and else by its name.

One way in for every container: :func:`open_clip` gives a clip of frames, or says why not.
"""

import zlib
from collections.abc import Callable

from echostill.platform.imaging.dicom import is_bare_dicom, is_dicom, open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.meta_image import open_meta_image
from echostill.platform.imaging.nifti import is_nifti, open_nifti
from echostill.platform.imaging.stills import open_stills
from echostill.platform.imaging.video import open_video

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    *(".gif", ".webp", ".pgm", ".ppm", ".apng"),
)
DICOM_SUFFIXES = (".dcm", ".dicom")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (
    *IMAGE_SUFFIXES,
    *DICOM_SUFFIXES,
    *VIDEO_SUFFIXES,
    *VOLUME_SUFFIXES,
    *ARCHIVE_SUFFIXES,
)
_READERS: dict[str, Callable[[SourceFile, Limits], Clip]] = {
    "image": open_stills,
    "dicom": open_dicom,
    "video": open_video,
    "nifti": open_nifti,
    "meta": open_meta_image,
}
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"P5", b"P6")
_VIDEO_MAGIC = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Windows Media
)
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"avif", b"jxl ")


def container_of(head: bytes, name: str) -> str:
    """Tell a file's container from its first bytes, or else from its name.

    Args:
        head: The first bytes; some kilobytes are enough.
        name: The file's name.

    Returns:
        ``image``, ``dicom``, ``video``, ``nifti``, ``meta``, ``archive``, or ``""``.
    """
    found = _by_content(head)
    if found:
        return found
    lowered = name.lower()
    for kind, suffixes in (
        ("dicom", DICOM_SUFFIXES),
        ("video", VIDEO_SUFFIXES),
        ("nifti", (".nii", ".nii.gz")),
        ("meta", (".mha", ".mhd")),
        ("archive", ARCHIVE_SUFFIXES),
        ("image", IMAGE_SUFFIXES),
    ):
        if lowered.endswith(suffixes):
            return kind
    return ""


def open_clip(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a file with the reader that its content asks for.

    Raises:
        DecodeError: The file is empty, unreadable, damaged, too large, or nothing that is read.
    """
    head = source.head()
    if not head:
        raise DecodeError("is empty (0 bytes)")
    kind = container_of(head, source.name)
    if kind == "archive":
        raise DecodeError("is an archive inside an archive, which is not read")
    reader = _READERS.get(kind)
    if reader is None:
        raise DecodeError("is in no known format")
    return reader(source, limits or Limits())


def _by_content(head: bytes) -> str:
    if is_dicom(head):
        return "dicom"
    if head.startswith(_IMAGE_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if _is_video(head):
        return "video"
    inner = _unpacked(head) if head[:2] == b"\x1f\x8b" else head
    if is_nifti(inner):
        return "nifti"
    if inner[257:262] == b"ustar":
        return "archive"
    if b"ElementDataFile" in head and b"DimSize" in head:
        return "meta"
    return "dicom" if is_bare_dicom(head) else ""


def _is_video(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    transport = head[:1] == head[188:189] == head[376:377] == b"\x47"
    return riff or transport or head.startswith(_VIDEO_MAGIC)


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 1024)
    except zlib.error:
        return b""
