import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from echostill.platform.imaging.frames import Clip, Frame, FrameSampling, difference, moving, spread
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)


def clip_of(pictures):
    """A clip that remembers which frames were decoded."""
    decoded = []

    def decode(indices):
        for index in indices:
            decoded.append(index)
            picture = pictures[index]
            failed = isinstance(picture, DecodeError)
            yield Frame(index, None, picture) if failed else Frame(index, picture)

    return Clip(len(pictures), decode), decoded


def kept(sampling, pictures):
    clip, decoded = clip_of(pictures)
    return [frame.index for frame in sampling.read(clip)], decoded


PICTURES = [np.full((8, 8), level, np.uint8) for level in range(100, 120)]


def test_all_frames_are_kept_unless_told_otherwise():
    assert kept(FrameSampling(), PICTURES)[0] == list(range(20))


def test_every_nth_is_kept_and_the_others_are_not_decoded():
    assert kept(FrameSampling(every=7), PICTURES) == ([0, 7, 14], [0, 7, 14])


def test_a_number_per_clip_is_spread_and_the_others_are_not_decoded():
    assert kept(FrameSampling(per_clip=2), PICTURES) == ([5, 15], [5, 15])
    assert kept(FrameSampling(per_clip=50), PICTURES)[0] == list(range(20))


@given(st.integers(1, 400), st.integers(1, 60))
def test_spread_is_even(count, wanted):
    chosen = list(spread(count, wanted))
    assert len(chosen) == min(count, wanted)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < count
    if wanted < count:
        gaps = np.diff([-chosen[0] - 1, *chosen, 2 * count - chosen[-1] - 1])
        assert gaps.max() - gaps.min() <= 2


def test_motion_keeps_what_differs_from_the_last_kept_frame():
    """A drift of one grey level a frame is no motion from one to the next, but adds up."""
    indices, _ = kept(FrameSampling(motion=4.5 / 255), PICTURES)
    assert indices == [0, 5, 10, 15]
    still = [PICTURES[0]] * 5
    assert kept(FrameSampling(motion=0.001), still)[0] == [0]


def test_motion_does_not_depend_on_the_black_around():
    first, second = RANDOM.integers(50, 255, (2, 40, 40), dtype=np.uint8)
    framed = [np.pad(picture, 200) for picture in (first, second)]
    near = [picture.astype(np.float32) / 255 for picture in (first, second)]
    far = [picture.astype(np.float32) / 255 for picture in framed]
    assert difference(*near) == pytest.approx(difference(*far))
    assert difference(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert difference(np.zeros((2, 2)), np.zeros((2, 3))) == 1


def test_errors_pass_through_every_sampling():
    pictures = [PICTURES[0], DecodeError("is damaged"), PICTURES[0], PICTURES[19]]
    frames = list(FrameSampling(motion=0.01).read(clip_of(pictures)[0]))
    assert [(frame.index, frame.error is None) for frame in frames] == [
        (0, True),
        (1, False),
        (3, True),
    ]
    assert list(moving([], 0.1)) == []


@pytest.mark.parametrize(
    "values", [{"every": 2, "motion": 0.1}, {"every": 0}, {"per_clip": 0}, {"motion": 0.0}]
)
def test_contradictions_are_refused(values):
    with pytest.raises(ValidationError, match=r"exclude each other|greater than"):
        FrameSampling(**values)


def test_the_count_is_known_before_decoding():
    assert FrameSampling(every=3).count(10) == 4
    assert FrameSampling(per_clip=3).count(10) == 3
    assert FrameSampling(motion=0.1).count(10) == 10
