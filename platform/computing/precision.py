"""The precision that models compute in, on CPUs and on GPUs.

float32 means float32: TensorFloat-32, in which PyTorch computes convolutions unless told otherwise,
keeps 10 of the 23 bits and is switched off. In bfloat16 and float16 the products run in that type
(autocast), while norms, softmax and the sums of losses stay in float32.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from echostill.platform.errors import UsageError, nearest

Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Model = TypeVar("Model", bound=nn.Module)
_PRODUCTS = (nn.Linear, nn.Conv2d)


def checked_precision(name: str) -> Precision:
    """Return a precision by its name.

    Raises:
        UsageError: There is no such precision.
    """
    for known in PRECISIONS:
        if known == name:
            return known
    raise UsageError(
        f"unknown precision '{name}'.{nearest(name, PRECISIONS)} Known: {', '.join(PRECISIONS)}."
    )


def own_precision(on_gpu: bool, bfloat16: bool = True) -> Precision:
    """Return what ``auto`` stands for.

    Args:
        on_gpu: Whether models compute on GPUs.
        bfloat16: Whether these have units for bfloat16, as those since Ampere do.
    """
    if not on_gpu:
        return "float32"
    return "bfloat16" if bfloat16 else "float16"


def computing_type(precision: Precision, device: torch.device | str) -> torch.dtype:
    """Return the type that matrix products run in; ``auto`` is bfloat16 on GPUs, else float32.

    On CPUs bfloat16 products are very slow. A GPU without bfloat16 (before Ampere) gets float16,
    with which whoever trains scales the gradients.

    Raises:
        UsageError: bfloat16 is asked for, and the GPU has none.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    has_bfloat16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_bfloat16:
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16: use the precision auto or "
            "float16 (for which gradients are scaled), or float32."
        )
    name = own_precision(on_gpu, has_bfloat16) if precision == "auto" else precision
    kind: torch.dtype = getattr(torch, name)
    return kind


def autocast(device: torch.device | str, kind: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass computes in ``kind``."""
    if kind == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, kind)


def computing(precision: Precision, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context of forward passes in a precision, whose float32 is float32.

    Raises:
        UsageError: As :func:`computing_type`.
    """
    kind = computing_type(precision, device)
    if kind == torch.float32:
        exact_float32()
    return autocast(device, kind)


def gradient_scaler(precision: Precision, device: torch.device | str) -> torch.amp.GradScaler:
    """Return what scales the gradients of a training: those of float16, which underflow."""
    device = torch.device(device)
    return torch.amp.GradScaler(
        device.type, enabled=computing_type(precision, device) == torch.float16
    )


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
