"""The precision that frozen models compute in, on CPUs and on GPUs.

float32 means float32: TensorFloat-32, in which PyTorch computes convolutions unless told otherwise,
keeps 10 of the 23 bits and is switched off. In bfloat16 and float16 the products run in that type
(autocast), while norms, softmax and the sums of losses stay in float32.
"""

from typing import Literal, TypeVar

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Model = TypeVar("Model", bound=nn.Module)
_PRODUCTS = (nn.Linear, nn.Conv2d)


def own_precision(on_gpu: bool, bfloat16: bool = True) -> Precision:
    """Return what ``auto`` stands for.

    Args:
        on_gpu: Whether models compute on GPUs.
        bfloat16: Whether these have units for bfloat16, as those since Ampere do.
    """
    if not on_gpu:
        return "float32"
    return "bfloat16" if bfloat16 else "float16"


def exact_float32() -> None:
    """Switch TensorFloat-32 off in this process."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def lowered(model: Model, kind: torch.dtype) -> Model:
    """Round the weights of a frozen model's linear and convolution layers to a type, in place.

    Under autocast the results stay the same: it rounds these weights itself, in every pass again,
    unless they are trained. The model then computes under autocast alone.
    """
    if kind != torch.float32:
        for module in model.modules():
            if isinstance(module, _PRODUCTS):
                module.to(kind)
    return model
