import io
import struct
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from echostill.platform.imaging.containers import container_of
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import FrameSampling, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.video import open_film, open_video

LEVELS = np.linspace(20, 230, 24).astype(np.uint8)


def encoded(container="mp4", codec="libx264", levels=LEVELS, layout="yuv420p"):
    """A film of flat frames, each a level brighter."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for level in levels:
            pixels = np.full((48, 64, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return sink.getvalue()


def opened(data, **limits):
    return open_video(SourceFile("film", data=data), Limits(**limits))


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("avi", "mpeg4"),
        ("avi", "mjpeg"),
        ("mov", "libx264"),
        ("matroska", "libvpx-vp9"),
        ("mpeg", "mpeg2video"),
    ],
)
def test_every_frame_in_order(container, codec):
    layout = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = opened(encoded(container, codec, layout=layout))
    frames = list(clip.decode(range(clip.frames)))
    assert clip.frames == len(frames) == len(LEVELS)
    assert [frame.index for frame in frames] == list(range(24))
    means = [frame.pixels.mean() for frame in frames]
    assert np.abs(np.array(means) - LEVELS).max() < 6


def test_chosen_frames_are_those_of_the_whole():
    clip = opened(encoded())
    whole = [frame.pixels for frame in clip.decode(range(clip.frames))]
    for sampling in (FrameSampling(every=5), FrameSampling(per_clip=3)):
        for frame in sampling.read(clip):
            assert np.array_equal(frame.pixels, whole[frame.index])


def test_grey_stays_grey():
    clip = opened(encoded("matroska", "ffv1", layout="gray"))
    (first,) = clip.decode([0])
    assert first.pixels.shape == (48, 64)
    assert (first.pixels == LEVELS[0]).all()


def test_a_file_and_its_bytes_are_the_same(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encoded())
    clip = open_video(SourceFile("a.mp4", str(tmp_path / "a.mp4")))
    shown = [frame.pixels for frame in clip.decode(range(clip.frames))]
    again = opened(encoded())
    assert np.array_equal(shown, [f.pixels for f in again.decode(range(again.frames))])


def test_a_cut_off_film_gives_what_is_there_and_says_the_rest():
    data = encoded("avi", "mjpeg", layout="yuvj420p")
    clip = opened(data[: len(data) * 2 // 3])
    frames = list(clip.decode(range(clip.frames)))
    good = [frame for frame in frames if frame.error is None]
    assert 5 < len(good) < 24
    assert "of the 24 frames that it states" in str(frames[-1].error)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_film_without_its_index_is_refused(share):
    data = encoded()
    with pytest.raises(DecodeError, match="damaged or truncated video"):
        opened(data[: int(len(data) * share)])


def test_damage_in_the_middle_never_ends_the_film():
    data = bytearray(encoded("avi", "mpeg4"))
    start = data.index(b"movi") + 1500
    data[start : start + 300] = np.random.default_rng(0).bytes(300)
    clip = opened(bytes(data))
    frames = list(clip.decode(range(clip.frames)))
    assert len(frames) >= 20
    assert frames[-1].index >= 20


def test_limits():
    data = encoded()
    with pytest.raises(DecodeError, match="max_frames=9"):
        opened(data, max_frames=9)
    with pytest.raises(DecodeError, match="64 x 48 pixels"):
        opened(data, max_pixels=100)


def test_what_is_no_film_is_refused():
    for data in (b"", b"nothing", b"\0\0\0\x18ftypmp42" + b"\0" * 100):
        with pytest.raises(DecodeError, match="video"):
            opened(data)


def test_sound_alone_is_no_film():
    sink = io.BytesIO()
    with av.open(sink, "w", format="wav") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        file.mux(stream.encode(samples))
    with pytest.raises(DecodeError, match="no video track"):
        opened(sink.getvalue())


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DecodeError, match=r"pip install 'echostill\[video\]'"):
        opened(b"")


# --- as players show it --------------------------------------------------------------------------


def film(container="mp4", codec="libx264", *, pictures=16, layout="yuv420p", turned=None,
         aspect=None, trimmed=0, repeats=()):  # fmt: skip
    """A film with a bright left third and a top half that says which picture it is.

    Args:
        turned: Degrees and two flips of the display matrix.
        aspect: Sample aspect ratio.
        trimmed: Pictures before the beginning, which an edit list leaves out.
        repeats: Times at which the picture before is shown again.
    """
    sink = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"} if trimmed else {}
    with av.open(sink, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=25, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turned is not None:
            stream.set_display_rotation(turned[0], hflip=turned[1], vflip=turned[2])
        time = 0
        for number in range(pictures):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:24], pixels[:, :21] = 40 + 10 * number, 250
            picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
            while time in repeats:
                time += 1
            picture.pts, picture.time_base = time, Fraction(1, 25)
            time += 1
            mux(file, stream.encode(picture), trimmed)
        mux(file, stream.encode(), trimmed)
    return sink.getvalue()


def mux(file, packets, trimmed):
    for packet in packets:
        early = round(trimmed / (25 * packet.time_base))
        packet.pts, packet.dts = packet.pts - early, packet.dts - early
        file.mux(packet)


def shown(data, opener=open_video):
    clip = opener(SourceFile("film", data=data))
    frames = list(clip.decode(range(clip.frames)))
    assert not [str(frame.error) for frame in frames if frame.error]
    assert clip.frames == len(frames)
    return [frame.pixels for frame in frames]


def picture_of(pixels):
    """Which picture of a film this is."""
    return round((float(pixels[4:20, 40:60].mean()) - 40) / 10)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_turned_and_mirrored_as_the_display_matrix_says(container, degrees, flips):
    upright = shown(film(container))[3]
    expected = np.rot90(upright, degrees // 90)  # counter-clockwise, as the matrix is written
    expected = expected[:, ::-1] if flips[0] else expected
    expected = expected[::-1] if flips[1] else expected
    turned = shown(film(container, turned=(degrees, *flips)))[3]
    assert turned.shape == expected.shape
    assert np.abs(turned.astype(int) - expected).mean() < 2  # encoders are not exact


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (Fraction(2, 1), (48, 128)),
        (Fraction(1, 2), (96, 64)),
        (Fraction(16, 15), (48, 68)),
        (Fraction(1, 1), (48, 64)),
        (Fraction(100, 1), (48, 64)),  # no display has such pixels
    ],
)
@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("mpegts", "libx264")]
)
def test_pixels_become_square(container, codec, aspect, shape):
    assert shown(film(container, codec, aspect=aspect))[0].shape[:2] == shape


def test_square_pixels_come_before_the_turn():
    frame = shown(film(aspect=Fraction(2, 1), turned=(90, False, False)))[0]
    assert frame.shape[:2] == (128, 48)


def test_a_film_inside_dicom_keeps_its_pixels():
    data = film(aspect=Fraction(2, 1), turned=(90, False, False))
    stored = shown(data, open_film)
    assert np.abs(np.stack(stored).astype(int) - np.stack(shown(film()))).mean() < 2


# --- counts --------------------------------------------------------------------------------------


def test_pictures_before_an_edit_list_do_not_count():
    pictures = [picture_of(pixels) for pixels in shown(film(trimmed=6))]
    assert pictures == list(range(6, 16))
    clip = opened(film(trimmed=6))
    sampled = [picture_of(frame.pixels) for frame in FrameSampling(per_clip=5).read(clip)]
    assert sampled == [7, 9, 11, 13, 15]


@pytest.mark.parametrize(("codec", "layout"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
@pytest.mark.parametrize("repeats", [(3, 4, 9), (1,), tuple(range(5, 15))])
def test_a_picture_that_is_shown_again_counts_once(codec, layout, repeats):
    data = film("avi", codec, layout=layout, repeats=repeats)
    assert [picture_of(pixels) for pixels in shown(data)] == list(range(16))


@pytest.mark.parametrize("said", [3, 16, 40])
def test_a_whole_film_is_as_long_as_it_is_whatever_its_header_says(said):
    data = bytearray(film("avi", "mjpeg", layout="yuvj420p"))
    for place, kind in ((data.index(b"avih") + 24, "<I"), (data.index(b"strh") + 40, "<I")):
        assert struct.unpack_from(kind, data, place) == (16,)
        struct.pack_into(kind, data, place, said)
    assert [picture_of(pixels) for pixels in shown(bytes(data))] == list(range(16))


@pytest.mark.parametrize("share", [0.02, 0.4, 0.7, 0.95])
def test_a_cut_off_film_with_its_index_says_what_is_missing(share):
    data = moved_index()
    pictures = data.index(b"mdat") + 4
    clip = opened(data[: pictures + int((len(data) - pictures) * share)])
    frames = list(clip.decode(range(clip.frames)))
    whole = [frame for frame in frames if frame.error is None]
    assert [picture_of(frame.pixels) for frame in whole] == list(range(len(whole)))
    assert len(whole) < 16
    assert "of the 16 frames that it states" in str(frames[-1].error)


def moved_index():
    """An MP4 in fragments of its own order: the index of all pictures stands before them."""
    data = film()
    boxes, place = {}, 0
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        boxes[data[place + 4 : place + 8]] = data[place : place + size]
        place += size
    index = bytearray(boxes[b"moov"])
    start = index.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", index, start)
    for number in range(count):
        (offset,) = struct.unpack_from(">I", index, start + 4 + 4 * number)
        struct.pack_into(">I", index, start + 4 + 4 * number, offset + len(index))
    rest = [boxes[name] for name in (b"ftyp", b"free", b"mdat") if name in boxes]
    return rest[0] + bytes(index) + b"".join(rest[1:])


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("h264", "libx264"),
        ("hevc", "libx265"),
        ("mpegts", "libx264"),
        ("flv", "flv"),
        ("asf", "wmv2"),
    ],
)
def test_streams_and_other_containers_are_told_by_their_content(container, codec):
    data = film(container, codec)
    assert container_of(data[:4096], "clip") == "video"
    pictures = [picture_of(pixels) for pixels in shown(data)]
    assert pictures == list(range(16))


def test_a_coding_that_nothing_reads_is_said():
    with pytest.raises(DecodeError, match="a coding that is not read"):
        opened(film().replace(b"avc1", b"zzzz"))


def test_packets_with_a_time_before_each_are_told_too():
    """Cameras and Blu-ray put four bytes before each packet of 188."""
    data = film("mpegts")
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    stamped = b"".join(struct.pack(">I", n) + packet for n, packet in enumerate(packets))
    assert container_of(stamped[:4096], "00001") == "video"
    assert [picture_of(pixels) for pixels in shown(stamped)] == list(range(16))


def test_deep_grey_is_scaled_by_its_range():
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(values, "gray16le")),
                       *stream.encode()]:  # fmt: skip
            file.mux(packet)
    (pixels,) = shown(sink.getvalue())
    assert np.array_equal(pixels, np.rint(values * (255 / values.max())))
