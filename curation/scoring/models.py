"""Teacher and proxies on one device: images in, features and gradient norms out.

What a batch costs beside the models is kept off the device's way: images arrive as bytes, the masks
are made once, so are the views of a draw for all proxies, and nothing here waits for results.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from echostill.curation.scoring.gradient import (
    GradientLoss,
    corrupted_views,
    prediction_gradient_norms,
)
from echostill.platform.computing.precision import (
    Precision,
    autocast,
    computing_type,
    exact_float32,
    lowered,
)
from echostill.platform.computing.transfer import unit_pixels
from echostill.platform.masking.masks import Masks, MaskSettings, frequency_mask, spatial_mask
from echostill.platform.masking.mim import MaskedImageModel, ReconstructionSettings
from echostill.platform.models import Encoder
from echostill.platform.seeding import stream


def draws_apart(device: torch.device) -> bool:
    """Whether each draw of masks is a pass of its own.

    On GPUs they share one: larger batches and fewer calls keep it busy. On CPUs that would gain
    nothing and change last digits.
    """
    return device.type == "cpu"


class ScoringModels:
    """Frozen models that score a batch."""

    def __init__(
        self,
        teacher: Encoder,
        proxies: Sequence[MaskedImageModel],
        *,
        masks: MaskSettings,
        draws: int,
        seed: int,
        loss: GradientLoss,
        reconstruction: ReconstructionSettings,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Move the models to a device.

        Args:
            teacher: Gives the features.
            proxies: Stored states of one model, in the order of training.
            masks: Mask settings, at their reference size.
            draws: Masks over which a gradient norm is averaged.
            seed: Of the masks.
            loss: Loss whose gradient is measured.
            reconstruction: Settings of the loss ``separated``.
            device: Where to compute.
            precision: Of matrix products.
        """
        self.device = torch.device(device)
        self.kind = computing_type(precision, self.device)
        exact_float32()
        self.teacher = lowered(teacher.eval().requires_grad_(False), self.kind).to(self.device)
        self.proxies = [
            lowered(proxy.eval().requires_grad_(False), self.kind).to(self.device)
            for proxy in proxies
        ]
        self.loss, self.reconstruction = loss, reconstruction
        encoder = proxies[0].encoder
        self.sizes = (teacher.image_size, encoder.image_size)
        scaled = masks.scaled_to(encoder.image_size, encoder.patch_size)
        self.masks = [self._draw(scaled, seed, draw) for draw in range(draws)]

    @property
    def widths(self) -> dict[str, int]:
        """The columns of a result and how many numbers each has."""
        return {
            "feature": self.teacher.feature_dim,
            "gradient": len(self.proxies),
            "reconstruction_error": 1,
        }

    def __call__(self, squares: Mapping[int, Tensor]) -> Tensor:
        """Score a batch.

        Args:
            squares: uint8 (N, C, S, S) for each of ``sizes``, one channel or three, in memory.

        Returns:
            (N, sum of ``widths``) float32 on the device, the columns in that order.
        """
        by_size = {size: self._pixels(squares[size]) for size in set(self.sizes)}
        rows = len(squares[self.sizes[0]])
        with torch.inference_mode(), autocast(self.device, self.kind):
            pooled = self.teacher(by_size[self.sizes[0]]).pooled.float()
            feature = torch.nn.functional.normalize(pooled, dim=1)
        norms, errors = self._gradients(by_size[self.sizes[1]])
        # The last proxy is the trained one: its error is the image's.
        return torch.cat([feature, norms, errors[:, -1:]], dim=1)[:rows]

    def _pixels(self, images: Tensor) -> Tensor:
        # For a single image the sums would be divided among threads, and their last digits would
        # depend on the number of threads: add a black image to the batch.
        if len(images) == 1:
            images = torch.cat([images, torch.zeros_like(images)])
        return unit_pixels(images, self.device)

    def _gradients(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Measure gradient norms and losses, means over the draws: (N, proxies) each."""
        count = len(target)
        expanded = [Masks(*(mask.expand(count, -1, -1) for mask in masks)) for masks in self.masks]
        if not draws_apart(self.device):
            target = target.repeat(len(expanded), 1, 1, 1)
            expanded = [Masks(*(torch.cat(masks) for masks in zip(*expanded, strict=True)))]
        views = [corrupted_views(target, masks, self.loss) for masks in expanded]
        norms, errors = [], []
        for proxy in self.proxies:
            with autocast(self.device, self.kind):
                measured = [
                    prediction_gradient_norms(
                        proxy, target, masks, self.loss, self.reconstruction, view
                    )
                    for masks, view in zip(expanded, views, strict=True)
                ]
            norm, error = (
                torch.cat(values).reshape(-1, count) for values in zip(*measured, strict=True)
            )
            norms.append(norm.mean(dim=0))
            errors.append(error.mean(dim=0))
        return torch.stack(norms, dim=1), torch.stack(errors, dim=1)

    def _draw(self, settings: MaskSettings, seed: int, draw: int) -> Masks:
        """Make the masks of a draw: the same for every image, so that gradients are comparable."""
        numbers = stream(seed, "score mask", draw)
        spatial = spatial_mask(numbers.random((1, settings.spatial.count)), settings.spatial)
        frequency = frequency_mask(
            numbers.random((1, settings.frequency.count)), settings.frequency
        )
        return Masks(spatial.to(self.device), frequency.to(self.device))
