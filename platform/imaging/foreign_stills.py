"""Pictures that Pillow does not read by itself: HEIC with a package of its own, JPEG XL by name."""

from collections.abc import Iterator, Sequence

from PIL import Image

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import DecodeError, check_size, picture_of
from echostill.platform.imaging.reader import Reader

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
_JPEG_XL = b"\0\0\0\x0cJXL \r\n\x87\n"  # in its container; bare it begins with two bytes alone


def open_heic(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a HEIC picture (of several, the first), if ``pillow-heif`` is installed.

    Raises:
        DecodeError: It is not, or the file is damaged or too large.
    """
    limits = limits or Limits()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise DecodeError(
            "is a HEIC picture, whose reader is not installed: pip install pillow-heif"
        ) from None
    register_heif_opener()
    source.read(limits.max_bytes)  # refuses what is larger

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            try:
                with source.opened() as file:
                    image = Image.open(file, formats=("HEIF",))
                    check_size(image.width, image.height, limits.max_pixels)
                    yield Frame(index, picture_of(image))
            except DecodeError as error:
                yield Frame(index, None, error)
            except Exception:  # its plug-in raises many types on damage
                yield Frame(index, None, DecodeError("is damaged or truncated"))

    return Clip(1, decode)


def open_jpeg_xl(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Refuse a JPEG XL picture by name.

    Raises:
        DecodeError: Always.
    """
    raise DecodeError("is a JPEG XL picture, which is not read: convert it to PNG or TIFF")


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


HEIC = Reader(
    name="heic",
    suffixes=(".heic", ".heif"),
    sniff=_is_heic,
    open=open_heic,
    title="HEIC",
    reads="8 bits, orientation",
    notes="needs the extra `heif`: `pillow-heif` (BSD; its wheels carry libheif, LGPL, and x265, "
    "GPL)",
    still=True,
)
JPEG_XL = Reader(
    name="jpeg-xl",
    suffixes=(".jxl",),
    sniff=lambda head: head.startswith(_JPEG_XL),
    open=open_jpeg_xl,
    title="JPEG XL",
    reads="not read",
    notes="quarantined by name",
    still=True,
)
