"""Masked image modelling: a light decoder, the losses in pixels and in frequency, the model.

The encoder sees corrupted pixels and keeps its whole token grid (nothing is dropped, which the
teacher's relative positions need). The decoder predicts every patch from its token; targets are
pixels in [0, 1] before normalisation. Every loss is per image, so that it can be weighted.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import Masks, apply_both, apply_frequency, apply_spatial
from echostill.platform.models import Encoder, EncoderOutput

PixelLoss = Literal["l1", "mse", "normalised-mse"]
FrequencyLoss = Literal["stopped", "focal"]


class DecoderSettings(Config):
    """A decoder too light to do the encoder's work (MAE-Lite's: width 96, one block, 3 heads)."""

    dim: int = Field(96, ge=1, description="Width.")
    depth: int = Field(1, ge=0, description="Transformer blocks.")
    heads: int = Field(3, ge=1, description="Attention heads.")

    @model_validator(mode="after")
    def _whole_heads(self) -> "DecoderSettings":
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} must divide dim {self.dim}")
        return self


class ReconstructionSettings(Config):
    """What counts as a good reconstruction."""

    pixel: PixelLoss = Field("l1", description="Loss over hidden pixels.")
    frequency: FrequencyLoss = Field("stopped", description="Loss of the spectrum.")
    frequency_weight: float = Field(1.0, ge=0, description="Weight of the spectrum's loss.")


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, S, S) into patches (B, N, p*p*C), rows first, channels last."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Put patches (B, N, p*p*C) of a square image together again: (B, C, S, S)."""
    batch, count, values = patches.shape
    side = round(count**0.5)
    channels = values // patch_size**2
    cut = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, side * patch_size, side * patch_size
    )


def spatial_reconstruction_loss(
    prediction: Tensor, pixels: Tensor, mask: Tensor, patch_size: int, pixel: PixelLoss = "l1"
) -> Tensor:
    """Compare the hidden pixels of each image.

    ``l1`` is the mean of |prediction - pixel| over hidden pixels and channels (SimMIM, A2MIM);
    ``mse`` its square; ``normalised-mse`` the square against each patch's pixels brought to mean
    0 and variance 1 (MAE's normalised target).

    Args:
        prediction: (B, N, p*p*C) patches.
        pixels: (B, C, S, S) uncorrupted, in [0, 1].
        mask: (B, S, S) bool, True where hidden.
        patch_size: p, in pixels.
        pixel: Which loss.

    Returns:
        (B,) losses, 0 for an image with nothing hidden.
    """
    target = patchify(pixels, patch_size)
    if pixel == "normalised-mse":
        mean, deviation = _patch_statistics(target)
        target = (target - mean) / deviation
    difference = prediction - target
    error = difference.abs() if pixel == "l1" else difference.square()
    if not mask.stride(0):  # one mask, expanded over the batch
        mask = mask[:1]
    hidden = patchify(mask[:, None].expand(-1, pixels.shape[1], -1, -1), patch_size)
    total = torch.where(hidden, error, 0).sum(dim=(1, 2))
    # To count truth values torch first makes whole numbers of them: once, not for each channel.
    count = mask.sum(dim=(1, 2)) * pixels.shape[1]
    return total / count.clamp_min(1)


