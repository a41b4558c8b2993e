"""Predictions of one model on one task, and of the candidates that need no model.

``constant`` gives every image the same answer. ``thumbnail`` knows an image by its 8 x 8 grey
levels. A model that is not ahead of them has shown nothing about ultrasound on that task.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from echostill.eval.datasets import LabelledDataset
from echostill.eval.names import CONSTANT, FEW_SHOT, GRID, KNN, LINEAR, THUMBNAIL
from echostill.eval.predictions import (
    PREDICTIONS_SCHEMA,
    PredictedBy,
    class_rows,
    few_shot_rows,
    mask_rows,
)
from echostill.eval.probes import batches, knn_probe, patch_shares, require_size, token_features
from echostill.eval.probing.few_shot import FewGroups, draw_groups, predict_draw
from echostill.eval.probing.masks import (
    Predictor,
    constant_predictor,
    segment,
    thumbnail_predictor,
    token_predictor,
)
from echostill.eval.probing.ridge import classify
from echostill.eval.splits import Folds, Split
from echostill.platform.computing.precision import Precision, computing
from echostill.platform.models import Encoder

SIDE = 8  # of the thumbnail
CELLS = 2  # per side of the grid probe


class Protocol:
    """What all candidates of a task share: folds, and draws of few groups."""

    def __init__(
        self,
        dataset: LabelledDataset,
        folds: Folds,
        *,
        neighbours: int = 10,
        shots: tuple[int, ...] = (),
        draws: int = 0,
        seed: int = 0,
    ) -> None:
        """Prepare a task; ``shots`` of a segmentation are passed over."""
        self.folds, self.neighbours = folds, neighbours
        self.tested = np.flatnonzero(np.isin(folds.fold, folds.tested))
        self.draws: list[FewGroups] = []
        self.too_many: list[int] = list(shots)
        if dataset.labels is not None:
            self.draws, self.too_many = draw_groups(
                dataset.groups, dataset.labels, shots, draws, seed
            )

    @property
    def fold(self) -> np.ndarray:
        """Fold of each tested row."""
        fold: np.ndarray = self.folds.fold[self.tested]
        return fold


@torch.inference_mode()
def frozen_features(
    encoder: Encoder,
    pixels: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Extract pooled features, and the patch tokens' means in a grid of 2 x 2 cells.

    Returns:
        (N, F) float32 and (N, 4 D) float32; None where the model has no grid of patches.
    """
    require_size(encoder, pixels)
    encoder = encoder.to(device).eval()
    pooled, cells = [], []
    for batch in batches(pixels, device=device):
        with computing(precision, device):
            out = encoder(batch)
        pooled.append(out.pooled.float().cpu().numpy())
        if encoder.grid is not None:
            patches = out.tokens[:, encoder.prefix_tokens :].float()
            cells.append(grid_means(patches, encoder.grid).cpu().numpy())
    return np.concatenate(pooled), np.concatenate(cells) if cells else None


def grid_means(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, 4 D), the means of patch tokens (B, rows x columns, D) in 2 x 2 cells."""
    maps = patches.transpose(1, 2).reshape(len(patches), -1, *grid)
    return functional.adaptive_avg_pool2d(maps, CELLS).flatten(1)


def thumbnails(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return the mean grey of cells, (N, side * side) float64 in [0, 1], of (N, 3, S, S) uint8."""
    grey = torch.from_numpy(pixels).double().mean(1, keepdim=True) / 255
    small: np.ndarray = functional.adaptive_avg_pool2d(grey, side).flatten(1).numpy()
    return small


