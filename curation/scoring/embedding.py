"""Features of any images from any model: `echostill embed`.

Images are read as ingest reads them (folders, lists, manifests, DICOM, cines), so that a feature is
the same as that of the pool row. An image that cannot be read costs only its own row.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, Row, pixels_row, read_source
from echostill.platform.computing.precision import Precision
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.imaging.images import to_square
from echostill.platform.models import model_names
from echostill.platform.models.exported import (
    FeatureModel,
    encoder_compute,
    open_export,
    settled_here,
)
from echostill.platform.models.registry import TIMM_PREFIX
from echostill.platform.models.trained import TrainedModel, open_run, open_zoo
from echostill.platform.progress import Progress
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import file_in
from echostill.platform.tables.store import Store
from echostill.platform.training.staging import staged_side

BATCH_SIZE = 32
LISTED = 10  # failures that are printed with names; the quarantine file has all of them


@dataclass(frozen=True)
class Embedded:
    """The result of an embedding."""

    rows: int
    dim: int
    target: str
    failures: tuple[Failure, ...]
    quarantine: str

    def describe(self) -> str:
        """Describe the result, with the names of images that gave no row."""
        lines = [f"{self.rows} features of {self.dim} numbers: {self.target}"]
        if self.failures:
            lines.append(f"{len(self.failures)} without one, listed in {self.quarantine}:")
            lines += [f"  {item.source}: {item.message}" for item in self.failures[:LISTED]]
            if len(self.failures) > LISTED:
                lines.append(f"  and {len(self.failures) - LISTED} more")
        return "\n".join(lines)


def find_model(
    name: str,
    *,
    store: str,
    weights: str | None,
    form: str | None,
    threads: int | None = None,
    image_size: int | None = None,
    pooling: str | None = None,
    key: str | None = None,
    precision: Precision = "auto",
) -> FeatureModel:
    """Find a model by an export's path, a zoo name with weights, or a run's name.

    Args:
        name: The path, or one of the names.
        store: Store of the run.
        weights: Weights file of a zoo model.
        form: Which form of an export folder.
        threads: Threads of an exported graph.
        image_size: Input side of a zoo model, to which positions are resampled.
        pooling: How a zoo model pools, as ``teacher.pooling``.
        key: Which weights of the file, as ``teacher.key``.
        precision: Of matrix products; ``auto`` is bfloat16 on GPUs, float32 on CPUs.

    Raises:
        UsageError: It is none of these, a zoo model without weights, or another model with what
            only a zoo model has, or a precision that it cannot compute in.
    """
    is_zoo = name in model_names() or name.startswith(TIMM_PREFIX)
    if not is_zoo and (image_size or pooling or key):
        raise UsageError(
            f"an image size, a pooling and a key are for a model of the zoo, which '{name}' is not."
        )
    if weights is not None or is_zoo:
        if weights is None:
            raise UsageError(f"'{name}' is a model without weights: give them with --weights FILE.")
        found = open_zoo(name, weights, image_size=image_size, pooling=pooling, key=key)
        return _from_encoder(found, "zoo", precision)
    path = Path(name).expanduser()
    if path.exists():
        return open_export(path, form, threads, precision)
    try:
        trained = open_run(Store(store), name)
    except UsageError as error:
        if "/" in name or path.suffix:
            folder = path.parent
            names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            raise UsageError(f"no exported model '{name}'.{nearest(path.name, names)}") from None
        raise UsageError(
            f"no model '{name}': there is no export at that path, and {error}"
        ) from None
    return _from_encoder(trained, "run", precision)


def embed(
    images: Sequence[str],
    model: FeatureModel,
    to: str,
    *,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    settings: IngestSettings | None = None,
    progress: bool = True,
) -> Embedded:
    """Write the features of images as one Parquet file.

    Columns: ``image`` (the source), ``image_id``, ``frame`` (of a cine, else 0) and ``feature``
    (fixed-size list of float32, the model's own pooling, not normalised). Rows are in the order of
    the sources. Pixels are not de-identified unless ``settings`` enable it: no pixels are stored,
    and no image is held back. File names are stored. Images that could not be read are listed in
    ``<name>.quarantine.parquet`` next to the file.

    Args:
        images: Folders, files, lists (.txt) or manifests (.csv, .parquet).
        model: From :func:`find_model`.
        to: Parquet file to write; it appears only when it is complete.
        batch_size: Images per pass through the model.
        threads: Threads that decode; default all this process may use.
        settings: How files are read; its ``source`` is replaced by ``images``.
        progress: Whether to show a bar.

    Raises:
        UsageError: Nothing to read, or the target is not a .parquet file.
        EchostillError: No image could be read.
    """
    if not to.endswith(".parquet"):
        raise UsageError(f"'{to}' is not a .parquet file: features are written as Parquet.")
    values = {
        # A pool stages at 256 pixels; a model with a larger input must not see enlarged images.
        "stage_side": max(256, staged_side(model.image_size)),
        "deidentify": {"pixels": "off"},
        **(settings.model_dump(exclude_unset=True) if settings else {}),
        "source": tuple(images),
    }
    reading = IngestSettings(**values)
    sources = list_sources(reading)
    failures: list[Failure] = []
    tables: list[pa.Table] = []
    with Progress("embed", len(sources), enabled=progress) as bar:
        for batch in _batches(_read(sources, reading, failures, bar, threads), batch_size):
            tables.append(_features(model, batch))
    quarantine = _write_quarantine(to, failures)
    if not tables:
        first = failures[0]
        raise EchostillError(
            f"none of {len(failures)} image(s) could be read (first: {first.source}: "
            f"{first.message}). '{quarantine}' lists all."
        )
    table = pa.concat_tables(tables)
    _write(to, table.replace_schema_metadata(_metadata(model)))
    dim = table.schema.field("feature").type.list_size
    return Embedded(table.num_rows, dim, to, tuple(failures), quarantine)


def _from_encoder(trained: TrainedModel, form: str, precision: Precision) -> FeatureModel:
    encoder, precision = trained.encoder, settled_here(precision)
    return FeatureModel(
        trained.run or encoder.name,
        form,
        encoder.image_size,
        trained.digest,
        encoder_compute(encoder, precision),
        precision,
    )


def _read(
    sources: Sequence[Source],
    settings: IngestSettings,
    failures: list[Failure],
    bar: Progress,
    threads: int | None,
) -> Iterator[Row]:
    """Decode ahead in threads; rows are yielded in the order of the sources."""
    workers = threads or len(os.sched_getaffinity(0))
    ahead = 4 * workers
    with ThreadPoolExecutor(workers, thread_name_prefix="echostill-decode") as pool:

        def submit(source: Source) -> Future[list[Row | Failure]]:
            return pool.submit(read_source, source, settings, make_row=pixels_row)

        waiting = deque(submit(source) for source in sources[:ahead])
        for position in range(len(sources)):
            items = waiting.popleft().result()
            if position + ahead < len(sources):
                waiting.append(submit(sources[position + ahead]))
            for item in items:
                if isinstance(item, Failure):
                    failures.append(item)
                else:
                    yield item
            bar.advance(note=f"{len(failures)} unreadable" if failures else "")


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _features(model: FeatureModel, batch: Sequence[Row]) -> pa.Table:
    pixels = np.stack([to_square(row["pixels"], model.image_size) for row in batch])
    features = model.features(pixels)
    item = pa.field("element", pa.float32())
    return pa.table(
        {
            "image": pa.array([row["source"] for row in batch], pa.string()),
            "image_id": pa.array([row["image_id"] for row in batch], pa.string()),
            "frame": pa.array([row["frame"] for row in batch], pa.int32()),
            "feature": pa.FixedSizeListArray.from_arrays(
                pa.array(features.ravel(), pa.float32()), type=pa.list_(item, features.shape[1])
            ),
        }
    )


def _metadata(model: FeatureModel) -> dict[str, str]:
    """Identify the model in the file's metadata: files are comparable if this is equal."""
    named = {
        "echostill.model": model.name,
        "echostill.form": model.form,
        "echostill.image_size": str(model.image_size),
        "echostill.weights": model.digest,
    }
    if model.precision != "float32":  # of which nothing was said before there were others
        named["echostill.precision"] = model.precision
    return named


def _write_quarantine(to: str, failures: Sequence[Failure]) -> str:
    """Write the failures next to the features; without failures, remove an old list."""
    name = f"{to.removesuffix('.parquet')}.quarantine.parquet"
    rows: list[dict[str, Any]] = [item.row("embed") for item in failures]
    if rows:
        _write(name, pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))
    else:
        folder, file = file_in(name)
        folder.delete(file)
    return name


def _write(target: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=8192)
    folder, file = file_in(target)
    folder.write(file, sink.getvalue().to_pybytes())
