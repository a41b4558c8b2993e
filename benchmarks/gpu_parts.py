"""What the parts of `gpu_check.py` share: checks with bounds, budgets, operations of models.

Operations of an image, a multiply-accumulate counting as two:

- a pass of an encoder: all matrix products and convolutions, those inside attention included
  (``echostill.platform.models.complexity.gflops``);
- a distillation step sees two views: 2 F(teacher) + 2 * 3 F(student), since the backward pass takes
  two products for each of the forward pass; F(student) is its encoder with the decoder;
- scoring: F(teacher) + snapshots * draws * views * F(student); one view unless the gradient is that
  of the separated loss.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from echostill.platform.models import create_encoder
from echostill.platform.models.complexity import gflops

VIEWS, BACKWARD = 2, 3


class OverrunError(Exception):
    """A part took longer than its budget."""


@dataclass(frozen=True)
class Scale:
    """How large the run is: in full on a GPU, or in miniature on a CPU."""

    device: torch.device
    teacher: str
    student: str
    image_size: int
    batch: int
    staged: int  # synthetic images
    views: int  # random crops that are compared
    compared: int  # images that both devices pass through the models
    vectors: int  # of k-means
    dim: int
    clusters: int
    seconds: float  # of each measured rate

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"


FULL = Scale(
    torch.device("cuda"), "usfm", "tinyusfm", 224, 512, 4096, 1000, 16, 3_000_000, 768, 1000, 25.0
)
MINI = Scale(
    torch.device("cpu"), "usfm-micro", "tinyusfm-micro", 128, 4, 16, 40, 4, 2000, 16, 10, 0.5
)


@dataclass
class Check:
    """A value, and the bound that it has to keep."""

    name: str
    found: float
    bound: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it keeps the bound; a value that is no number does not."""
        return self.found >= self.bound if self.at_least else self.found <= self.bound


@dataclass
class Report:
    """What a part found."""

    checks: list[Check] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def most(self, name: str, found: float, bound: float) -> None:
        """Check that a value is at most its bound."""
        self.checks.append(Check(name, float(found), bound))

    def least(self, name: str, found: float, bound: float) -> None:
        """Check that a value is at least its bound."""
        self.checks.append(Check(name, float(found), bound, at_least=True))


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: Of the part.
        budget: Seconds after which it is stopped, in full.
        work: Seconds that it will take, by what a second computes on the GPU and on the CPU.
        run: Computes it; ``rates`` has what earlier parts measured.
    """

    name: str
    budget: float
    work: Callable[[Scale, float, float], float]
    run: Callable[[Scale, Report, dict[str, float]], None]


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Raise :class:`OverrunError` in the block when the time is up."""

    def overrun(*_: Any) -> None:
        raise OverrunError

    before = signal.signal(signal.SIGALRM, overrun)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def forward_work(name: str, decoder: bool = False) -> float:
    """Operations of one pass of a model over one image, with the light decoder behind it or not."""
    with torch.device("meta"):
        encoder = create_encoder(name)
    work = 1e9 * gflops(encoder)
    return work + decoder_work(encoder.dim, encoder.patch_size, encoder.image_size) * decoder


def decoder_work(width: int, patch: int, size: int) -> float:
    """Operations of the default decoder: two linear layers and one block of width 96 over N tokens.

    Per token 2 (w d + 12 d^2 + d 3 p^2), and 4 N d for the two products inside attention.
    """
    from echostill.platform.masking.mim import DecoderSettings

    settings, tokens = DecoderSettings(), (size // patch) ** 2
    dim = settings.dim
    block = 12 * dim * dim + 2 * tokens * dim
    return 2.0 * tokens * (width * dim + settings.depth * block + dim * 3 * patch**2)


def distillation_work(scale: Scale) -> float:
    """Operations of one image in one step of distillation."""
    teacher, student = forward_work(scale.teacher), forward_work(scale.student, decoder=True)
    return VIEWS * (teacher + BACKWARD * student)


def scoring_work(scale: Scale, snapshots: int, draws: int) -> float:
    """Operations of one scored image."""
    student = forward_work(scale.student, decoder=True)
    return forward_work(scale.teacher) + snapshots * draws * student


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Measure the best rate of a large product, in bfloat16 on a GPU and float32 on a CPU."""
    side, kind = (8192, torch.bfloat16) if scale.on_gpu else (512, torch.float32)
    first = torch.randn(side, side, device=scale.device, dtype=kind)
    best, started = 0.0, time.perf_counter()
    torch.mm(first, first)
    finish(scale.device)
    repeats = 10
    while time.perf_counter() - started < min(scale.seconds, 4.0):
        begun = time.perf_counter()
        for _ in range(repeats):
            torch.mm(first, first)
        finish(scale.device)
        best = max(best, repeats * 2 * side**3 / (time.perf_counter() - begun))
    rates["matrix"] = best
    report.values |= {"teraflops": round(best / 1e12, 3), "side": side, "type": str(kind)}