def frequency_reconstruction_loss(reconstruction: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Compare the stopped frequencies: sum (1 - M)|F(x^) - F(x)| / sum (1 - M), mean of channels.

    F is the orthonormal transform, so the size of the loss does not depend on that of the image.

    Args:
        reconstruction: (B, C, S, S).
        pixels: (B, C, S, S) uncorrupted, in [0, 1].
        mask: (B, S, S) bool, True where frequencies pass, centred layout.

    Returns:
        (B,) losses, 0 for an image with nothing stopped.
    """
    spectrum, times = _half_spectrum(reconstruction - pixels)
    stopped = torch.fft.ifftshift(~mask, dim=(-2, -1))[:, None, :, : spectrum.shape[-1]]
    counted = stopped * times
    total = (counted * spectrum.abs()).sum(dim=(1, 2, 3))
    mean: Tensor = total / (counted.sum(dim=(1, 2, 3)) * pixels.shape[1]).clamp_min(1)
    return mean


def focal_frequency_loss(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Compare the whole spectrum, hard frequencies weighing more (A2MIM's focal frequency loss).

    mean(w |dF|^2) with w = log(1 + |dF|) over its largest value, in [0, 1] and detached. Here the
    largest value and the mean are those of each image, so that the loss is its own.

    Returns:
        (B,) losses.
    """
    difference, times = _half_spectrum(reconstruction - pixels)
    squared = difference.real.square() + difference.imag.square()
    weight = squared.detach().sqrt().log1p()
    weight = weight / weight.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    return (times * weight * squared).sum(dim=(1, 2, 3)) / pixels[0].numel()


def to_pixels(
    prediction: Tensor, pixels: Tensor, patch_size: int, pixel: PixelLoss = "l1"
) -> Tensor:
    """Turn predicted patches (B, N, p*p*C) into an image (B, C, S, S) on the scale of the pixels.

    With ``normalised-mse`` the decoder predicts each patch up to its mean and deviation; these
    are taken from the uncorrupted pixels.
    """
    if pixel == "normalised-mse":
        mean, deviation = _patch_statistics(patchify(pixels, patch_size))
        prediction = prediction * deviation + mean
    return unpatchify(prediction, patch_size)


def frequency_loss(
    prediction: Tensor,
    pixels: Tensor,
    mask: Tensor,
    patch_size: int,
    settings: ReconstructionSettings,
) -> Tensor:
    """Compare the spectrum of predicted patches with that of the pixels, as the settings ask.

    Arguments as in :func:`spatial_reconstruction_loss`, the mask that of the frequencies.

    Returns:
        (B,) losses, not yet times ``settings.frequency_weight``.
    """
    image = to_pixels(prediction, pixels, patch_size, settings.pixel)
    if settings.frequency == "focal":
        return focal_frequency_loss(image, pixels)
    return frequency_reconstruction_loss(image, pixels, mask)


class Decoder(nn.Module):
    """Token to patch: a linear layer, a few blocks, LayerNorm and the linear ``prediction``.

    It has no positions of its own: no token was dropped, so each still carries its place. Tokens
    are normalised on entry, because the published encoders have no norm after their last block.
    """

    def __init__(self, encoder_dim: int, patch_size: int, settings: DecoderSettings) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(encoder_dim)
        self.embedding = nn.Linear(encoder_dim, settings.dim)
        self.blocks = nn.Sequential(
            *(
                Block(settings.dim, settings.heads, mlp_ratio=4, qkv_bias=True)
                for _ in range(settings.depth)
            )
        )
        self.norm = nn.LayerNorm(settings.dim)
        self.prediction = nn.Linear(settings.dim, 3 * patch_size**2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return what enters the last layer: patch tokens (B, N, D) to (B, N, dim)."""
        entering: Tensor = self.norm(self.blocks(self.embedding(self.input_norm(tokens))))
        return entering

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted patches (B, N, p*p*3) and what entered the last layer (B, N, dim)."""
        hidden = self.hidden(tokens)
        return self.prediction(hidden), hidden


class MaskedImageOutput(NamedTuple):
    """What the model makes of a corrupted view."""

    prediction: Tensor  # (B, N, p*p*3) patches
    hidden: Tensor  # (B, N, decoder dim), the input of the last linear layer
    encoded: EncoderOutput


class MaskedImageModel(nn.Module):
    """An encoder with the light decoder that reconstructs its input from corrupted pixels."""

    def __init__(self, encoder: Encoder, settings: DecoderSettings | None = None) -> None:
        """Put a new decoder behind an encoder.

        Raises:
            UsageError: The encoder's tokens are not those of whole square patches of its input.
        """
        super().__init__()
        _check_patches(encoder)
        self.encoder = encoder
        self.decoder = Decoder(encoder.dim, encoder.patch_size, settings or DecoderSettings())

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder.patch_size

    def forward(self, pixels: Tensor, layers: Sequence[int] = ()) -> MaskedImageOutput:
        """Reconstruct.

        Args:
            pixels: (B, 3, S, S) corrupted view, in [0, 1] but for the overshoot of band-stopping.
            layers: Blocks (counted from 1) after which the encoder's tokens are wanted as well.
        """
        encoded = self.encoder(pixels, layers)
        prediction, hidden = self.decoder(encoded.tokens[:, self.encoder.prefix_tokens :])
        return MaskedImageOutput(prediction, hidden, encoded)


def _check_patches(encoder: Encoder) -> None:
    rows, columns = encoder.patch_grid()
    if rows != columns or rows * encoder.patch_size != encoder.image_size:
        raise UsageError(
            f"'{encoder.name}' cannot be trained by masked image modelling: it cuts "
            f"{encoder.image_size} pixels into a grid of {rows} x {columns}, which are no whole "
            "patches. Choose another image size for it, or another model, such as a ViT."
        )


class Reconstruction(NamedTuple):
    """Reconstruction losses of each image."""

    loss: Tensor  # (B,) spatial + frequency_weight * frequency
    spatial: Tensor  # (B,)
    frequency: Tensor  # (B,)

    @property
    def mean(self) -> Tensor:
        """Mean loss over the batch, a scalar."""
        return self.loss.mean()


def joint_losses(
    prediction: Tensor,
    pixels: Tensor,
    masks: Masks,
    patch_size: int,
    settings: ReconstructionSettings,
) -> Reconstruction:
    """Losses of USFM's recipe: both masks corrupted one input, one prediction answers for both."""
    return separated_losses(prediction, prediction, pixels, masks, patch_size, settings)


def separated_losses(
    spatial_prediction: Tensor,
    frequency_prediction: Tensor,
    pixels: Tensor,
    masks: Masks,
    patch_size: int,
    settings: ReconstructionSettings,
) -> Reconstruction:
    """Losses of domain-separated modelling: L_spa of one view + lambda_f L_freq of the other.

    Args:
        spatial_prediction: (B, N, p*p*3) from the view with hidden blocks.
        frequency_prediction: (B, N, p*p*3) from the view with stopped bands.
        pixels: (B, 3, S, S) uncorrupted, in [0, 1].
        masks: The masks of both views.
        patch_size: p, in pixels.
        settings: Which losses, and lambda_f.
    """
    # Losses are sums over many values, and the spectrum has no half precision: float32 at least.
    if pixels.dtype != torch.float64:
        spatial_prediction, frequency_prediction = (
            spatial_prediction.float(),
            frequency_prediction.float(),
        )
        pixels = pixels.float()
    spatial = spatial_reconstruction_loss(
        spatial_prediction, pixels, masks.spatial, patch_size, settings.pixel
    )
    frequency = frequency_loss(frequency_prediction, pixels, masks.frequency, patch_size, settings)
    return Reconstruction(spatial + settings.frequency_weight * frequency, spatial, frequency)


def spatial_loss(
    prediction: Tensor,
    pixels: Tensor,
    masks: Masks,
    patch_size: int,
    settings: ReconstructionSettings,
) -> Reconstruction:
    """Loss of the view with hidden blocks alone (MAE, SimMIM); that of frequencies is 0."""
    if pixels.dtype != torch.float64:
        prediction, pixels = prediction.float(), pixels.float()
    loss = spatial_reconstruction_loss(
        prediction, pixels, masks.spatial, patch_size, settings.pixel
    )
    return Reconstruction(loss, loss, torch.zeros_like(loss))


def joint_reconstruction(
    model: MaskedImageModel, pixels: Tensor, masks: Masks, settings: ReconstructionSettings
) -> Reconstruction:
    """Corrupt one input by both masks, reconstruct it and return the losses (USFM)."""
    output = model(apply_both(pixels, masks))
    return joint_losses(output.prediction, pixels, masks, model.patch_size, settings)


def separated_reconstruction(
    model: MaskedImageModel, pixels: Tensor, masks: Masks, settings: ReconstructionSettings
) -> Reconstruction:
    """Reconstruct two views, one per mask, in one pass and return the losses (TinyUSFM)."""
    views = torch.cat(
        [apply_spatial(pixels, masks.spatial), apply_frequency(pixels, masks.frequency)]
    )
    spatial, frequency = model(views).prediction.chunk(2)
    return separated_losses(spatial, frequency, pixels, masks, model.patch_size, settings)


def _half_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Spectrum of real images without the half that mirrors the other.

    Returns:
        (B, C, S, S // 2 + 1) complex, in the transform's own layout, and how often each column
        stands in the whole spectrum, (S // 2 + 1,).
    """
    exact = images if images.dtype == torch.float64 else images.float()
    side = images.shape[-1]
    spectrum = torch.fft.rfft2(exact, norm="ortho")
    times = torch.full((spectrum.shape[-1],), 2, dtype=exact.dtype, device=exact.device)
    times[0] = 1
    if side % 2 == 0:
        times[-1] = 1
    return spectrum, times


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, (B, N, 1); MAE's small constant keeps flat patches."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
