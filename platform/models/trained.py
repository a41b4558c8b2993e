"""Finding a trained model: a run of a store by its name, or a model of the zoo with weights."""

from dataclasses import dataclass

import safetensors

from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import Encoder, create_encoder, load_weights
from echostill.platform.models.weights import find_weights, local_copy
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
    path = storage.locate(WEIGHTS)
    found = find_weights("", path)
    with safetensors.safe_open(local_copy(path, found.digest), framework="pt") as file:
        about = file.metadata() or {}
    encoder = create_encoder(about["model"], image_size=int(about["image_size"]))
    load_weights(encoder, local_copy(path, found.digest))
    return TrainedModel(
        encoder.eval().requires_grad_(False), found.digest, name, manifest["fingerprint"]["digest"]
    )


def open_zoo(model: str, weights: str) -> TrainedModel:
    """Load a model of the zoo with a weights file.

    Raises:
        UsageError: There is no such model or file, or they do not fit.
    """
    found = find_weights(model, weights)
    return TrainedModel(found.load(), found.digest)
