"""Size of a pool, estimated from a sample of its files, for ``ingest --dry-run``."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.ingestion.archives import read_archive
from echostill.curation.ingestion.findings import Findings
from echostill.curation.ingestion.losses import describe_losses, kind_of
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, Row, stream_source
from echostill.platform.errors import EchostillError
from echostill.platform.imaging.containers import ARCHIVE, container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import NoImageError
from echostill.platform.tables.store import describe_bytes

FILES, ROWS = 16, 8  # files in the sample, evenly spread, and rows read from each


@dataclass(frozen=True)
class Estimate:
    """Counts in a sample of files, and the totals estimated from them."""

    files: int
    sampled: int
    losses: tuple[str, ...]  # of each file in the sample without a row, see `kind_of`
    images: float  # in the sampled files
    bytes_per_image: float
    codec: str
    first_failure: str = ""  # why the first of these files failed that was not held back

    @property
    def failed(self) -> int:
        """Number of files in the sample that gave no row, and were to give one."""
        return len(self.losses)

    @property
    def total_images(self) -> int:
        """Estimated number of images in all files."""
        return round(self.files * self.images / self.sampled) if self.sampled else 0

    @property
    def total_bytes(self) -> float:
        """Estimated size of these images, in bytes."""
        return self.total_images * self.bytes_per_image

    def describe(self) -> str:
        """Describe the estimate in a sentence."""
        message = f"estimated from {self.sampled} file(s)"
        if self.losses:
            message += f"; no image from {describe_losses(self.losses, self.sampled)}"
        if self.first_failure:
            message += f" (first: {self.first_failure})"
        if not self.images:
            return f"unknown, {message}"
        return (
            f"about {describe_bytes(self.total_bytes)}: {self.total_images} images of "
            f"{describe_bytes(self.bytes_per_image)} as {self.codec}, {message}"
        )


def estimate(
    sources: Sequence[Source], settings: IngestSettings, findings: Findings | None = None
) -> Estimate:
    """Read a sample as ingest would, and estimate the size of all sources.

    The frames of a cine are counted and the first ones staged. The first members of an archive are
    read, and their number is estimated from its size.
    """
    step = max(len(sources) // FILES, 1)
    sample = list(sources)[step // 2 :: step][:FILES]
    images, sizes = 0.0, []
    losses, first_failure = [], ""
    for source in sample:
        read = list(itertools.islice(stream_source(source, settings, findings=findings), ROWS))
        rows = [item for item in read if not isinstance(item, Failure)]
        if not rows and not all(_is_company(item) for item in read):
            failure = next((item for item in read if isinstance(item, Failure)), None)
            losses.append(_kind(failure))
            first_failure = first_failure or _reason(failure, settings)
        sizes += [len(row["image"]) for row in rows]
        if rows:
            images += _count(source, settings) if len(read) == ROWS else len(rows)
    each = sum(sizes) / len(sizes) if sizes else 0.0
    return Estimate(
        files=len(sources),
        sampled=len(sample),
        losses=tuple(losses),
        images=images,
        bytes_per_image=each,
        codec=settings.stage_codec,
        first_failure=first_failure,
    )


def _is_company(item: Row | Failure) -> bool:
    """Return whether an entry is of a file that was not meant to be a picture: no failure."""
    return isinstance(item, Failure) and item.error_class == NoImageError.__name__


def _kind(failure: Failure | None) -> str:
    return "without images" if failure is None else kind_of(failure.error_class, failure.message)


def _reason(failure: Failure | None, settings: IngestSettings) -> str:
    """Say why a file failed; its message may quote names, so it is left out under a key."""
    if failure is None or failure.error_class == NEEDS_REVIEW:
        return ""
    return failure.error_class if settings.hides_names else failure.message


def _count(source: Source, settings: IngestSettings) -> float:
    """Count the images of a file with many; how many `frames.motion` will drop is not known."""
    file = SourceFile(source.name, source.file)
    try:
        if container_of(file.head(), source.name) != ARCHIVE.name:
            return settings.frames.count(open_clip(file, settings.limits).frames)
        members = itertools.islice(read_archive(file, settings.limits), ROWS)
        sizes = [len(member.data) for member in members if member.data is not None]
    except EchostillError:
        return ROWS
    header = 512  # bytes that a tar file adds to each member
    return max(source.size / (sum(sizes) / len(sizes) + header), ROWS) if sizes else ROWS
