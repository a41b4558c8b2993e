"""Per-image gradient norms of the proxy's last layer, exact, from one forward pass.

The last layer of the decoder is linear: y = W h + b for each patch token t. With g_t = dL_i/dy_t,

    dL_i/dW = sum_t g_t h_t^T,    ||dL_i/dW||_F^2 = sum_{t,t'} (g_t . g_t') (h_t . h_t'),

so the norm for image i needs only g and h. For the mean squared error over the hidden patches M
with P values each, g_t = 2 e_t / (|M| P) inside M and 0 outside. For any other loss g is the
derivative of the loss with respect to the prediction, which is cheap, because no gradient passes
through the network. The norm does not include the bias b.
"""

from typing import Literal

import torch
from torch import Tensor

from echostill.platform.masking.masks import Masks, apply_frequency, apply_spatial
from echostill.platform.masking.mim import (
    MaskedImageModel,
    PixelLoss,
    ReconstructionSettings,
    separated_losses,
    spatial_reconstruction_loss,
)

GradientLoss = Literal["mse", "l1", "normalised-mse", "separated"]


def outer_product_norms(gradient: Tensor, hidden: Tensor) -> Tensor:
    """Frobenius norms of G_i^T H_i without more memory or work than needed.

    Either the (P, d) matrix is formed, at T P d products, or the two (T, T) Gram matrices, at
    T^2 (P + d). Sums run in float32 at least, the Gram form in float64: its terms cancel.

    Args:
        gradient: (B, T, P), derivative of each image's loss with respect to its prediction.
        hidden: (B, T, d), the input of the linear layer.

    Returns:
        (B,) norms, float32 (float64 for float64 input).
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    device = gradient.device.type
    tokens, values, width = gradient.shape[1], gradient.shape[2], hidden.shape[2]
    # Autocast would compute the products in half precision.
    with torch.autocast(device, enabled=False):
        if values * width <= tokens * (values + width):
            product = gradient.to(exact).transpose(1, 2) @ hidden.to(exact)
            norms: Tensor = torch.linalg.vector_norm(product, dim=(1, 2))
            return norms
        g, h = gradient.double(), hidden.double()
        squared = ((g @ g.transpose(1, 2)) * (h @ h.transpose(1, 2))).sum(dim=(1, 2))
        return squared.clamp_min(0).sqrt().to(exact)


def corrupted_views(pixels: Tensor, masks: Masks, loss: GradientLoss) -> Tensor:
    """Make what the proxy sees: the spatial views, for ``separated`` then those of frequencies."""
    views = apply_spatial(pixels, masks.spatial)
    if loss == "separated":
        views = torch.cat([views, apply_frequency(pixels, masks.frequency)])
    return views


def prediction_gradient_norms(
    model: MaskedImageModel,
    pixels: Tensor,
    masks: Masks,
    loss: GradientLoss = "mse",
    reconstruction: ReconstructionSettings | None = None,
    views: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure the gradient of each image with respect to the last layer: ||dL_i/dW_prediction||_F.

    The model should be in evaluation mode. For comparable images, give all of them the same mask
    draw (one row of uniforms, expanded), and average several draws.

    Args:
        model: The proxy; its parameters get no gradient.
        pixels: (B, 3, S, S) uncorrupted, in [0, 1].
        masks: Masks of the batch; the frequency mask is only used by ``separated``.
        loss: ``mse``, ``l1`` or ``normalised-mse`` over the hidden pixels of the spatial view, or
            ``separated``, the proxy's own training loss over both views.
        reconstruction: Settings of the training loss, for ``separated``.
        views: Of :func:`corrupted_views`, where several models see the same; else they are made.

    Returns:
        Gradient norms (B,) and the losses L_i (B,), the reconstruction error; float32 (float64
        for a float64 model).
    """
    with torch.no_grad():
        output = model(corrupted_views(pixels, masks, loss) if views is None else views)
    # The caller may be in inference mode, whose tensors autograd rejects; clones leave it.
    with torch.inference_mode(False), torch.enable_grad():
        exact = torch.promote_types(output.prediction.dtype, torch.float32)
        prediction = _outside(output.prediction.to(exact)).detach().requires_grad_(True)
        target = _outside(pixels.to(exact))
        masks = Masks(_outside(masks.spatial), _outside(masks.frequency))
        if loss == "separated":
            spatial, frequency = prediction.chunk(2)
            settings = reconstruction or ReconstructionSettings()
            losses = separated_losses(
                spatial, frequency, target, masks, model.patch_size, settings
            ).loss
        else:
            pixel: PixelLoss = loss
            losses = spatial_reconstruction_loss(
                prediction, target, masks.spatial, model.patch_size, pixel
            )
        # Each loss depends only on its own rows, so the gradient of the sum contains all gradients.
        (gradient,) = torch.autograd.grad(losses.sum(), prediction)
    hidden = output.hidden
    if loss == "separated":
        # Both views share the layer: their tokens add up in the sum over t.
        gradient = torch.cat(gradient.chunk(2), dim=1)
        hidden = torch.cat(hidden.chunk(2), dim=1)
    return outer_product_norms(gradient, hidden), losses.detach()


def _outside(values: Tensor) -> Tensor:
    """Return a tensor that autograd takes: a copy of one that was made in inference mode."""
    return values.clone() if values.is_inference() else values
