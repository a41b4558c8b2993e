import io
import sys

import av
import numpy as np
import pytest

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import FrameSampling, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.video import open_video

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
