"""One worker's scoring: teacher features and, per stored proxy, the last layer's gradient norm."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator
from safetensors.torch import load as load_tensors
from torch import Tensor

from echostill.curation.scoring.decoding import Batch, PartDecoder, ahead
from echostill.curation.scoring.gradient import GradientLoss
from echostill.curation.scoring.loading import DecodedAhead, TaskDecoder
from echostill.curation.scoring.models import ScoringModels
from echostill.platform.cluster.devices import compute_device
from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.computing.precision import Precision
from echostill.platform.computing.transfer import Returning, fetch, staged
from echostill.platform.config import Config
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel, ReconstructionSettings
from echostill.platform.masking.mim_training import snapshot_name
from echostill.platform.models import create_encoder
from echostill.platform.models.weights import Weights
from echostill.platform.shards.outcome import Outcome
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA, scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.training.settings import TrainingSettings

LOADED = 2  # batches that are decoded, or in memory that a device copies from, before their turn
IN_FLIGHT = 1  # batches that a device has to work on while an earlier one's numbers are read
PROXY_THREADS = 2  # of all its workers together, where none are set


class ProxySettings(Config):
    """The proxy's brief training and the steps at which its gradients are measured."""

    training: TrainingSettings = TrainingSettings(steps=2000, batch_size=256, workers=1)
    sample: int = Field(50_000, ge=1, description="Pool images that the proxy is trained on.")
    snapshots: int = Field(5, ge=3, description="Steps at which its weights are stored.")
    decoder: DecoderSettings = DecoderSettings()
    masks: MaskSettings = MaskSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()

    @field_validator("training")
    @classmethod
    def _workers_are_fixed(cls, training: TrainingSettings) -> TrainingSettings:
        # The coreset depends on the proxy's last digits: they do not follow the GPUs of a cluster.
        return training.model_copy(update={"workers": training.workers or 1})

    @model_validator(mode="after")
    def _steps_suffice(self) -> "ProxySettings":
        if self.training.steps < self.snapshots:
            raise ValueError(
                f"{self.snapshots} snapshots need at least {self.snapshots} training.steps, "
                f"but there are {self.training.steps}"
            )
        return self

    @property
    def paced(self) -> TrainingSettings:
        """The training settings, with a checkpoint at each snapshot, and threads on any machine.

        The coreset depends on the proxy's last digits, and they on the threads that share a sum.
        """
        threads = self.training.threads or max(PROXY_THREADS // self.training.worker_range[1], 1)
        return self.training.model_copy(update={"checkpoints": self.snapshots, "threads": threads})

    def snapshot_steps(self) -> tuple[int, ...]:
        """Steps whose weights are stored, evenly spaced up to the last."""
        return tuple(self.paced.checkpoint_steps())


@dataclass
class ScoreWorker:
    """Scores some rows of the pool at a time. Picklable until :meth:`loaded`.

    Each row is a unit that can be scored again separately.
    """

    decoder: PartDecoder
    teacher: Weights
    student: str
    proxy: ProxySettings
    snapshots: Storage
    gradient_loss: GradientLoss
    mask_draws: int
    seed: int
    student_image_size: int | None = None  # None is the model's own
    precision: Precision = "float32"
    _models: Any = field(default=None, repr=False)

    def loaded(self) -> "ScoreWorker":
        """Load teacher and proxies; called in each worker process."""
        proxies = []
        for step in self.proxy.snapshot_steps():
            encoder = create_encoder(self.student, image_size=self.student_image_size)
            model = MaskedImageModel(encoder, self.proxy.decoder)
            saved = load_tensors(self.snapshots.read(snapshot_name(step)))
            model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items()})
            proxies.append(model)
        self._models = ScoringModels(
            self.teacher.load(),
            proxies,
            masks=self.proxy.masks,
            draws=self.mask_draws,
            seed=self.seed,
            loss=self.gradient_loss,
            reconstruction=self.proxy.reconstruction,
            device=compute_device(),
            precision=self.precision,
        )
        return self

    def decoded_ahead(self, plan: WorkerPlan) -> TaskDecoder | None:
        """Return what decodes for the workers of a plan in tasks, where it has any for that."""
        if not plan.decoders:
            return None
        # One more than run at a time, so that none waits for its piece to be asked for.
        return TaskDecoder(self.decoder, -(-plan.decoders // plan.workers) + 1)

    def process(self, payload: Any) -> Outcome:
        """Score a shard, given as its payload or as batches that are decoded elsewhere."""
        if not isinstance(payload, DecodedAhead):
            return self._outcome(self.decoder.batches(payload))
        outcome = self._outcome(iter(payload))
        outcome.seconds["decode"] = payload.seconds
        return outcome

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Score only the rows with these numbers, each in its own slot of its own batch."""
        return self._outcome(self.decoder.batches(payload, units))

    def _outcome(self, batches: Iterator[Batch]) -> Outcome:
        gathered = _Gathered()
        seconds = {"wait for decoding": 0.0, "compute": 0.0}
        # Read late: the device has its next batch before the last one's numbers are waited for.
        late: deque[tuple[Batch, Returning]] = deque()
        clock = time.perf_counter()
        for batch, squares in ahead(map(self._staged, batches), LOADED):
            decoded = time.perf_counter()
            late.append((batch, fetch(self._models(squares))))
            if len(late) > IN_FLIGHT:
                self._gather(gathered, *late.popleft())
            seconds["wait for decoding"] += decoded - clock
            clock = time.perf_counter()
            seconds["compute"] += clock - decoded
        while late:
            self._gather(gathered, *late.popleft())
        seconds["compute"] += time.perf_counter() - clock
        merged = {name: np.concatenate(parts) for name, parts in gathered.columns.items()}
        return Outcome(
            self._table(gathered.ids, merged),
            pa.Table.from_pylist(gathered.refused, schema=QUARANTINE_SCHEMA),
            gathered.units,
            seconds,
        )

    def _staged(self, batch: Batch) -> tuple[Batch, dict[int, Tensor]]:
        """Bring a batch's pixels to where the device can take them from."""
        device = self._models.device
        return batch, {size: staged(square, device) for size, square in batch.squares.items()}

    def _gather(self, gathered: "_Gathered", batch: Batch, returning: Returning) -> None:
        """Take in a batch's numbers; rows whose numbers are not finite go to quarantine."""
        scored = returning.numpy()
        finite = np.isfinite(scored).all(axis=1)
        kept = []
        for slot in batch.slots:
            error = batch.errors.get(slot)
            if error is None and not finite[slot]:
                error = ("NonFinite", "its scores are not finite")
            if error is None:
                kept.append(slot)
            else:
                gathered.refused.append(_refusal(batch.ids[slot], *error))
            gathered.units.append((1, 0) if error is None else (0, 1))
        gathered.ids += [batch.ids[slot] for slot in kept]
        widths: dict[str, int] = self._models.widths
        edges = np.cumsum(list(widths.values()))[:-1]
        for name, values in zip(widths, np.split(scored, edges, axis=1), strict=True):
            gathered.columns.setdefault(name, []).append(values[kept])

    def _table(self, ids: list[str], columns: dict[str, np.ndarray]) -> pa.Table:
        schema = scores_schema(self._models.teacher.feature_dim, len(self._models.proxies))
        if not ids:
            return schema.empty_table()
        gradient = columns["gradient"].astype(np.float32)
        exact = gradient.astype(np.float64)
        feature = columns["feature"].astype(np.float16)
        return pa.table(
            [
                pa.array(ids),
                pa.FixedSizeListArray.from_arrays(pa.array(feature.ravel()), feature.shape[1]),
                pa.array(exact.mean(axis=1).astype(np.float32)),
                pa.array(exact.std(axis=1).astype(np.float32)),
                pa.FixedSizeListArray.from_arrays(pa.array(gradient.ravel()), gradient.shape[1]),
                pa.array(columns["reconstruction_error"][:, 0].astype(np.float32)),
            ],
            schema=schema,
        )


@dataclass
class _Gathered:
    """What became of a shard's rows so far."""

    ids: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    units: list[tuple[int, int]] = field(default_factory=list)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)


def _refusal(image_id: str, error_class: str, message: str) -> dict[str, str]:
    return {
        "stage": "score",
        "id": image_id,
        "source": "",
        "error_class": error_class,
        "message": message,
    }
