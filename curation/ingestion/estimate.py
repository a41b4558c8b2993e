"""What a pool will take, reckoned from a sample of its files, for ``ingest --dry-run``."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from echostill.curation.ingestion.archives import read_archive
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, stream_source
from echostill.platform.errors import EchostillError
from echostill.platform.imaging.containers import ARCHIVE, container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.tables.store import describe_bytes

FILES, ROWS = 16, 8  # sampled files, spread evenly, and rows read of each


@dataclass(frozen=True)
class Estimate:
    """Counts of a sample of files, and what they say of all."""

    files: int
    sampled: int
    refused: int  # sampled files that gave no row
    images: float  # in the sampled files
    bytes_per_image: float
    codec: str

    @property
    def total_images(self) -> int:
        """Images that all files will give."""
        return round(self.files * self.images / self.sampled) if self.sampled else 0

    @property
    def total_bytes(self) -> float:
        """Bytes that they will take."""
        return self.total_images * self.bytes_per_image

    def describe(self) -> str:
        """Say it in words."""
        said = f"reckoned from {self.sampled} files"
        if self.refused:
            said += f", of which {self.refused} gave nothing"
        if not self.images:
            return f"unknown, {said}"
        return (
            f"about {describe_bytes(self.total_bytes)}: {self.total_images} images of "
            f"{describe_bytes(self.bytes_per_image)} as {self.codec}, {said}"
        )


def estimate(sources: Sequence[Source], settings: IngestSettings) -> Estimate:
    """Read a sample as ingest would, and reckon what all sources will take.

    Frames of a cine are counted and the first ones staged; of an archive the first members are
    read, and its size says how many there are.
    """
    step = max(len(sources) // FILES, 1)
    sample = list(sources)[step // 2 :: step][:FILES]
    images, sizes, refused = 0.0, [], 0
    for source in sample:
        read = list(itertools.islice(stream_source(source, settings), ROWS))
        rows = [item for item in read if not isinstance(item, Failure)]
        refused += not rows
        sizes += [len(row["image"]) for row in rows]
        if rows:
            images += _count(source, settings) if len(read) == ROWS else len(rows)
    each = sum(sizes) / len(sizes) if sizes else 0.0
    return Estimate(len(sources), len(sample), refused, images, each, settings.stage_codec)


def _count(source: Source, settings: IngestSettings) -> float:
    """Count the images of a file that holds many; what motion will drop is not known before."""
    file = SourceFile(source.name, source.file)
    try:
        if container_of(file.head(), source.name) != ARCHIVE.name:
            return settings.frames.count(open_clip(file, settings.limits).frames)
        members = itertools.islice(read_archive(file, settings.limits), ROWS)
        held = [len(member.data) for member in members if member.data is not None]
    except EchostillError:
        return ROWS
    header = 512  # bytes of a member's own, in a tar
    return max(source.size / (sum(held) / len(held) + header), ROWS) if held else ROWS
