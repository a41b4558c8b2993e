"""Finding a trained model: a run of a store by its name, or a model of the zoo with weights."""

from dataclasses import dataclass
from typing import get_args

from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import Encoder
from echostill.platform.models.encoder import Pooling
from echostill.platform.models.weights import find_run, find_weights
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.store import Store, read_manifest
from echostill.platform.training.run import WEIGHTS


@dataclass(frozen=True)
class TrainedModel:
    """An encoder with its weights, and where they came from."""

    encoder: Encoder
    digest: str  # SHA-256 of the weights file
    run: str = ""  # empty for a zoo model
    fingerprint: str = ""  # the run's digest


def open_run(store: Store, name: str) -> TrainedModel:
    """Load the model that a finished run made.

    Raises:
        UsageError: There is no such run (names the nearest), it is not finished, or it made no
            model.
    """
    storage = store.run(name)
    manifest = read_manifest(storage)
    if manifest is None:
        if storage.exists(FINGERPRINT):
            raise UsageError(
                f"run '{name}' in '{store.root}' is not finished: the command that began it "
                "continues it."
            )
        known = store.run_names()
        listed = f" There are: {', '.join(known)}." if known else " It has no finished run."
        raise UsageError(f"no run '{name}' in '{store.root}'.{nearest(name, known)}{listed}")
    if not storage.exists(WEIGHTS):
        raise UsageError(
            f"run '{name}' made no model of its own ({manifest['stage']}): it has no {WEIGHTS}."
        )
    found = find_run(storage)
    return TrainedModel(found.load(), found.digest, name, manifest["fingerprint"]["digest"])


def open_zoo(
    model: str,
    weights: str,
    *,
    image_size: int | None = None,
    pooling: str | None = None,
    key: str | None = None,
) -> TrainedModel:
    """Load a model of the zoo with a weights file; the rest as :class:`TeacherSettings` has it.

    Raises:
        UsageError: There is no such model, file or pooling, or they do not fit.
    """
    known: dict[str, Pooling] = {name: name for name in get_args(Pooling)}
    if pooling is not None and pooling not in known:
        raise UsageError(
            f"no pooling '{pooling}'.{nearest(pooling, known)} There are: {', '.join(known)}."
        )
    found = find_weights(
        model,
        weights,
        image_size=image_size,
        pooling=None if pooling is None else known[pooling],
        key=key,
    )
    return TrainedModel(found.load(), found.digest)
