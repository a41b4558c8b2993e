"""The table of readers, and which one a file needs: told by its content, since names lie.

One way in for every container: :func:`open_clip` gives a clip of frames, or says why not.
"""

from echostill.platform.imaging import dicom, foreign_stills, stills, video
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.reader import Reader, unpacked_head
from echostill.platform.imaging.volumes import meta_image, nifti, nrrd


def _is_archive(head: bytes) -> bool:
    return unpacked_head(head)[257:262] == b"ustar"


def _refuse_archive(source: SourceFile, limits: Limits) -> Clip:
    raise DecodeError("is an archive inside an archive, which is not read")


# Archives hold files rather than frames: ingest goes through their members.
ARCHIVE = Reader(
    name="archive",
    suffixes=(".tar", ".tar.gz", ".tgz"),
    sniff=_is_archive,
    open=_refuse_archive,
    title="WebDataset (`.tar`, also compressed)",
    reads="images and cines with the `.json` of their key",
    notes="other members are ignored",
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
    meta_image.READER,
)

SUFFIXES = tuple(suffix for reader in READERS for suffix in reader.suffixes)
IMAGE_SUFFIXES = tuple(suffix for reader in READERS if reader.still for suffix in reader.suffixes)
ARCHIVE_SUFFIXES = ARCHIVE.suffixes


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
    by_content = (reader for reader in READERS if reader.sniff(head))
    by_name = (reader for reader in READERS if lowered.endswith(reader.suffixes))
    return next(by_content, None) or next(by_name, None)
