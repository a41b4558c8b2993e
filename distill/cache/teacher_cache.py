"""The teacher's outputs for a finite set of views: quantised, memory-mapped, never stale.

With ``training.views_per_image: K`` an image is seen in K views (crop, flip and masks) that repeat,
so the frozen teacher need look at each only once. What is kept of a view is what the terms of the
objective need, as far as a cache holds it (``HELD``): the pooled feature in float32, and the patch
tokens after some blocks and the final ones in float16, or in 8 bits between the least and the
largest value of each channel of that image.

Layout: ``part-00000/`` holds one .npy file per output, (images, views, 2, ...) with the view of
hidden blocks first and that of stopped bands second; ``manifest.json`` is written last.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from echostill.distill.objective.outputs import Needs, ViewOutputs
from echostill.distill.objective.views import Views
from echostill.platform.computing.precision import Precision
from echostill.platform.computing.settling import precision_of
from echostill.platform.computing.transfer import sent
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import Encoder
from echostill.platform.models.weights import Weights
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import MANIFEST

TokenPrecision = Literal["float16", "int8"]
DOMAINS = 2  # hidden blocks, stopped bands
SHARD_BYTES = 64 * 10**6
POOLED, TOKENS = "pooled", "tokens"
COMPUTED_IN = "computed_in"  # key of the fingerprint; "precision" there is what tokens are kept in
HELD = frozenset({"pooled", "tokens", "blocks"})  # kinds of needs that a cache can serve
CACHED_VIEWS: Views = "separated"


@dataclass(frozen=True)
class CacheSpec:
    """What is kept of each view, and how many views there are."""

    layers: tuple[int, ...]
    tokens: bool  # whether the final tokens are kept too (consistency at token level)
    views: int
    precision: TokenPrecision
    images: int
    shapes: tuple[tuple[int, int], ...]  # patches and channels of each of the token outputs
    pooled: int  # numbers of a pooled feature
    shard_bytes: int = SHARD_BYTES  # kept with the cache: rows are found by it

    @property
    def needs(self) -> Needs:
        """What the cache serves."""
        return Needs(pooled=True, tokens=self.tokens, blocks=self.layers)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the token outputs: one per layer, then the final tokens where they are kept."""
        return tuple(layer_name(layer) for layer in self.layers) + (
            (TOKENS,) if self.tokens else ()
        )

    @property
    def bytes_per_image(self) -> int:
        """Bytes of all views of one image."""
        half = self.precision == "float16"
        tokens = sum(
            2 * patches * dim if half else patches * dim + 2 * 4 * dim
            for patches, dim in self.shapes
        )
        return self.views * DOMAINS * (tokens + 4 * self.pooled)

    @property
    def bytes(self) -> int:
        """Bytes of the whole cache, within a few headers."""
        return self.images * self.bytes_per_image

    @property
    def images_per_shard(self) -> int:
        """Images in a shard: as many as fit."""
        return max(self.shard_bytes // self.bytes_per_image, 1)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.images_per_shard)


def read_spec(values: Mapping[str, Any]) -> CacheSpec:
    """Read a specification from a manifest; earlier releases kept one shape for all outputs."""
    found = dict(values)
    if "shapes" not in found:
        shape = (found.pop("patches"), found.pop("dim"))
        found["shapes"] = [shape] * (len(found["layers"]) + found["tokens"])
        found["pooled"] = shape[1]
    found["layers"] = tuple(found["layers"])
    found["shapes"] = tuple((patches, dim) for patches, dim in found["shapes"])
    return CacheSpec(**found)


def layer_name(layer: int) -> str:
    """Name of the tokens after a block."""
    return f"layer-{layer:02d}"


def shard_name(index: int) -> str:
    """Folder of a shard."""
    return f"part-{index:05d}"


def quantise(values: np.ndarray, precision: TokenPrecision) -> tuple[np.ndarray, np.ndarray | None]:
    """Quantise tokens.

    Args:
        values: (..., N, D) float32.
        precision: ``float16`` rounds to the nearest; ``int8`` cuts the range of each channel over
            the N tokens into 255 steps, so that a channel that is large everywhere costs nothing.

    Returns:
        The codes, (..., N, D) float16 or uint8, and for ``int8`` the least value and the step of
        each channel, (..., 2, D) float32.

    Raises:
        EchostillError: A value is beyond what float16 holds.
    """
    if precision == "float16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise EchostillError(
                "the teacher's tokens are not finite in float16: set cache_precision: int8."
            )
        return half, None
    low, high = values.min(axis=-2), values.max(axis=-2)
    step = (high - low) / 255
    step = np.where(step > 0, step, 1).astype(np.float32)
    codes = np.rint((values - low[..., None, :]) / step[..., None, :])
    return codes.clip(0, 255).astype(np.uint8), np.stack([low, step], axis=-2)


