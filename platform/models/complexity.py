"""What an encoder costs: parameters and floating-point operations for one image."""

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from echostill.platform.models.encoder import Encoder

# Products of two activations (query x key, attention x value) reach the hardware as batched
# matrix products; those of a weight, as plain ones or as convolutions.
_ATTENTION_PRODUCTS = ("bmm", "baddbmm")


def parameters(encoder: Encoder) -> int:
    """Return the number of parameters, trainable or not; the encoder has no head."""
    return sum(parameter.numel() for parameter in encoder.backbone.parameters())


def gflops(encoder: Encoder) -> float:
    """Return all matrix and convolution operations for one image, in 10^9.

    A multiply-accumulate counts as two; the products inside attention are counted, the norms,
    activations and softmax are not (as usual, they are below one percent).
    """
    return sum(_operations(encoder).values()) / 1e9


def gflops_paper(encoder: Encoder) -> float:
    """Return 2 x MACs of linear and convolution layers for one image, in 10^9.

    The convention behind the published 2.16 GFLOPs of TinyUSFM, 6.40% of USFM's: without the
    products inside attention (inferred: this convention comes to within 0.02 of both numbers, and
    counting the products does not).
    """
    counted = _operations(encoder)
    return sum(n for name, n in counted.items() if name not in _ATTENTION_PRODUCTS) / 1e9


def _operations(encoder: Encoder) -> dict[str, int]:
    """Count the floating-point operations for one image by the name of the operator."""
    # Shapes are enough to count: the forward pass runs on stand-ins without storage, so the
    # largest model costs no memory and no time, wherever its weights are.
    stand_ins = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]
    }
    pixels = torch.empty(1, 3, encoder.image_size, encoder.image_size, device="meta")
    training = encoder.training
    encoder.eval()
    try:
        # A fused kernel would hide attention's products in one operator; the plain one shows them.
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            functional_call(encoder, stand_ins, (pixels,))
    finally:
        encoder.train(training)
    counts: dict[str, int] = {}
    for operator, operations in counter.get_flop_counts()["Global"].items():
        name = str(operator).removeprefix("aten.").split(".")[0]
        counts[name] = counts.get(name, 0) + int(operations)
    return counts
