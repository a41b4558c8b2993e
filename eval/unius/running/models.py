"""Which models a run compares: teacher, students, untrained student, and light baselines of timm.

Nothing is downloaded: a baseline has the weights of a file, or random ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from echostill.eval.candidates import (
    Candidate,
    Unit,
    default_candidates,
    find_units,
    weights_identity,
)
from echostill.eval.names import TRIVIAL
from echostill.eval.unius.protocols.data import BenchTask
from echostill.eval.unius.protocols.settings import Protocol
from echostill.eval.unius.running.settings import BenchConfig
from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import create_encoder
from echostill.platform.models.registry import TIMM_PREFIX
from echostill.platform.models.weights import find_weights
from echostill.platform.tables.fingerprint import Fingerprint, code_version
from echostill.platform.tables.store import Store, read_manifest

# Light models by the names of their papers, about as large as the student or smaller.
BASELINES = {
    "mobilenetv3": "timm:mobilenetv3_large_100",
    "efficientnet-lite0": "timm:tf_efficientnet_lite0",
    "efficientnet-b0": "timm:efficientnet_b0",
    "mobilevit": "timm:mobilevit_s",
    "edgenext": "timm:edgenext_small",
    "tinyvit-5m": "timm:tiny_vit_5m_224",
    "efficientvit": "timm:efficientvit_b1",
    "fastvit": "timm:fastvit_t8",
    "repvit": "timm:repvit_m1",
}
UNET = "unet"  # a reference without an encoder of the zoo: segmentation, trained from the start
TEACHER, UNTRAINED, STUDENTS, ALL_BASELINES = "teacher", "untrained", "students", "baselines"


@dataclass(frozen=True)
class BenchUnit:
    """A model on a task with a seed, by a protocol: what a Ray task does."""

    task: BenchTask
    protocol: Protocol
    model: Unit

    @property
    def key(self) -> Fingerprint:
        """What the unit's results depend on, beside the settings of the protocol."""
        model = self.model
        weights = weights_identity([model])
        about = {
            "task": self.task.name,
            "protocol": self.protocol,
            "candidate": model.candidate,
            "model": model.model,
            "image_size": model.image_size,
            "run": model.run,
            "seed": model.seed,
        }
        return Fingerprint(about, code_version(), weights, {self.task.set: self.task.digest})

    def describe(self) -> str:
        """Say what is done."""
        model = self.model
        return f"{self.protocol}: {model.candidate} on {self.task.name}, seed {model.seed}"


def find_bench_units(
    config: BenchConfig, store: Store, tasks: Sequence[BenchTask]
) -> list[BenchUnit]:
    """List what a run does: every model on every task with every seed, by every protocol.

    Raises:
        UsageError: A model, a run or weights are not there.
    """
    models = _units_of_models(config, store)
    units = [
        BenchUnit(task, protocol, model)
        for task in tasks
        for protocol in config.protocols
        for model in models
        if _serves(model, task, protocol)
    ]
    if not units:
        raise UsageError(
            f"nothing to do: '{UNET}' is only trained for segmentation, by the published protocol; "
            "lesions are only detected, and trivial candidates only measured, by the frozen one."
        )
    return units


def _serves(model: Unit, task: BenchTask, protocol: Protocol) -> bool:
    if model.model in TRIVIAL:
        return protocol == "frozen" and task.kind != "detection"
    if task.kind == "detection":
        return protocol == "frozen" and model.model != UNET
    return model.model != UNET or (task.kind == "segmentation" and protocol == "published")


def _units_of_models(config: BenchConfig, store: Store) -> list[Unit]:
    """Return a unit for each model and seed; its task is left open."""
    defaults = default_candidates(store)
    students = [candidate for candidate in defaults if candidate.kind == "runs"]
    names = config.models or (TEACHER, STUDENTS, UNTRAINED, *TRIVIAL)
    units: list[Unit] = []
    for name in names:
        if name == ALL_BASELINES:
            units += [unit for each in BASELINES for unit in _baseline(config, each)]
        elif name in TRIVIAL:
            units.append(
                Unit(name, "", config.seeds[0], "", None, name, config.protocol.image_size)
            )
        elif name == UNET or name in BASELINES or name.startswith(TIMM_PREFIX):
            units += _baseline(config, name)
        else:
            candidates = _candidates(store, name, students)
            if candidates:
                units += find_units(config, store, candidates, [""], config.seeds)
    unknown = config.weights.keys() - {unit.candidate for unit in units}
    if unknown:
        names = tuple(unit.candidate for unit in units)
        hint = nearest(min(unknown), names)
        raise UsageError(f"weights names '{min(unknown)}', which is none of the models.{hint}")
    seen: dict[tuple[str, int], Unit] = {}
    for unit in units:  # a baseline may be named twice, alone and with all
        seen.setdefault((unit.candidate, unit.seed), unit)
    return list(seen.values())


def _candidates(store: Store, name: str, students: list[Candidate]) -> list[Candidate]:
    if name == TEACHER:
        return [Candidate(label=TEACHER, kind="teacher")]
    if name == UNTRAINED:
        return [Candidate(label=UNTRAINED, kind="untrained")]
    families = {candidate.label.removesuffix(" student"): candidate.runs for candidate in students}
    if name == STUDENTS:
        return [Candidate(label=family, runs=runs) for family, runs in families.items()]
    if name in families:
        return [Candidate(label=name, runs=families[name])]
    if read_manifest(store.run(name)) is not None:
        return [Candidate(label=name, runs=(name,))]
    known = [TEACHER, UNTRAINED, STUDENTS, *TRIVIAL, ALL_BASELINES, UNET, *BASELINES, *families]
    raise UsageError(
        f"no model '{name}'.{nearest(name, known)} There are: {', '.join(known)}; a finished run "
        f"of '{store.root}', and timm:NAME."
    )


def _baseline(config: BenchConfig, name: str) -> list[Unit]:
    model = BASELINES.get(name, name)
    size = config.protocol.image_size
    weights = None
    if path := config.weights.get(name):
        if name == UNET:
            raise UsageError(f"'{UNET}' takes no weights: it is trained from the start.")
        weights = find_weights(model, path, image_size=size).checked()
    elif name != UNET:
        create_encoder_on_paper(model, size)
    return [Unit(name, "", seed, "", weights, model, size) for seed in config.seeds]


def create_encoder_on_paper(model: str, size: int | None) -> int:
    """Build a model without numbers; return the side of its input in pixels.

    Raises:
        UsageError: There is no such model, or it takes no images of this size.
    """
    import torch

    with torch.device("meta"):
        return create_encoder(model, image_size=size).image_size
