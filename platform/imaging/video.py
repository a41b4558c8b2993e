"""Video files (MP4, AVI, MOV, MKV, MPEG, ...) as clips, through PyAV.

PyAV is the extra ``video``. Frames are decoded in order by one thread, so that a file gives the
same pixels on every machine and a worker uses the processor that it reserved.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import (
    DecodeError,
    check_size,
    scale_to_bytes,
    square_pixels,
    square_size,
)
from echostill.platform.imaging.reader import Reader

_MAGIC = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Windows Media
    b"FLV\x01",
    b"OggS",
)
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"jxl ")
# A bare stream of H.264 or H.265 begins with its parameters, behind a start code.
_PARAMETERS = (b"\0\0\x01\x67", b"\0\0\x01\x27", b"\0\0\x01\x09", b"\0\0\x01\x40")
_DAMAGED = "is a damaged or truncated video"


class _Count(NamedTuple):
    """Pictures that a film shows, and those it states that are not in the file."""

    shown: int
    missing: int


def open_video(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a video file: its frames turned, mirrored and with square pixels, as players show them.

    The frames are counted by reading through the file once without decoding: containers state
    counts that are not true. A picture that an edit list leaves out does not count, and one that is
    shown again counts once. Sound and further video tracks are ignored.

    Raises:
        DecodeError: The file is no video, is too large, or PyAV is not installed.
    """
    return _open(source, limits or Limits(), as_shown=True)


def open_film(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open the film inside a DICOM file, with its frames as they are stored.

    Raises:
        DecodeError: As :func:`open_video`.
    """
    return _open(source, limits or Limits(), as_shown=False)


def _open(source: SourceFile, limits: Limits, *, as_shown: bool) -> Clip:
    av = _library()
    with source.opened() as file, _container(av, file) as container:
        stream = _stream(container)
        width, height = stream.codec_context.width, stream.codec_context.height
        check_size(width, height, limits.max_pixels)
        aspect = _pixel_aspect(stream) if as_shown else 1.0
        height, width = square_size(height, width, aspect)
        check_size(width, height, limits.max_pixels)
        try:
            count = _count(container, stream, file)
        except av.FFmpegError:
            raise DecodeError(_DAMAGED) from None
    frames = max(count.shown, 1)
    if frames > limits.max_frames:
        raise DecodeError(
            f"holds {frames} frames, more than allowed (max_frames={limits.max_frames})"
        )

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        wanted = set(indices)
        index = -1
        with source.opened() as file, _container(av, file) as container:
            for index, item in enumerate(_decoded(av, container)):
                if index > max(wanted, default=-1):
                    return
                if index in wanted:
                    yield _frame(index, item, limits, as_shown, aspect)
        stated = max(count.shown + count.missing, 1)
        if index + 1 < stated:
            said = f"holds {index + 1} of the {stated} frames that it states"
            yield Frame(index + 1, None, DecodeError(said))

    return Clip(frames, decode)


def _count(container: Any, stream: Any, file: BinaryIO) -> _Count:
    """Count the packets of pictures, and those that lie beyond the end of the file."""
    packets, last, cut = 0, -1, 0
    for packet in container.demux(stream):
        if packet.size:
            packets += not packet.is_discard
            cut += packet.is_corrupt
            last = max(last, -1 if packet.dts is None else packet.dts)
    end = file.seek(0, os.SEEK_END)
    beyond = 0
    if container.format.name == "avi":
        # Its times count pictures, and an empty place is the picture before it once more.
        if end < _riff_size(file):
            beyond = int(stream.frames) - (last + 1)
    elif "mp4" in container.format.name:
        beyond = sum(entry.pos + entry.size > end for entry in stream.index_entries or ()) - cut
    else:
        beyond = int(stream.frames) - packets
    return _Count(packets, max(beyond, 0))


def _riff_size(file: BinaryIO) -> int:
    file.seek(0)
    head = file.read(8)
    return 8 + int(struct.unpack_from("<I", head, 4)[0]) if head[:4] == b"RIFF" else 0


def _decoded(av: Any, container: Any) -> Iterator[Any]:
    """Yield frames, and in the place of what cannot be decoded the reason."""
    stream = _stream(container)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            yield from packet.decode()
        except StopIteration:
            return
        except av.EOFError:
            return
        except av.FFmpegError:
            yield DecodeError("is damaged")


def _frame(index: int, item: Any, limits: Limits, as_shown: bool, aspect: float) -> Frame:
    if isinstance(item, DecodeError):
        return Frame(index, None, item)
    if item.is_corrupt:
        return Frame(index, None, DecodeError("is damaged"))
    try:
        check_size(item.width, item.height, limits.max_pixels)
    except DecodeError as error:
        return Frame(index, None, error)
    name = item.format.name
    if name.startswith("gray16"):
        pixels = scale_to_bytes(item.to_ndarray(format="gray16le"))
    else:
        pixels = item.to_ndarray(format="gray" if name.startswith("gray") else "rgb24")
    if as_shown:
        pixels = _turned(square_pixels(pixels, aspect), item)
    return Frame(index, pixels)


def _pixel_aspect(stream: Any) -> float:
    """Return a pixel's height divided by its width, 1 where the film says nothing."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(1 / ratio) if ratio else 1.0


def _turned(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror a picture as the film's display matrix says, by quarters of a circle.

    The matrix takes a point (x, y) of the stored picture to (a x + c y, b x + d y) of the shown.
    """
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    pixels = pixels[::-1] if down < 0 else pixels
    pixels = pixels[:, ::-1] if right < 0 else pixels
    return np.ascontiguousarray(pixels)


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise DecodeError(
            "is a video, whose reader is not installed: pip install 'echostill[video]'"
        ) from None
    return av


def _container(av: Any, file: Any) -> Any:
    try:
        return av.open(file, mode="r")
    except (av.FFmpegError, ValueError):
        raise DecodeError(_DAMAGED) from None


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DecodeError("holds no video track")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError("holds a video track in a coding that is not read")
    stream.codec_context.thread_count = 1
    return stream


def _sniff(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    # Packets of 188 bytes, on Blu-ray and cameras with four more before each.
    packets = any(
        head[first : first + 1] == head[first + size : first + size + 1] == b"\x47"
        and head[first + 2 * size : first + 2 * size + 1] == b"\x47"
        for first, size in ((0, 188), (4, 192))
    )
    bare = head[:4] in _PARAMETERS or (head[:1] == b"\0" and head[1:5] in _PARAMETERS)
    return riff or packets or bare or head.startswith(_MAGIC)


READER = Reader(
    name="video",
    suffixes=(
        *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"),
        *(".mts", ".m2ts", ".vob", ".3gp", ".flv", ".ogv", ".h264", ".264", ".hevc", ".265"),
    ),
    sniff=_sniff,
    open=open_video,
    title="MP4, AVI, MOV, MKV, WebM, MPEG, WMV, FLV, Ogg; bare H.264 and H.265",
    reads="whatever FFmpeg decodes, with its rotation, mirroring and pixel aspect",
    notes="needs the extra `video`; pictures outside of an edit list are left out",
)
