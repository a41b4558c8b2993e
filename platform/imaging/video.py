"""Video files (MP4, AVI, MOV, MKV, MPEG, ...) as clips, through PyAV.

PyAV is the extra ``video``. Frames are decoded in order by one thread, so that a file gives the
same pixels on every machine and a worker uses the processor that it reserved.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import DecodeError, check_size
from echostill.platform.imaging.reader import Reader

_MAGIC = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # Windows Media
)
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"avif", b"jxl ")


def open_video(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a video file.

    The frames are counted by reading through the file once without decoding: containers state
    counts that are not true. Sound and further video tracks are ignored.

    Raises:
        DecodeError: The file is no video, is too large, or PyAV is not installed.
    """
    limits = limits or Limits()
    av = _library()
    with source.opened() as file, _container(av, file) as container:
        stream = _stream(container)
        check_size(stream.codec_context.width, stream.codec_context.height, limits.max_pixels)
        stated = int(stream.frames)
        try:
            packets = sum(1 for packet in container.demux(stream) if packet.size)
        except av.FFmpegError as error:
            raise _damage(error) from None
    frames = max(packets, 1)
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
                    yield _frame(index, item, limits)
        if index + 1 < stated or index < 0:
            said = f"holds {index + 1} of the {max(stated, frames)} frames that it states"
            yield Frame(index + 1, None, DecodeError(said))

    return Clip(frames, decode)


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
        except av.FFmpegError as error:
            yield _damage(error)


def _frame(index: int, item: Any, limits: Limits) -> Frame:
    if isinstance(item, DecodeError):
        return Frame(index, None, item)
    if item.is_corrupt:
        return Frame(index, None, DecodeError("is damaged"))
    try:
        check_size(item.width, item.height, limits.max_pixels)
        grey = item.format.name.startswith("gray")
        pixels = item.to_ndarray(format="gray" if grey else "rgb24")
    except DecodeError as error:
        return Frame(index, None, error)
    return Frame(index, pixels)


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
    except (av.FFmpegError, ValueError) as error:
        raise _damage(error) from None


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise DecodeError("holds no video track")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def _damage(error: Exception) -> DecodeError:
    reason = getattr(error, "strerror", None) or str(error)
    return DecodeError(f"is a damaged or truncated video: {reason}")


def _sniff(head: bytes) -> bool:
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    transport = head[:1] == head[188:189] == head[376:377] == b"\x47"
    return riff or transport or head.startswith(_MAGIC)


READER = Reader(
    name="video",
    suffixes=(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"),
    sniff=_sniff,
    open=open_video,
    title="MP4, AVI, MOV, MKV, WebM, MPEG, WMV",
    reads="whatever FFmpeg decodes",
    notes="needs the extra `video`",
)