def model_rows(
    encoder: Encoder,
    origin: PredictedBy,
    dataset: LabelledDataset,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> pa.Table:
    """Predict the tested images from a frozen encoder's features, by every probe."""
    if dataset.labels is None:
        tokens = token_features(encoder, dataset.pixels, device=device, precision=precision)
        shares = _shares(dataset, int(np.sqrt(tokens.shape[1])))
        predictor = token_predictor(tokens, shares, protocol.folds)
        return _masks_of(origin, dataset, protocol, LINEAR, predictor)
    pooled, cells = frozen_features(encoder, dataset.pixels, device=device, precision=precision)
    parts = [
        _neighbours(pooled, origin, dataset, protocol),
        _linear(pooled, origin, dataset, protocol, LINEAR),
    ]
    if cells is not None:
        parts.append(_linear(cells, origin, dataset, protocol, GRID))
    return pa.concat_tables([*parts, *_few(pooled, origin, dataset, protocol)])


def trivial_rows(dataset: LabelledDataset, protocol: Protocol) -> pa.Table:
    """Predict the tested images without a model."""
    constant, thumbnail = PredictedBy(CONSTANT), PredictedBy(THUMBNAIL)
    small = thumbnails(dataset.pixels)
    if dataset.labels is None:
        assert dataset.masks is not None
        classes = len(dataset.class_names) + 1
        same = constant_predictor(dataset.masks, classes, protocol.folds)
        ridge = thumbnail_predictor(small, _shares(dataset, SIDE), protocol.folds)
        return pa.concat_tables(
            [
                _masks_of(constant, dataset, protocol, CONSTANT, same),
                _masks_of(thumbnail, dataset, protocol, LINEAR, ridge),
            ]
        )
    equal = np.zeros((len(protocol.tested), len(dataset.class_names)))
    return pa.concat_tables(
        [
            class_rows(constant, dataset, CONSTANT, protocol.tested, protocol.fold, equal),
            _neighbours(small, thumbnail, dataset, protocol),
            _linear(small, thumbnail, dataset, protocol, LINEAR),
            *_few(small, thumbnail, dataset, protocol),
        ]
    )


def _shares(dataset: LabelledDataset, side: int) -> np.ndarray:
    assert dataset.masks is not None
    shares: np.ndarray = patch_shares(dataset.masks, len(dataset.class_names) + 1, side).numpy()
    return shares


def _neighbours(
    features: np.ndarray, origin: PredictedBy, dataset: LabelledDataset, protocol: Protocol
) -> pa.Table:
    folds = protocol.folds
    scores = np.empty((len(dataset), len(dataset.class_names)))
    for tested in folds.tested:
        split = Split(folds.outside(tested), folds.rows(tested))
        scores[split.test] = knn_probe(
            features, dataset, split, neighbours=protocol.neighbours
        ).predictions
    own = scores[protocol.tested]
    return class_rows(origin, dataset, KNN, protocol.tested, protocol.fold, own)


def _linear(
    features: np.ndarray,
    origin: PredictedBy,
    dataset: LabelledDataset,
    protocol: Protocol,
    method: str,
) -> pa.Table:
    assert dataset.labels is not None
    scores, _ = classify(features, dataset.labels, len(dataset.class_names), protocol.folds)
    own = scores[protocol.tested]
    return class_rows(origin, dataset, method, protocol.tested, protocol.fold, own)


def _few(
    features: np.ndarray, origin: PredictedBy, dataset: LabelledDataset, protocol: Protocol
) -> Sequence[pa.Table]:
    assert dataset.labels is not None
    classes = len(dataset.class_names)
    found = [PREDICTIONS_SCHEMA.empty_table()]
    for draw in protocol.draws:
        predicted = predict_draw(features, dataset.groups, dataset.labels, classes, draw)
        found.append(
            few_shot_rows(
                origin, dataset, FEW_SHOT, draw.test, predicted, shots=draw.shots, draw=draw.number
            )
        )
    return found


def _masks_of(
    origin: PredictedBy,
    dataset: LabelledDataset,
    protocol: Protocol,
    method: str,
    predictor: Predictor,
) -> pa.Table:
    assert dataset.masks is not None
    masks, _ = segment(predictor, dataset.masks, protocol.folds)
    own = masks[protocol.tested]
    return mask_rows(origin, dataset, method, protocol.tested, protocol.fold, own)
