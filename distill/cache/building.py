"""Computing a teacher cache shard by shard, on the views that training makes."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echostill.distill.cache.teacher_cache import (
    CACHED_VIEWS,
    COMPUTED_IN,
    POOLED,
    TOKENS,
    CacheSpec,
    layer_name,
    quantise,
    shard_name,
)
from echostill.distill.objective.outputs import ask_teacher
from echostill.distill.objective.views import make_views
from echostill.platform.cluster.devices import compute_device
from echostill.platform.computing.precision import Precision, computing, computing_type, lowered
from echostill.platform.computing.settling import with_precision
from echostill.platform.config import result_relevant
from echostill.platform.masking.masks import MaskSettings, draw_masks
from echostill.platform.models import Encoder
from echostill.platform.models.weights import Weights
from echostill.platform.shards.records import Record, write_record
from echostill.platform.tables.fingerprint import Fingerprint, code_version
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store
from echostill.platform.training.augment import AugmentSettings
from echostill.platform.training.batches import view_batch
from echostill.platform.training.staging import StagedImages, stage_images

BATCH = 16  # views per pass of the teacher


@dataclass(frozen=True)
class CacheJob:
    """What a cache is computed from; picklable, so that a worker can build any shard."""

    store: str
    teacher: Weights
    image_ids: tuple[str, ...]
    spec: CacheSpec
    view_seed: int
    augment: AugmentSettings
    masks: MaskSettings
    image_size: int
    pool_digest: str
    computed_in: Precision = "float32"  # the teacher; ``spec.precision`` is what tokens are kept in

    def fingerprint(self) -> Fingerprint:
        """Everything the cached numbers depend on."""
        values = {
            "teacher": self.teacher.model,
            "layers": list(self.spec.layers),
            "tokens": self.spec.tokens,
            "views_per_image": self.spec.views,
            "view_seed": self.view_seed,
            "precision": self.spec.precision,
            "image_size": self.image_size,
            "augment": result_relevant(self.augment),
            "masks": result_relevant(self.masks),
        }
        inputs = {"images": sha256("\n".join(self.image_ids).encode()), "pool": self.pool_digest}
        whole = Fingerprint(values, code_version(), self.teacher.identity("teacher"), inputs)
        return with_precision(whole, self.computed_in, COMPUTED_IN)


class CacheWorker:
    """Computes shards of a cache; created once per process, so that the teacher loads once."""

    def __init__(self, job: CacheJob) -> None:
        self.job = job
        self.device = torch.device(compute_device())
        kind = computing_type(job.computed_in, self.device)
        self.teacher: Encoder = lowered(job.teacher.load(), kind).to(self.device)
        pool = Store(job.store).open_pool()
        self.images: StagedImages = stage_images(pool, job.store, job.image_size, job.image_ids)

    def build(self, storage: Storage, index: int) -> Record:
        """Compute a shard and write its files, then the record that marks it as finished."""
        spec = self.job.spec
        first = index * spec.images_per_shard
        rows = np.arange(first, min(first + spec.images_per_shard, spec.images))
        outputs = self.outputs(
            np.repeat(rows, spec.views), np.tile(np.arange(spec.views), len(rows))
        )
        entries = []
        for name, values in outputs.items():
            shaped = values.reshape(len(rows), spec.views, *values.shape[1:])
            if name == POOLED:
                entries.append(_write(storage, index, name, shaped))
                continue
            codes, ranges = quantise(shaped, spec.precision)
            entries.append(_write(storage, index, name, codes))
            if ranges is not None:
                entries.append(_write(storage, index, f"{name}-ranges", ranges))
        record: Record = {"shard": index, "files": entries}
        write_record(storage, record)
        return record

    def outputs(self, rows: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
        """Teacher outputs by name, (n, 2, ...) float32, of image rows and their views."""
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(rows), BATCH):
            piece = slice(start, start + BATCH)
            for name, values in self._pass(rows[piece], views[piece]).items():
                spatial, frequency = values.float().cpu().chunk(2)
                parts.setdefault(name, []).append(torch.stack([spatial, frequency], 1).numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    @torch.inference_mode()
    def _pass(self, rows: np.ndarray, views: np.ndarray) -> dict[str, Tensor]:
        """Run the teacher once over the views that training makes of these images."""
        job = self.job
        batch = view_batch(self.images, rows, views, job.image_size, job.view_seed, job.augment).to(
            self.device
        )
        masks = draw_masks(job.masks, job.view_seed, views, batch.image_ids, self.device)
        shown = make_views(batch.pixels, masks, CACHED_VIEWS)
        with computing(job.computed_in, self.device):
            outputs = ask_teacher(self.teacher, shown, job.spec.needs)
        found = {POOLED: outputs.pooled}
        found |= {layer_name(block): tokens for block, tokens in outputs.blocks.items()}
        found[TOKENS] = outputs.tokens
        return {name: values for name, values in found.items() if values is not None}


def _write(storage: Storage, index: int, name: str, values: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values))
    data = buffer.getvalue()
    file = f"{shard_name(index)}/{name}.npy"
    storage.write(file, data)
    return {"file": file, "bytes": len(data), "sha256": sha256(data)}
