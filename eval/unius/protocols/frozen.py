"""The frozen protocol: probes on a model's features; the model is not trained.

Everything that is tested (each round's test images, plain and changed) goes through the encoder
once. The probes are those of ``evaluate``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from echostill.eval.datasets import LabelledDataset
from echostill.eval.metrics import classification_metrics
from echostill.eval.names import KNN, LINEAR
from echostill.eval.probes import (
    INVERSE_PENALTIES,
    batches,
    knn_probe,
    linear_probe,
    linear_probe_segmentation,
    pooled_features,
    require_size,
    token_features,
)
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.data import BenchData, limited, nested_share
from echostill.eval.unius.protocols.measures import (
    CLEAN,
    Measured,
    measure_classification,
    measure_segmentation,
)
from echostill.eval.unius.protocols.robustness import corrupt, corrupt_masks
from echostill.eval.unius.protocols.settings import ProtocolSettings
from echostill.platform.computing.precision import Precision, computing
from echostill.platform.models import Encoder
from echostill.platform.seeding import stream

Predict = Callable[[Split], np.ndarray]
FEW_SHOT_PENALTY = sorted(INVERSE_PENALTIES)[len(INVERSE_PENALTIES) // 2]


@dataclass(frozen=True)
class Extended:
    """A dataset with changed copies of some rows behind its own.

    Attributes:
        dataset: Its own rows, then the copies.
        conditions: For each condition the rows tested, and where their images are.
    """

    dataset: LabelledDataset
    conditions: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Rounds:
    """What is trained on and tested, with the changed copies of what is tested.

    A prediction is asked for by a split of :attr:`dataset`'s rows: what to train on, and the rows
    to predict, those of all conditions.
    """

    data: BenchData
    settings: ProtocolSettings
    seed: int
    splits: tuple[Split, ...]  # without the copies
    extended: Extended

    @classmethod
    def of(cls, data: BenchData, settings: ProtocolSettings, seed: int) -> "Rounds":
        """Divide a task's images, and change those that are tested."""
        own = settings.frozen
        splits = tuple(
            Split(limited(data, split.train, own.most_training_images, seed), split.test)
            for split in data.rounds(own.split)
        )
        tested = np.concatenate([split.test for split in splits])
        return cls(data, settings, seed, splits, extend(data, tested, settings, seed))

    @property
    def dataset(self) -> LabelledDataset:
        """The images, then the changed copies."""
        return self.extended.dataset

    def probed(self, features: np.ndarray) -> list[Measured]:
        """Measure features (N, D) of the dataset by k-NN, linear probe and few-shot."""
        neighbours = self.settings.frozen.neighbours

        def near(split: Split) -> np.ndarray:
            return knn_probe(features, self.dataset, split, neighbours=neighbours).predictions

        def linear(split: Split) -> np.ndarray:
            return linear_probe(features, self.dataset, split, seed=self.seed).predictions

        return [*self.classified({KNN: near, LINEAR: linear}), *self._few_shots(features)]

    def classified(self, methods: Mapping[str, Predict]) -> list[Measured]:
        """Measure classifiers that give probabilities (M, C), by their names."""
        measured = []
        for share in self.settings.shares:
            splits = self._splits(share)
            places = np.concatenate([split.test for split in splits])
            for method, predict in methods.items():
                table = np.zeros((len(self.dataset), len(self.dataset.class_names)))
                table[places] = np.concatenate([predict(split) for split in splits])
                measured += [
                    measure_classification(
                        self.data,
                        rows,
                        table[where],
                        method=method,
                        condition=condition,
                        share=share,
                    )
                    for condition, (rows, where) in self.extended.conditions.items()
                ]
        return measured

    def segmented(self, predict: Predict, method: str) -> list[Measured]:
        """Measure what gives masks (M, S, S)."""
        assert self.dataset.masks is not None
        measured = []
        for share in self.settings.shares:
            masks = np.zeros_like(self.dataset.masks)
            for split in self._splits(share):
                masks[split.test] = predict(split)
            for condition, (rows, where) in self.extended.conditions.items():
                measured.append(
                    measure_segmentation(
                        moved(self.data, self.extended, rows, where),
                        rows,
                        masks[where],
                        method=method,
                        condition=condition,
                        share=share,
                        native=condition == CLEAN and share == 1,
                    )
                )
        return measured

    def _splits(self, share: float) -> list[Split]:
        """What a share of the training groups is, and where all images of the tested rows are."""
        conditions = self.extended.conditions.values()
        return [
            Split(
                nested_share(self.data, split.train, share, self.seed),
                np.concatenate([where[np.isin(rows, split.test)] for rows, where in conditions]),
            )
            for split in self.splits
        ]

    def _few_shots(self, features: np.ndarray) -> list[Measured]:
        """Linear probes trained on a few groups of each class; the mean over the draws."""
        dataset, settings = self.data.dataset, self.settings
        assert dataset.labels is not None
        measured = []
        for few in settings.frozen.few_shot:
            draws = []
            for draw in range(settings.frozen.draws):
                tables, tests = [], []
                for number, split in enumerate(self.splits):
                    chosen = _few(
                        dataset, split.train, few, stream(self.seed, "few", few, draw, number)
                    )
                    if chosen is None:
                        break
                    probe = linear_probe(
                        features[: len(dataset)],
                        dataset,
                        Split(chosen, split.test),
                        seed=self.seed,
                        inverse_penalties=(FEW_SHOT_PENALTY,),
                    )
                    tables.append(probe.predictions)
                    tests.append(split.test)
                if len(tables) == len(self.splits):
                    labels = dataset.labels[np.concatenate(tests)]
                    draws.append(classification_metrics(labels, np.concatenate(tables)))
            if draws:
                means = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
                values = [draw["balanced_accuracy"] for draw in draws]
                means["balanced_accuracy_spread"] = float(np.std(values))
                measured.append(Measured(f"few-shot {few}", CLEAN, 1.0, means))
        return measured


