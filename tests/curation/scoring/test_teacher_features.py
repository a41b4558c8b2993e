"""Features for images outside the pool are those that the score stage would give."""

import json

import numpy as np
import pytest
import torch

from echostill.curation.scoring.teacher_features import teacher_features, teacher_of_scores
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import to_square
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.models.weights import find_weights
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, write_table


def test_features_are_the_teachers_pooled_output():
    torch.manual_seed(0)
    teacher = create_encoder("usfm-micro").eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + n, 50)).astype(np.uint8) for n in range(35)]
    found = teacher_features(teacher, images)
    assert found.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(found.astype(float), axis=1), 1, atol=2e-3)
    for row in (0, 34):  # one of each batch
        square = to_square(images[row], teacher.image_size).astype(np.float32) / 255
        with torch.inference_mode():
            alone = teacher(torch.from_numpy(square[None])).pooled[0].numpy()
        np.testing.assert_allclose(found[row], alone / np.linalg.norm(alone), atol=2e-3)
    assert teacher_features(teacher, []).shape == (0, teacher.dim)


def test_the_teacher_is_the_one_of_the_scores(tmp_path):
    store = Store(str(tmp_path / "store"))
    path = tmp_path / "teacher.safetensors"
    save_weights(create_encoder("usfm-micro"), path, {})
    digest = find_weights("usfm-micro", str(path)).digest
    saved = {"teacher": {"model": "usfm-micro", "weights": str(path)}}
    store.scores().write("configuration.json", json.dumps(saved).encode())
    for known, fits in ((digest, True), ("another", False)):
        fingerprint = {"weights": {"teacher": known}}
        table = scores_schema(4, 1).empty_table()
        write_table(store.scores(), table, stage="score", fingerprint=fingerprint)
        scores = Table.open(store.scores(), "score")
        if fits:
            assert teacher_of_scores(store, scores).dim == create_encoder("usfm-micro").dim
        else:
            with pytest.raises(UsageError, match="differ from the weights used for the scores"):
                teacher_of_scores(store, scores)
