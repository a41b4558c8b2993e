"""The table of readers, and which one a file needs: told by its content, since names lie.

One way in for every container: :func:`open_clip` gives a clip of frames, or says why not.
"""

from echostill.platform.imaging import dicom, foreign_stills, stills, video
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.packed import (
    PACKED_SUFFIXES,
    inner_name,
    is_packed,
    unpacked,
    unpacked_head,
)
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.volumes import meta_image, nifti, nrrd

_ZIP = (b"PK\3\4", b"PK\5\6")  # the second of one without members


def _is_archive(head: bytes) -> bool:
    return head.startswith(_ZIP) or unpacked_head(head)[257:262] == b"ustar"


def _refuse_archive(source: SourceFile, limits: Limits) -> Clip:
    raise DecodeError("is an archive of files, not one picture or cine")


def _is_packed(head: bytes) -> bool:
    """Return whether a file is packed, and what is inside is read, as far as its beginning tells.

    bzip2 tells nothing before its first block of up to 900 kB.
    """
    if not is_packed(head):
        return False
    inside = unpacked_head(head)
    told = any(reader.sniff(inside) for reader in READERS if reader is not PACKED)
    return told if inside else head.startswith(b"BZh")


def _open_packed(source: SourceFile, limits: Limits) -> Clip:
    return open_clip(unpacked(source, limits), limits)


# Archives hold files rather than frames: ingest goes through their members.
ARCHIVE = Reader(
    name="archive",
    suffixes=(
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
        ".zip",
    ),
    sniff=_is_archive,
    open=_refuse_archive,
    title="WebDataset and other archives (`.tar`, also packed with gzip, bzip2 or xz; `.zip`)",
    reads="images and cines with the `.json` of their key, archives inside them",
    notes="other members are passed over and counted; encrypted members are quarantined",
)
# Comes after what packs by itself, as NIfTI does.
PACKED = Reader(
    name="packed",
    suffixes=(),
    sniff=_is_packed,
    open=_open_packed,
    title="any of these packed with gzip, bzip2 or xz (`.dcm.gz`)",
    reads="as the file inside",
    notes="unpacked in memory",
)

# Asked in this order. DICOM comes first, as any other format may stand in its preamble; the search
# for words of a MetaImage last, as an archive may begin with one.
READERS = (
    dicom.READER,
    stills.READER,
    foreign_stills.HEIC,
    foreign_stills.JPEG_XL,
    video.READER,
    nifti.READER,
    nrrd.READER,
    ARCHIVE,
    PACKED,
    meta_image.READER,
)

SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
IMAGE_SUFFIXES = tuple(suffix for reader in READERS if reader.still for suffix in reader.suffixes)
ARCHIVE_SUFFIXES = ARCHIVE.suffixes


def has_known_suffix(name: str) -> bool:
    """Return whether a name ends as those of a format do, or of one that was packed."""
    lowered = name.lower()
    return lowered.endswith(SUFFIXES) or (
        lowered.endswith(PACKED_SUFFIXES) and inner_name(lowered).endswith(SUFFIXES)
    )


def container_of(head: bytes, name: str) -> str:
    """Tell a file's format from its first bytes, or else from its name.

    Args:
        head: The first bytes; some kilobytes are enough.
        name: The file's name; ``""`` asks the content alone.

    Returns:
        The name of the reader, ``""`` where no format fits.
    """
    reader = _reader_of(head, name)
    return "" if reader is None else reader.name


def open_clip(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a file with the reader that its content asks for.

    Raises:
        DecodeError: The file is empty, unreadable, damaged, too large, or nothing that is read.
    """
    head = source.head()
    if not head:
        raise DecodeError("is empty (0 bytes)")
    reader = _reader_of(head, source.name)
    if reader is None:
        raise DecodeError("is in no known format")
    return reader.open(source, limits or Limits())


def _reader_of(head: bytes, name: str) -> Reader | None:
    lowered = name.lower()
    found = next((reader for reader in READERS if reader.sniff(head)), None)
    if found is PACKED and lowered.endswith(ARCHIVE.suffixes):
        return ARCHIVE  # the first bytes of bzip2 do not tell what is inside
    by_name = (reader for reader in READERS if lowered.endswith(reader.suffixes))
    return found or next(by_name, None)
