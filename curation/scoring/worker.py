"""One worker's scoring: teacher features and, per stored proxy, the last layer's gradient norm."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, field_validator, model_validator
from safetensors.torch import load as load_tensors
from torch import Tensor

from echostill.curation.scoring.decoding import Batch, PartDecoder, ahead, unpack
from echostill.curation.scoring.gradient import GradientLoss, prediction_gradient_norms
from echostill.platform.cluster.devices import compute_device
from echostill.platform.config import Config
from echostill.platform.masking.masks import Masks, MaskSettings, frequency_mask, spatial_mask
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel, ReconstructionSettings
from echostill.platform.masking.mim_training import snapshot_name
from echostill.platform.models import create_encoder
from echostill.platform.models.weights import Weights
from echostill.platform.seeding import stream
from echostill.platform.shards.outcome import Outcome
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA, scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.training.settings import TrainingSettings

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
    _teacher: Any = field(default=None, repr=False)
    _proxies: list[MaskedImageModel] = field(default_factory=list, repr=False)

    def loaded(self) -> "ScoreWorker":
        """Load teacher and proxies; called in each worker process."""
        device = compute_device()
        self._teacher = self.teacher.load().to(device)
        self._proxies = []
        for step in self.proxy.snapshot_steps():
            encoder = create_encoder(self.student, image_size=self.student_image_size)
            model = MaskedImageModel(encoder, self.proxy.decoder)
            saved = load_tensors(self.snapshots.read(snapshot_name(step)))
            model.load_state_dict({k.removeprefix("model."): v for k, v in saved.items()})
            self._proxies.append(model.eval().requires_grad_(False).to(device))
        return self

    def process(self, payload: Any) -> Outcome:
        """Score a shard, given as its payload or as batches that were decoded elsewhere."""
        decoded = isinstance(payload, bytes)
        return self._outcome(unpack(payload) if decoded else ahead(self.decoder.batches(payload)))

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Score only the rows with these numbers, each in its own slot of its own batch."""
        return self._outcome(self.decoder.batches(payload, units))

    def _outcome(self, batches: Iterator[Batch]) -> Outcome:
        ids: list[str] = []
        refused: list[dict[str, str]] = []
        units: list[tuple[int, int]] = []
        columns: dict[str, list[np.ndarray]] = {}
        seconds = {"wait for decoding": 0.0, "compute": 0.0}
        clock = time.perf_counter()
        for batch in batches:
            decoded = time.perf_counter()
            values = self._score(batch.squares)
            finite = np.isfinite(np.concatenate(list(values.values()), axis=1)).all(axis=1)
            kept = []
            for slot in batch.slots:
                error = batch.errors.get(slot)
                if error is None and not finite[slot]:
                    error = ("NonFinite", "its scores are not finite")
                if error is None:
                    kept.append(slot)
                else:
                    refused.append(_refusal(batch.ids[slot], *error))
                units.append((1, 0) if error is None else (0, 1))
            ids += [batch.ids[slot] for slot in kept]
            for name, value in values.items():
                columns.setdefault(name, []).append(value[kept])
            seconds["wait for decoding"] += decoded - clock
            clock = time.perf_counter()
            seconds["compute"] += clock - decoded
        merged = {name: np.concatenate(parts) for name, parts in columns.items()}
        return Outcome(
            self._table(ids, merged),
            pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA),
            units,
            seconds,
        )

    def _score(self, squares: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
        """Score a batch; returns an array (N, values) for each column."""
        rows = len(next(iter(squares.values())))
        by_size: dict[int, Tensor] = {}

        def pixels(size: int) -> Tensor:
            if size not in by_size:
                square = torch.from_numpy(squares[size]).to(next(self._teacher.parameters()).device)
                # For a single image the sums would be divided among threads, and their last digits
                # would depend on the number of threads: add a black image to the batch.
                if rows == 1:
                    square = torch.cat([square, torch.zeros_like(square)])
                by_size[size] = (square.float() / 255).expand(-1, 3, -1, -1).contiguous()
            return by_size[size]

        with torch.inference_mode():
            pooled = self._teacher(pixels(self._teacher.image_size)).pooled.float()
            feature = torch.nn.functional.normalize(pooled, dim=1)
        target = pixels(self._proxies[0].encoder.image_size)
        masks = [self._masks(draw, target) for draw in range(self.mask_draws)]
        norms, errors = [], []
        for proxy in self._proxies:
            measured = [
                prediction_gradient_norms(
                    proxy, target, mask, self.gradient_loss, self.proxy.reconstruction
                )
                for mask in masks
            ]
            norms.append(torch.stack([norm for norm, _ in measured]).mean(dim=0))
            errors.append(torch.stack([error for _, error in measured]).mean(dim=0))
        return {
            "feature": feature[:rows].cpu().numpy(),
            "gradient": torch.stack(norms, dim=1)[:rows].cpu().numpy(),
            "reconstruction_error": errors[-1][:rows, None].cpu().numpy(),
        }

    def _masks(self, draw: int, target: Tensor) -> Masks:
        """Return the same masks for every image, so that their gradients are comparable."""
        encoder = self._proxies[0].encoder
        settings = self.proxy.masks.scaled_to(encoder.image_size, encoder.patch_size)
        numbers = stream(self.seed, "score mask", draw)
        spatial = spatial_mask(numbers.random((1, settings.spatial.count)), settings.spatial)
        frequency = frequency_mask(
            numbers.random((1, settings.frequency.count)), settings.frequency
        )
        shape = (len(target), -1, -1)
        return Masks(
            spatial.to(target.device).expand(shape), frequency.to(target.device).expand(shape)
        )

    def _table(self, ids: list[str], columns: dict[str, np.ndarray]) -> pa.Table:
        schema = scores_schema(self._teacher.feature_dim, len(self._proxies))
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


def _refusal(image_id: str, error_class: str, message: str) -> dict[str, str]:
    return {
        "stage": "score",
        "id": image_id,
        "source": "",
        "error_class": error_class,
        "message": message,
    }