def run_frozen(
    encoder: Encoder,
    data: BenchData,
    settings: ProtocolSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> list[Measured]:
    """Measure an encoder by its features.

    Args:
        encoder: The encoder.
        data: The task at the encoder's input size.
        settings: What is measured.
        seed: Of the inner splits, the shares and the draws.
        device: Where the encoder computes.
        precision: What it computes in.
    """
    rounds = Rounds.of(data, settings, seed)
    if data.task.kind == "classification":
        return rounds.probed(
            pooled_features(encoder, rounds.dataset.pixels, device=device, precision=precision)
        )
    tokens = grid_features(encoder, rounds.dataset.pixels, device=device, precision=precision)

    def predict(split: Split) -> np.ndarray:
        return linear_probe_segmentation(tokens, rounds.dataset, split, seed=seed).predictions

    return rounds.segmented(predict, LINEAR)


def extend(data: BenchData, tested: np.ndarray, settings: ProtocolSettings, seed: int) -> Extended:
    """Put changed copies of tested rows behind the dataset."""
    dataset, count = data.dataset, len(data.dataset)
    conditions = {CLEAN: (tested, tested)}
    pixels, groups, files = [dataset.pixels], [dataset.groups], list(dataset.files)
    labels = [] if dataset.labels is None else [dataset.labels]
    masks = [] if dataset.masks is None else [dataset.masks]
    order = np.sort(stream(seed, "corrupted").permutation(len(tested))[: settings.corrupted_images])
    rows = tested[order]
    for kind in settings.corruptions:
        conditions[kind] = rows, np.arange(count, count + len(rows))
        count += len(rows)
        ids = [data.ids[row] for row in rows]
        pixels.append(corrupt(kind, dataset.pixels[rows], ids))
        groups.append(dataset.groups[rows])
        files += [dataset.files[row] for row in rows]
        if dataset.labels is not None:
            labels.append(dataset.labels[rows])
        if dataset.masks is not None:
            masks.append(corrupt_masks(kind, dataset.masks[rows]))
    larger = replace(
        dataset,
        files=tuple(files),
        groups=np.concatenate(groups),
        pixels=np.concatenate(pixels),
        labels=np.concatenate(labels) if labels else None,
        masks=np.concatenate(masks) if masks else None,
    )
    return Extended(larger, conditions)


@torch.inference_mode()
def grid_features(
    encoder: Encoder,
    pixels: np.ndarray,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> np.ndarray:
    """Extract tokens of three layers on one grid, concatenated: (N, tokens, channels) float32.

    A plain ViT gives :func:`token_features`. The stages of other models have grids of their own,
    which are resampled to a token per 16 pixels, as the published models have.
    """
    layers = encoder.third_layers()
    shapes = [encoder.layer(layer) for layer in layers]
    if len({shape.grid for shape in shapes}) == 1 and shapes[0].grid[0] == shapes[0].grid[1]:
        return token_features(
            encoder, pixels, batch_size=batch_size, device=device, precision=precision
        )
    require_size(encoder, pixels)
    side = max(encoder.image_size // 16, 1)
    encoder = encoder.to(device).eval()
    parts = []
    for batch in batches(pixels, batch_size, device):
        with computing(precision, device):
            outputs = encoder(batch, layers).intermediate
        maps = [
            resampled(tokens[:, encoder.prefix_tokens :].float(), shape.grid, side)
            for tokens, shape in zip(outputs, shapes, strict=True)
        ]
        parts.append(torch.cat(maps, dim=2).cpu().numpy())
    return np.concatenate(parts)


def resampled(tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Resample tokens (B, rows x columns, D) to (B, side x side, D): means, or bilinear."""
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
    if min(grid) >= side:
        maps = functional.adaptive_avg_pool2d(maps, side)
    else:
        maps = functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def moved(data: BenchData, extended: Extended, rows: np.ndarray, where: np.ndarray) -> BenchData:
    """Return the data with the masks that a condition's images have."""
    assert data.dataset.masks is not None
    assert extended.dataset.masks is not None
    masks = data.dataset.masks.copy()
    masks[rows] = extended.dataset.masks[where]
    return replace(data, dataset=replace(data.dataset, masks=masks))


def _few(
    dataset: LabelledDataset, rows: np.ndarray, few: int, random: np.random.Generator
) -> np.ndarray | None:
    """Return the rows of a few groups of each class; None where a class has no more than these."""
    assert dataset.labels is not None
    chosen = []
    for label in range(len(dataset.class_names)):
        own = rows[dataset.labels[rows] == label]
        names = np.unique(dataset.groups[own])
        if len(names) <= few:
            return None
        kept = names[random.permutation(len(names))[:few]]
        chosen.append(own[np.isin(dataset.groups[own], kept)])
    return np.sort(np.concatenate(chosen))
