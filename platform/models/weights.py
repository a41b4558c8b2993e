"""Finding weights: of the teacher, and those that a run starts from."""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import torch

from echostill.platform.config import ModelsConfig
from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import (
    Encoder,
    check_weights,
    create_encoder,
    load_weights,
    weights_digest,
)
from echostill.platform.models.encoder import Pooling
from echostill.platform.progress import console
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.training.run import WEIGHTS, is_finished


@dataclass(frozen=True)
class Weights:
    """A model of the zoo with a weights file; picklable, loaded where it is needed.

    Attributes:
        model: Name in the zoo.
        path: The file, or its URI.
        digest: SHA-256 of the file.
        image_size: Side of the input in pixels, to which positions are resampled; None is the
            model's own, and the file's.
        pooling: How features are pooled; None is the mean of the patch tokens.
        key: Which set of weights of the file; None takes the one that fits.
        notes: What :meth:`checked` found worth saying of the file.
    """

    model: str
    path: str
    digest: str
    image_size: int | None = None
    pooling: Pooling | None = None
    key: str | None = None
    notes: str = field(default="", compare=False)

    def build(self) -> Encoder:
        """Build the encoder with fresh weights."""
        return create_encoder(
            self.model, image_size=self.image_size, pooling=self.pooling or "mean"
        )

    def outline(self) -> Encoder:
        """Build the encoder without storage: its sizes and shapes, for whoever plans."""
        with torch.device("meta"):
            return self.build()

    def load(self, *, trainable: bool = False) -> Encoder:
        """Build the encoder and load the weights strictly; frozen, in evaluation mode.

        Args:
            trainable: Leave it as a new encoder is, to be trained on.
        """
        encoder = self.build()
        path = local_copy(self.path, self.digest)
        resample = self.image_size is not None
        load_weights(encoder, path, key=self.key, resample_positions=resample)
        return encoder if trainable else encoder.eval().requires_grad_(False)

    def checked(self) -> "Weights":
        """See that the file fits the model, and note which weights of it are taken.

        No model is loaded: the tensors are looked at one after the other, and nothing is kept.

        Raises:
            UsageError: It does not.
        """
        path = local_copy(self.path, self.digest)
        resample = self.image_size is not None
        report = check_weights(self.outline(), path, key=self.key, resample_positions=resample)
        return replace(self, notes=report.describe())

    def describe(self) -> str:
        """Say which model and file it is, and what is set beside."""
        settings = {"key": self.key, "image_size": self.image_size, "pooling": self.pooling}
        beside = [f"{name} {value}" for name, value in settings.items() if value]
        return ", ".join([self.model, self.path, *beside])

    def identity(self, role: str) -> dict[str, str]:
        """Return what results depend on, for a fingerprint: the digest, and what is set beside."""
        settings = {"image_size": self.image_size, "pooling": self.pooling, "key": self.key}
        beside = {f"{role}.{name}": str(value) for name, value in settings.items() if value}
        return {role: self.digest, **beside}


def find_teacher(config: ModelsConfig) -> Weights:
    """Find the teacher's weights, and see that they fit the model before any work is done.

    Raises:
        UsageError: The named file is missing or of another model, or none is named and none was
            pretrained.
    """
    path = config.teacher.weights
    if path is None:
        storage = Store(config.store).run("teacher")
        if not is_finished(storage):
            raise UsageError(
                f"no teacher: name its weights (teacher.weights=FILE), or make one with "
                f"`echostill pretrain` (looked in '{storage.root}')."
            )
        path = storage.locate(WEIGHTS)
    teacher = config.teacher
    found = find_weights(
        teacher.model,
        path,
        image_size=teacher.image_size,
        pooling=teacher.pooling,
        key=teacher.key,
    ).checked()
    if found.notes:
        console.print(f"teacher: {path}: {found.notes}", markup=False, soft_wrap=True)
    return found


def find_initial(
    store: Store, model: str, given: str | None, image_size: int | None = None
) -> Weights | None:
    """Find the weights that a new run starts from: a file, or what a finished run made.

    Starting from another run's weights makes a new run, with a step count, an optimiser and a
    record of its own. A run that was cut short is another matter: its own command continues it.

    Raises:
        UsageError: There is neither such a run nor such a file, or it is of another model.
    """
    if given is None:
        return None
    known = store.run_names()
    path = given
    if given in known:
        path = store.run(given).locate(WEIGHTS)
    elif "://" not in given and not Path(given).is_file():
        raise UsageError(
            f"initial_weights '{given}' is neither a weights file nor a finished run of "
            f"'{store.root}'.{nearest(given, known)}"
        )
    found = find_weights(model, path, image_size=image_size).checked()
    if found.notes:
        console.print(f"initial weights: {path}: {found.notes}", markup=False, soft_wrap=True)
    return found


def find_weights(
    model: str,
    path: str,
    *,
    image_size: int | None = None,
    pooling: Pooling | None = None,
    key: str | None = None,
) -> Weights:
    """Find a weights file and take its digest; the rest is as :class:`Weights` has it."""
    if "://" in path:
        folder, _, name = path.rpartition("/")
        storage = Storage(folder)
        if storage.size(name) is None:
            raise UsageError(f"no weights file '{path}'.")
        digest = sha256(storage.read(name))
    else:
        digest, path = weights_digest(path), str(Path(path).resolve())
    return Weights(model, path, digest, image_size, pooling, key)


def find_run(storage: Storage) -> Weights:
    """Find the weights that a finished run made, with the model and input size that they say."""
    path = storage.locate(WEIGHTS)
    found = find_weights("", path)
    with safetensors.safe_open(local_copy(path, found.digest), framework="pt") as file:
        about = file.metadata() or {}
    return replace(found, model=about["model"], image_size=int(about["image_size"]))


def local_copy(path: str, digest: str) -> str:
    """Return a local path of a weights file, fetching a remote one once per node."""
    if "://" not in path:
        return path
    folder, _, name = path.rpartition("/")
    target = Path(tempfile.gettempdir()) / "echostill-weights" / digest / name
    if not target.exists():
        Storage(str(target.parent)).write(name, Storage(folder).read(name))
    return str(target)
