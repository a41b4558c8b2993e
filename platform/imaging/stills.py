"""Image files as clips: one picture, the frames of an animation, or the pages of a TIFF."""

import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import (
    DecodeError,
    check_size,
    damage_in_words,
    open_image,
    picture_of,
)
from echostill.platform.imaging.labels import refuse_label_map
from echostill.platform.imaging.reader import Reader

_MAGIC = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"P5", b"P6"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF, and TIFF of more than 4 GB
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),  # JPEG 2000, in its file format and bare
)
# A JPEG of several pictures (MPO) holds previews of the first, not frames.
_ANIMATED = ("PNG", "GIF", "WEBP", "TIFF", "AVIF")
_COUNTED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of whole numbers


def open_stills(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open an image file; of an animation or a TIFF of pages, all frames.

    Raises:
        DecodeError: The file is no image, or is too large.
    """
    limits = limits or Limits()
    with source.opened() as file:
        image = _open(file, limits)
        with damage_in_words():
            frames = int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1
    if frames > limits.max_frames:
        raise DecodeError(
            f"holds {frames} frames, more than allowed (max_frames={limits.max_frames})"
        )

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        with source.opened() as file:
            image = _open(file, limits)
            for index in indices:
                try:
                    with damage_in_words():
                        if frames > 1:
                            image.seek(index)
                    check_size(image.width, image.height, limits.max_pixels)
                    pixels = picture_of(image, source.read() if frames == 1 else None)
                    _refuse_label_map(image)
                except DecodeError as error:
                    yield Frame(index, None, error)
                else:
                    yield Frame(index, pixels)

    return Clip(frames, decode)


def _open(file: BinaryIO, limits: Limits) -> Image.Image:
    if file.seek(0, io.SEEK_END) > limits.max_bytes:
        raise DecodeError(f"holds more bytes than allowed (max_bytes={limits.max_bytes})")
    file.seek(0)
    return open_image(file, limits.max_pixels)


def _refuse_label_map(image: Image.Image) -> None:
    if image.mode in _COUNTED:
        refuse_label_map(np.asarray(image.convert("L") if image.mode == "1" else image))


def _sniff(head: bytes) -> bool:
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return riff or avif or head.startswith(_MAGIC)


READER = Reader(
    name="image",
    suffixes=(
        *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
        *(".pgm", ".ppm", ".apng", ".jp2", ".j2k", ".avif"),
    ),
    sniff=_sniff,
    open=open_stills,
    title="PNG, JPEG, BMP, TIFF, GIF, WebP, PNM, JPEG 2000, AVIF",
    reads="1 to 16 bits, float, palette, CMYK, transparency, EXIF orientation",
    notes="every frame of an animation and every page; images of more than 8 bits are scaled by "
    "their own range; masks and label maps are refused",
    still=True,
)
