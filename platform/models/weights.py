"""Finding weights: of the teacher, and those that a run starts from."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from echostill.platform.config import ModelsConfig
from echostill.platform.errors import UsageError, nearest
from echostill.platform.models import Encoder, create_encoder, load_weights, weights_digest
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.training.run import WEIGHTS, is_finished


@dataclass(frozen=True)
class Weights:
    """A model of the zoo with a weights file; picklable, loaded where it is needed."""

    model: str
    path: str
    digest: str

    def load(self, *, trainable: bool = False) -> Encoder:
        """Build the encoder and load the weights strictly; frozen, in evaluation mode.

        Args:
            trainable: Leave it as a new encoder is, to be trained on.
        """
        encoder = create_encoder(self.model)
        load_weights(encoder, local_copy(self.path, self.digest))
        return encoder if trainable else encoder.eval().requires_grad_(False)


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
    found = find_weights(config.teacher.model, path)
    found.load()
    return found


def find_initial(store: Store, model: str, given: str | None) -> Weights | None:
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
    found = find_weights(model, path)
    found.load()
    return found


def find_weights(model: str, path: str) -> Weights:
    """Find a weights file and take its digest."""
    if "://" in path:
        folder, _, name = path.rpartition("/")
        storage = Storage(folder)
        if storage.size(name) is None:
            raise UsageError(f"no weights file '{path}'.")
        return Weights(model, path, sha256(storage.read(name)))
    return Weights(model, str(Path(path).resolve()), weights_digest(path))


def local_copy(path: str, digest: str) -> str:
    """Return a local path of a weights file, fetching a remote one once per node."""
    if "://" not in path:
        return path
    folder, _, name = path.rpartition("/")
    target = Path(tempfile.gettempdir()) / "echostill-weights" / digest / name
    if not target.exists():
        Storage(str(target.parent)).write(name, Storage(folder).read(name))
    return str(target)
