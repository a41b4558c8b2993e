"""The box head: its targets, and that it finds what the tokens show."""

import numpy as np
import pytest
import torch

from echostill.eval.unius.protocols.boxes import Boxes, mean_average_precision
from echostill.eval.unius.protocols.data import find_tasks, load_data
from echostill.eval.unius.protocols.detection import (
    detect,
    middle_points,
    run_detection,
    targets,
    train_head,
)
from echostill.eval.unius.protocols.settings import ProtocolSettings
from echostill.platform.models import create_encoder


def one(*corners):
    return Boxes(np.zeros(1, np.int64), np.array([corners], float), np.ones(1))


def test_a_token_is_about_the_box_that_its_middle_lies_in():
    assert middle_points(32, 2).tolist() == [[8, 8], [24, 8], [8, 24], [24, 24]]
    logits, distances = targets([one(4, 6, 16, 16)], 1, 32, 2)
    assert logits[0, :, 0].tolist() == [1, 0, 0, 0]
    assert (distances[0, 0] * 32).tolist() == [4, 2, 8, 8]


@pytest.fixture
def busi(prepared_set):
    (task,) = find_tasks(prepared_set("busi")[1].table.storage.root, kinds=("detection",))
    return load_data(task, 32)


def test_boxes_that_the_tokens_show_are_found(busi):
    """Tokens that are their own targets: a linear head must read them off."""
    random = np.random.default_rng(0)
    wanted = []
    for _ in range(24):
        x, y = random.integers(0, 16, 2)
        width, height = random.integers(10, 16, 2)
        wanted.append(one(x, y, x + width, y + height))
    logits, distances = targets(wanted, 1, 32, 8)
    tokens = torch.cat([logits, 4 * distances], dim=2)
    head = train_head(tokens, wanted, busi, 0)
    found = detect(head, tokens, 32)
    assert mean_average_precision(wanted, found, 1, (0.5,)) > 0.9


def test_it_is_measured_and_the_same_each_time(busi):
    torch.manual_seed(0)
    encoder = create_encoder("tinyusfm-micro", image_size=32)
    settings = ProtocolSettings(corruptions=("depth",))
    first, second = (run_detection(encoder, busi, settings, 0) for _ in range(2))
    assert first == second
    assert [m.condition for m in first] == ["clean", "depth"]
    assert all(0 <= m.metrics["map"] <= m.metrics["map50"] <= 1 for m in first if m.metrics)
    assert all(len(row["values"]) % 6 == 0 for row in first[0].images)
