"""Look-alikes without a store: the same that `duplicates` links."""

import numpy as np
from PIL import Image

from echostill.curation.copies.look_alikes import LookAlikes
from echostill.curation.copies.near import NearSettings


def picture(seed, side=96):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 200, (8, 8)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(smooth + rng.rayleigh(9, (side, side)), 0, 255).astype(np.uint8)


def components(pictures, **settings):
    likeness = LookAlikes(NearSettings(**settings) if settings else None)
    for pixels in pictures:
        likeness.add(pixels)
    return likeness.components().tolist()


def test_equal_and_near_copies_share_a_number_and_others_do_not():
    first, other = picture(0), picture(1)
    brighter = np.clip(first.astype(int) + 4, 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(first).resize((70, 70), Image.Resampling.BICUBIC))
    coloured = np.repeat(first[..., None], 3, axis=2)  # grey that is stored as RGB
    number = components([first, other, brighter, smaller, coloured, picture(2)])
    assert number[0] == number[2] == number[3] == number[4]
    assert len(set(number)) == 3
    assert number[1] != number[5]


def test_three_equal_images_of_which_one_is_near_another_are_one_component():
    first = picture(3)
    near = np.clip(first.astype(int) - 3, 0, 255).astype(np.uint8)
    assert len(set(components([near, first, first, first]))) == 1


def test_settings_decide_what_is_near():
    first = picture(4)
    brighter = np.clip(first.astype(int) + 4, 0, 255).astype(np.uint8)
    assert len(set(components([first, brighter], near_distance=None))) == 2
    assert len(set(components([first, first], near_distance=None))) == 1


def test_flat_pictures_and_none_at_all():
    black, grey = np.zeros((40, 40), np.uint8), np.full((40, 40), 7, np.uint8)
    assert len(set(components([black, grey, black]))) == 2
    assert components([]) == []
