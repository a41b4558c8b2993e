"""What every training loop does to parameters: groups, rates, precision, clipping, averages."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from echostill.platform.models import Encoder

Precision = Literal["auto", "float32", "bfloat16", "float16"]
# Float16 overflows now and then and its scaler skips such steps; so many in a row are no accident.
SKIPPED_STEPS = 20
NORM_MEMORY = 0.99  # of the mean gradient norm that clipping is relative to: about 100 steps


def parameter_groups(
    task: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split trainable parameters: biases, norms and other vectors are not decayed.

    With ``layer_decay`` below 1 the rate of an encoder's parameters is scaled by
    ``layer_decay ** (depth + 1 - l)``: l is 0 for what comes before the blocks, l = 1 .. depth for
    block l; what lies behind the blocks and outside the encoder keeps the whole rate (BEiT's rule).
    Each group names its ``scale``.

    Args:
        task: Module with the parameters, and perhaps encoders in it.
        weight_decay: Of matrices.
        layer_decay: Factor per block.
    """
    scales = _layer_scales(task, layer_decay) if layer_decay != 1 else {}
    split: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            key = (scales.get(name, 1.0), parameter.ndim > 1)
            split.setdefault(key, []).append(parameter)
    # Both groups of the whole rate are always there, so that a checkpoint fits whatever is in them.
    for decayed in (True, False):
        split.setdefault((1.0, decayed), [])
    return [
        {"params": split[key], "weight_decay": weight_decay if key[1] else 0.0, "scale": key[0]}
        for key in sorted(split, reverse=True)
    ]


def _layer_scales(task: nn.Module, layer_decay: float) -> dict[str, float]:
    scales = {}
    for path, module in task.named_modules():
        if not isinstance(module, Encoder):
            continue
        for name, _ in module.named_parameters():
            words = name.split(".")
            layer = module.depth + 1
            if "blocks" in words:
                layer = int(words[words.index("blocks") + 1]) + 1
            elif any(word in name for word in ("patch_embed", "pos_embed", "cls_token")):
                layer = 0
            scale = layer_decay ** (module.depth + 1 - layer)
            scales[f"{path}.{name}" if path else name] = scale
    return scales


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups, each times its own scale."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float | None) -> Tensor:
    """Scale gradients down to a largest global norm, and return the norm before that, a scalar."""
    norm = nn.utils.clip_grad_norm_(parameters, largest or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class GradientClip:
    """Scales the gradients of each member down to a largest global norm, and counts how often.

    A fixed norm fits one loss, one model and one moment of training: of the quickstart's students
    it clips every step, which makes each step as long as any other. A norm relative to those of
    the steps before clips what stands out and nothing else (in the spirit of AutoClip, Seetharaman
    et al. 2020, which takes a percentile of them): the limit is a multiple of the exponential mean
    of what earlier steps had after clipping, so that an outlier hardly moves it.

    Attributes:
        norms: By member, the running sum of norms and that of their weights; a restart needs it.
    """

    def __init__(
        self,
        largest: float | None,
        *,
        relative: bool = False,
        norms: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        """Set it up.

        Args:
            largest: Largest norm, or multiple of the running mean; None clips nothing.
            relative: Whether it is a multiple.
            norms: Of a checkpoint.
        """
        self.largest, self.relative = largest or math.inf, relative
        self.norms = {} if norms is None else norms
        self._steps: dict[str, int] = {}
        self._clipped: dict[str, int] = {}

    def __call__(self, member: str, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Clip the gradients of a member, and return their norm before that, a scalar."""
        limit = self.largest
        if self.relative:
            total, weight = self.norms.get(member, (0.0, 0.0))
            limit = self.largest * total / weight if weight else math.inf
        norm = clip_gradients(parameters, limit)
        found = float(norm)
        self._steps[member] = self._steps.get(member, 0) + 1
        if math.isfinite(found):  # a step that is not is skipped, or ends the run
            self._clipped[member] = self._clipped.get(member, 0) + (found > limit)
            if self.relative:
                self.norms[member] = (
                    NORM_MEMORY * total + (1 - NORM_MEMORY) * min(found, limit),
                    NORM_MEMORY * weight + 1 - NORM_MEMORY,
                )
        return norm

    def shares(self) -> dict[str, float]:
        """Return the share of steps that were clipped, by member, since this was last asked."""
        found = {name: self._clipped.get(name, 0) / steps for name, steps in self._steps.items()}
        self._steps, self._clipped = {}, {}
        return found


def computing_type(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that matrix products run in; ``auto`` is bfloat16 on GPUs, else float32.

    On CPUs bfloat16 products are very slow.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return kinds[precision]


def autocast(device: torch.device, kind: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context in which a forward pass computes in ``kind``."""
    if kind == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, kind)


class MovingAverage:
    """Exponential moving average of a task's trainable parameters, in float32 at least.

    After t steps it is p_t (1 - d) + ... with the decay d_t = min(decay, (1 + t) / (10 + t)), which
    forgets the random start quickly (the usual warm-up of such averages, as in timm).
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
        self.values = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after ``step`` optimiser steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        targets = [p.to(self.values[name].dtype) for name, p in self._parameters.items()]
        torch._foreach_lerp_(list(self.values.values()), targets, 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the values of a checkpoint."""
        for name, value in values.items():
            self.values[name].copy_(value)


def deterministic() -> None:
    """Refuse operations that do not repeat bit for bit, for this process."""
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