def restore(codes: Tensor, ranges: Tensor | None) -> Tensor:
    """Undo :func:`quantise`: (..., N, D) float32, on the codes' device."""
    if ranges is None:
        return codes.float()
    low, step = ranges.unbind(dim=-2)
    return torch.addcmul(low[..., None, :], codes.float(), step[..., None, :])


def quantisation_error(values: Tensor, ranges: Tensor | None) -> Tensor:
    """Bound on what :func:`quantise` changed: half a step, (..., N, D) or broadcast to it."""
    if ranges is None:
        return values.abs() * 2.0**-11 + 2.0**-25
    return ranges[..., 1, None, :] / 2


@dataclass(frozen=True)
class CachedRows:
    """Outputs of a batch of views, (B, 2, ...) each."""

    pooled: Tensor
    tokens: dict[str, Tensor]
    ranges: dict[str, Tensor | None]


class TeacherCache:
    """A finished cache, opened by memory mapping."""

    def __init__(self, folder: str | Path) -> None:
        """Open a cache.

        Raises:
            UsageError: It is missing or unfinished.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            state = "is not finished" if self.folder.exists() else "does not exist"
            raise UsageError(
                f"the teacher cache '{self.folder}' {state}: run `echostill cache` first."
            )
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.spec = read_spec(self.manifest["spec"])
        self.image_ids: list[str] = self.manifest["image_ids"]
        self._maps: dict[tuple[int, str], np.ndarray] = {}

    @cached_property
    def _position(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    @property
    def computed_in(self) -> Precision:
        """The precision that the teacher computed in."""
        return precision_of(self.manifest["fingerprint"]["configuration"], COMPUTED_IN)

    def rows(
        self, image_ids: Sequence[str], views: Sequence[int], outputs: Sequence[str] | None = None
    ) -> CachedRows:
        """Read views, on the CPU and still quantised.

        Args:
            image_ids: (B,) images.
            views: (B,) view of each, in 0 .. views - 1.
            outputs: Names of the token outputs wanted; all by default.

        Raises:
            EchostillError: An image or a view is not in the cache.
        """
        positions = [self._find(i, int(v)) for i, v in zip(image_ids, views, strict=True)]
        wanted = self.spec.outputs if outputs is None else outputs
        scaled = self.spec.precision == "int8"
        return CachedRows(
            self._gather(POOLED, positions),
            {name: self._gather(name, positions) for name in wanted},
            {
                name: self._gather(f"{name}-ranges", positions) if scaled else None
                for name in wanted
            },
        )

    def _find(self, image_id: str, view: int) -> tuple[int, int, int]:
        row = self._position.get(image_id)
        if row is None or not 0 <= view < self.spec.views:
            raise EchostillError(
                f"view {view} of image {image_id} is not in the teacher cache '{self.folder}'."
            )
        return (*divmod(row, self.spec.images_per_shard), view)

    def _gather(self, name: str, positions: Sequence[tuple[int, int, int]]) -> Tensor:
        rows = [self._map(shard, name)[row, view] for shard, row, view in positions]
        return torch.from_numpy(np.stack(rows))

    def _map(self, shard: int, name: str) -> np.ndarray:
        key = (shard, name)
        if key not in self._maps:
            path = self.folder / shard_name(shard) / f"{name}.npy"
            self._maps[key] = np.load(path, mmap_mode="r")
        return self._maps[key]


class CachedTeacher(nn.Module):
    """Takes the frozen teacher's place, and looks its outputs up instead of computing them."""

    def __init__(self, cache: TeacherCache, teacher: Encoder) -> None:
        """Take the place of a teacher, which needs no weights here."""
        super().__init__()
        self.cache = cache
        self.name, self.image_size = teacher.name, teacher.image_size
        self.dim, self.feature_dim = teacher.dim, teacher.feature_dim
        self.depth, self.grid = teacher.depth, teacher.grid
        # The encoder's own methods; they touch no weights.
        self.layer, self.patch_grid = teacher.layer, teacher.patch_grid
        self.third_layers = teacher.third_layers

    def look_up(
        self,
        image_ids: Sequence[str],
        views: np.ndarray,
        needs: Needs,
        device: torch.device | str = "cpu",
    ) -> ViewOutputs:
        """Return what the teacher made of views: all with hidden blocks, then those band-stopped.

        Args:
            image_ids: (B,) images.
            views: (B,) int64 view of each, as :class:`TrainingBatch` has them in ``epochs``.
            needs: What is wanted of the teacher.
            device: Where it is wanted.

        Raises:
            EchostillError: An output, an image or a view was not kept.
        """
        absent = needs.without(self.cache.spec.needs)
        if absent.kinds:
            raise EchostillError(
                f"the teacher cache '{self.cache.folder}' does not hold: {absent}. Make it anew "
                "with `echostill cache --overwrite`."
            )
        names = [layer_name(block) for block in needs.blocks]
        rows = self.cache.rows(
            image_ids, views.tolist(), [*names, TOKENS] if needs.tokens else names
        )

        def restored(name: str) -> Tensor:
            ranges = rows.ranges[name]
            moved = None if ranges is None else sent(ranges, device)
            return _join(restore(sent(rows.tokens[name], device), moved))

        return ViewOutputs(
            pooled=_join(sent(rows.pooled, device)) if needs.pooled else None,
            tokens=restored(TOKENS) if needs.tokens else None,
            blocks={block: restored(layer_name(block)) for block in needs.blocks},
            attention={},
        )


