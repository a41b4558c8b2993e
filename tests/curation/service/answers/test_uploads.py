import io

import numpy as np
import pytest
import torch
from PIL import Image

from echostill.curation.service.answers.uploads import TeacherFeatures, decode_upload
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem
from echostill.platform.imaging.images import encode_png, to_square


def test_an_upload_gets_the_feature_that_scoring_would_give(own_store, make):
    teacher = make["with_teacher"](own_store)
    state = State(str(own_store))
    pixels = make["picture"](4)
    found = TeacherFeatures(state).feature(encode_png(pixels), "image/png")
    square = torch.from_numpy(to_square(pixels, teacher.image_size).astype(np.float32) / 255)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(teacher(square[None]).pooled, dim=1)[0]
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


def test_weights_that_are_others_are_refused(own_store, make):
    make["with_teacher"](own_store, digest="0" * 64)
    features = TeacherFeatures(State(str(own_store)))
    with pytest.raises(Problem, match="differ from the weights used for the scores") as caught:
        features.feature(encode_png(make["picture"](4)), "image/png")
    assert caught.value.status == 409
    (own_store / "teacher.safetensors").unlink()
    with pytest.raises(Problem, match="not available"):
        features.feature(encode_png(make["picture"](4)), "image/png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_four_formats_are_read(kind):
    sink = io.BytesIO()
    Image.new("RGB", (12, 8), (9, 99, 199)).save(sink, format=kind)
    pixels = decode_upload(sink.getvalue(), f"image/{kind.lower()}; charset=x")
    assert pixels.shape == (8, 12, 3)


def test_too_many_pixels_are_refused_before_they_are_read():
    sink = io.BytesIO()
    Image.new("1", (6000, 6000)).save(sink, format="PNG")
    with pytest.raises(Problem, match="6000 x 6000 pixels, more than allowed"):
        decode_upload(sink.getvalue(), "image/png")
