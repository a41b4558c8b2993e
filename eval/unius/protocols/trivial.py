"""Candidates that need no model, beside every model: the same answer for all, and a thumbnail.

They are those of the evaluation: a model that is not ahead of them has learned nothing of use. Both
are kept as linear probes, the method by which models are compared.
"""

import numpy as np

from echostill.eval.names import CONSTANT, LINEAR, THUMBNAIL
from echostill.eval.probes import patch_shares
from echostill.eval.probing.candidates import SIDE, thumbnails
from echostill.eval.probing.masks import Predictor, constant_predictor, segment, thumbnail_predictor
from echostill.eval.splits import Folds, Split
from echostill.eval.statistics.folds import group_folds
from echostill.eval.unius.protocols.data import BenchData
from echostill.eval.unius.protocols.frozen import Rounds
from echostill.eval.unius.protocols.measures import Measured
from echostill.eval.unius.protocols.settings import ProtocolSettings
from echostill.platform.errors import UsageError

FOLDS = 5  # inside the training side, to choose settings on
TESTED = FOLDS  # number of the fold that is tested


def run_trivial(
    name: str, data: BenchData, settings: ProtocolSettings, seed: int
) -> list[Measured]:
    """Measure what needs no model, as the frozen protocol measures models.

    Args:
        name: ``constant`` or ``thumbnail``.
        data: The task.
        settings: What is measured.
        seed: Of the inner folds, the shares and the draws.
    """
    rounds = Rounds.of(data, settings, seed)
    small = thumbnails(rounds.dataset.pixels)
    if data.task.kind == "classification":
        if name == THUMBNAIL:
            return rounds.probed(small)
        return rounds.classified({LINEAR: lambda split: class_shares(rounds, split)})

    def predict(split: Split) -> np.ndarray:
        return constant_or_thumbnail(name, rounds, small, split)

    return rounds.segmented(predict, LINEAR)


def class_shares(rounds: Rounds, split: Split) -> np.ndarray:
    """Give every image the shares of the classes in training, (M, C)."""
    assert rounds.dataset.labels is not None
    counts = np.bincount(
        rounds.dataset.labels[split.train], minlength=len(rounds.dataset.class_names)
    )
    return np.tile(counts / counts.sum(), (len(split.test), 1))


def constant_or_thumbnail(name: str, rounds: Rounds, small: np.ndarray, split: Split) -> np.ndarray:
    """Predict masks (M, S, S): penalty and threshold are chosen on folds of the training side."""
    dataset = rounds.dataset
    assert dataset.masks is not None
    rows = np.concatenate([split.train, split.test])
    masks, classes = dataset.masks[rows], len(dataset.class_names) + 1
    fold = np.full(len(rows), TESTED, dtype=np.int64)
    fold[: len(split.train)] = _inner_folds(dataset.groups[split.train], rounds.seed)
    folds = Folds(fold, (TESTED,))
    predictor: Predictor
    if name == CONSTANT:
        predictor = constant_predictor(masks, classes, folds)
    else:
        predictor = thumbnail_predictor(
            small[rows], patch_shares(masks, classes, SIDE).numpy(), folds
        )
    found, _ = segment(predictor, masks, folds)
    return found[len(split.train) :]


def _inner_folds(groups: np.ndarray, seed: int) -> np.ndarray:
    try:
        return group_folds(groups, np.zeros(len(groups), dtype=np.int64), FOLDS, seed)
    except UsageError:  # one group: nothing to choose settings on, the usual ones are taken
        return np.zeros(len(groups), dtype=np.int64)
