"""Image files as clips: one picture, the frames of an animation, or the pages of a TIFF."""

from collections.abc import Iterator, Sequence

from PIL import ImageOps

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import (
    DecodeError,
    check_size,
    damage_in_words,
    open_image,
    to_array,
)
from echostill.platform.imaging.reader import Reader

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"P5", b"P6")

# A JPEG of several pictures (MPO) holds previews of the first, not frames.
_ANIMATED = ("PNG", "GIF", "WEBP", "TIFF")


def open_stills(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open an image file; of an animated PNG, GIF, WebP or a TIFF of pages, all frames.

    Raises:
        DecodeError: The file is no image, or is too large.
    """
    limits = limits or Limits()
    image = open_image(source.read(limits.max_bytes), limits.max_pixels)
    with damage_in_words():
        frames = int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1
    if frames > limits.max_frames:
        raise DecodeError(
            f"holds {frames} frames, more than allowed (max_frames={limits.max_frames})"
        )

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            try:
                with damage_in_words():
                    if frames > 1:
                        image.seek(index)
                    check_size(image.width, image.height, limits.max_pixels)
                    image.load()
                    pixels = to_array(ImageOps.exif_transpose(image))
            except DecodeError as error:
                yield Frame(index, None, error)
            else:
                yield Frame(index, pixels)

    return Clip(frames, decode)


def _sniff(head: bytes) -> bool:
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


READER = Reader(
    name="image",
    suffixes=(
        *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
        *(".gif", ".webp", ".pgm", ".ppm", ".apng"),
    ),
    sniff=_sniff,
    open=open_stills,
    title="PNG, JPEG, BMP, TIFF, GIF, WebP, PNM",
    reads="1 to 16 bits, float, palette, CMYK, transparency, EXIF orientation",
    notes="every frame of an animation and every page; images of more than 8 bits are scaled by "
    "their own range",
    still=True,
)
