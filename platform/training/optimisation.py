"""What every training loop does to parameters: groups, rates, clipping, averages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from echostill.platform.models import Encoder

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
        norms: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Set it up.

        Args:
            largest: Largest norm, or multiple of the running mean; None clips nothing.
            relative: Whether it is a multiple.
            norms: Of a checkpoint.
        """
        self.largest, self.relative = largest or math.inf, relative
        self._running = {
            name: torch.tensor(each, dtype=torch.float64) for name, each in (norms or {}).items()
        }
        self._steps: dict[str, int] = {}
        self._clipped: dict[str, Tensor] = {}

    def __call__(self, member: str, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Clip the gradients of a member, and return their norm before that, a scalar.

        Nothing is read from the device: the norm, the limit and the counts stay where they are.
        """
        if self.relative:
            norm, limit = self._clip_relative(member, parameters)
        else:
            norm = clip_gradients(parameters, self.largest)
            limit = torch.full((), self.largest, dtype=torch.float64, device=norm.device)
        # One that is not finite is skipped or ends the run.
        over = (norm.double() > limit) & torch.isfinite(norm)
        self._steps[member] = self._steps.get(member, 0) + 1
        known = self._clipped.get(member)
        self._clipped[member] = over.long() if known is None else known + over
        return norm

    def _clip_relative(
        self, member: str, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, Tensor]:
        """Clip to a multiple of the running mean, which takes the norm in; return both."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        norm = total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm
        running = self._running.get(member)
        if running is None:
            running = torch.zeros(2, dtype=torch.float64)
        total, weight = running.to(norm.device, non_blocking=True).unbind()
        limit = torch.where(weight > 0, self.largest * total / weight, math.inf)
        if isinstance(total_norm, DTensor):  # shards are scaled by a number alone
            nn.utils.clip_grads_with_norm_(parameters, float(limit), total_norm)
        else:
            share = (norm + 1e-6).reciprocal() * limit.to(norm.dtype)
            torch._foreach_mul_(gradients, share.clamp(max=1.0))
        found = norm.double()
        after = torch.stack(
            [
                NORM_MEMORY * total + (1 - NORM_MEMORY) * torch.minimum(found, limit),
                NORM_MEMORY * weight + 1 - NORM_MEMORY,
            ]
        )
        before = torch.stack([total, weight])
        self._running[member] = torch.where(torch.isfinite(found), after, before)
        return norm, limit

    @property
    def norms(self) -> dict[str, tuple[float, float]]:
        """By member, the running sum of norms and that of their weights; a restart needs it."""
        return {name: (float(each[0]), float(each[1])) for name, each in self._running.items()}

    def take_counts(self) -> dict[str, tuple[Tensor, int]]:
        """Return by member how many steps were clipped, and of how many, since the last call."""
        found = {name: (self._clipped[name], steps) for name, steps in self._steps.items()}
        self._steps, self._clipped = {}, {}
        return found

    def shares(self) -> dict[str, float]:
        """Return the share of steps that were clipped, by member, since this was last asked."""
        return {name: float(count) / steps for name, (count, steps) in self.take_counts().items()}


def make_optimiser(
    groups: list[dict[str, Any]],
    betas: tuple[float, float],
    device: torch.device,
    saved: dict[str, Any] | None = None,
) -> torch.optim.AdamW:
    """Make AdamW, fused into one kernel per group on GPUs.

    Args:
        groups: From :func:`parameter_groups`.
        betas: Decay of both moments.
        device: Where the parameters are.
        saved: State of a checkpoint, whatever device it was written on.
    """
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=betas, fused=fused)
    if saved is not None:
        own = [{**group, "fused": fused} for group in saved["param_groups"]]
        optimiser.load_state_dict({**saved, "param_groups": own})
    return optimiser


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