@dataclass(frozen=True)
class CachedWeights(Weights):
    """A teacher whose outputs are cached; loaded where it is needed, as its weights would be."""

    folder: str = ""
    computed_in: Precision = "float32"

    def load(self, *, trainable: bool = False) -> Encoder:
        """Open the cache in the teacher's place; there is nothing to train in it."""
        assert not trainable
        with torch.device("meta"):
            original = self.build()
        teacher = CachedTeacher(TeacherCache(self.folder), original)
        return cast(Encoder, teacher)  # the interface the objective uses, without the weights


def write_manifest(
    storage: Storage,
    spec: CacheSpec,
    image_ids: Sequence[str],
    records: Sequence[dict[str, Any]],
    fingerprint: dict[str, Any],
) -> None:
    """Write the manifest: it marks a cache as finished, and names every file with its checksum."""
    manifest = {
        "format_version": 1,
        "stage": "cache",
        "spec": {**asdict(spec), "layers": list(spec.layers)},
        "image_ids": list(image_ids),
        "files": [entry for record in records for entry in record["files"]],
        "fingerprint": fingerprint,
    }
    storage.write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def _join(values: Tensor) -> Tensor:
    """Turn (B, 2, ...) into (2 B, ...): all hidden-block views, then all band-stop views."""
    return torch.cat([values[:, 0], values[:, 1]])
