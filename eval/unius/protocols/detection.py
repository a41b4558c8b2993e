"""Detection of lesions: a linear head on frozen tokens, one box per token, all [I].

Each token says for each class whether its middle lies in a box, and how far that box's sides are
away (as in FCOS, Tian et al., 2019, on one level). Where a set has masks, boxes are made from them.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from echostill.eval.splits import Split
from echostill.eval.unius.protocols.boxes import (
    Boxes,
    boxes_of,
    mean_average_precision,
    suppressed,
)
from echostill.eval.unius.protocols.data import BenchData, limited, nested_share
from echostill.eval.unius.protocols.frozen import extend, grid_features
from echostill.eval.unius.protocols.measures import Measured
from echostill.eval.unius.protocols.settings import ProtocolSettings
from echostill.platform.computing.precision import Precision
from echostill.platform.models import Encoder

METHOD = "box head"
STEPS, RATE, DECAY = 200, 1e-2, 1e-2  # of AdamW on all tokens of the training side
LEAST_SCORE = 0.05


def run_detection(
    encoder: Encoder,
    data: BenchData,
    settings: ProtocolSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> list[Measured]:
    """Train the head on frozen tokens, detect on the test side, measure the precision."""
    count, test = len(data.dataset.class_names), data.sides["test"]
    extended = extend(data, test, settings, seed)
    masks = extended.dataset.masks
    assert masks is not None
    pixels = extended.dataset.pixels
    tokens = torch.from_numpy(grid_features(encoder, pixels, device=device, precision=precision))
    whole = limited(data, data.training, settings.frozen.most_training_images, seed)
    measured = []
    for share in settings.shares:
        split = Split(nested_share(data, whole, share, seed), test)
        head = train_head(
            tokens[split.train], [boxes_of(masks[row], count) for row in split.train], data, seed
        )
        for condition, (rows, where) in extended.conditions.items():
            found = detect(head, tokens[where], data.dataset.image_size)
            wanted = [boxes_of(masks[place], count) for place in where]
            metrics = {
                "map": mean_average_precision(wanted, found, count),
                "map50": mean_average_precision(wanted, found, count, (0.5,)),
            }
            images = tuple(
                {
                    "id": data.ids[row],
                    "group": str(data.dataset.groups[row]),
                    "target": -1,
                    # class, score, corners of each box, one after another
                    "values": np.column_stack([b.classes, b.scores, b.corners]).ravel().tolist(),
                }
                for row, b in zip(rows, found, strict=True)
            )
            known = {name: value for name, value in metrics.items() if not math.isnan(value)}
            measured.append(Measured(METHOD, condition, share, known, images))
    return measured


class BoxHead(nn.Module):
    """A linear layer on standardised tokens: a logit per class and four distances."""

    def __init__(self, tokens: Tensor, classes: int) -> None:
        """Make a head that standardises as the training tokens (n, T, D) need."""
        super().__init__()
        flat = tokens.flatten(0, 1)
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("scale", flat.std(0, unbiased=False).clamp_min(1e-6))
        self.classes = classes
        self.linear = nn.Linear(tokens.shape[2], classes + 4)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, T, classes) and distances (n, T, 4) as shares of the image's side."""
        normed = (tokens - self.get_buffer("mean")) / self.get_buffer("scale")
        out = self.linear(normed)
        return out[..., : self.classes], functional.softplus(out[..., self.classes :] - 1)


def train_head(tokens: Tensor, wanted: list[Boxes], data: BenchData, seed: int) -> BoxHead:
    """Train on tokens (n, T, D) and the boxes of each image; deterministic, from zero."""
    count, size = len(data.dataset.class_names), data.dataset.image_size
    logits, distances = targets(wanted, count, size, math.isqrt(tokens.shape[1]))
    head = BoxHead(tokens, count)
    inside = logits.max(2).values > 0
    optimiser = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        found, sides = head(tokens)
        loss = functional.binary_cross_entropy_with_logits(found, logits)
        if inside.any():
            loss = loss + functional.smooth_l1_loss(sides[inside], distances[inside], beta=0.1)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return head.eval()


def targets(wanted: list[Boxes], count: int, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Return what each token should say: classes (n, T, classes), distances (n, T, 4).

    A token is about the smallest box that its middle lies in.
    """
    middles = middle_points(size, side)
    logits = torch.zeros(len(wanted), len(middles), count)
    distances = torch.zeros(len(wanted), len(middles), 4)
    for image, boxes in enumerate(wanted):
        areas = (boxes.corners[:, 2:] - boxes.corners[:, :2]).prod(1)
        for row in np.argsort(-areas, kind="stable"):
            corners = boxes.corners[row]
            away = np.concatenate([middles - corners[:2], corners[2:] - middles], axis=1)
            own = torch.from_numpy((away > 0).all(1))
            logits[image, own] = 0.0
            logits[image, own, int(boxes.classes[row])] = 1.0
            distances[image, own] = torch.from_numpy(away / size).float()[own]
    return logits, distances


def detect(head: BoxHead, tokens: Tensor, size: int) -> list[Boxes]:
    """Return the boxes that a head finds in each image's tokens (n, T, D)."""
    with torch.inference_mode():
        logits, distances = head(tokens)
    middles = middle_points(size, math.isqrt(tokens.shape[1]))
    found = []
    for own, sides in zip(torch.sigmoid(logits).numpy(), distances.numpy() * size, strict=True):
        near = np.concatenate([middles - sides[:, :2], middles + sides[:, 2:]], axis=1)
        places, classes = np.nonzero(own >= LEAST_SCORE)
        corners = near[places].clip(0, size).astype(np.float64)
        scores = own[places, classes].astype(np.float64)
        found.append(suppressed(Boxes(classes.astype(np.int64), corners, scores)))
    return found


def middle_points(size: int, side: int) -> np.ndarray:
    """Return the middles (side x side, 2) of the tokens' patches, x and y in pixels, by rows."""
    along = (np.arange(side) + 0.5) * size / side
    return np.stack([np.tile(along, side), np.repeat(along, side)], axis=1)
