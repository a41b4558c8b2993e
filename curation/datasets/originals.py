"""The original files of chosen images, byte for byte, where they are still what the ingest read.

A pool has no copy of its sources. They are listed again as the ingest was told to, and each file is
read again: its images must have the ids and the staged pixels that the pool has.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from echostill.curation.datasets.chosen import ChosenImages
from echostill.curation.deidentification.decisions import approved_pixels
from echostill.curation.deidentification.pseudonyms import keyed_hash
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.keys import pool_pseudonymiser, under_key
from echostill.curation.ingestion.listing import list_files
from echostill.curation.ingestion.settings import Source
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.curation.ingestion.stage import IngestConfig
from echostill.platform.config import validate
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.containers import PACKED, READERS
from echostill.platform.imaging.files import SourceFile
from echostill.platform.progress import console
from echostill.platform.tables.store import read_configuration

WARNING = (
    "warning: originals are not de-identified. Names may be in their headers and pixels: protect "
    "the folder as you protect where they come from."
)
_HASHED = re.compile("[0-9a-f]{32,}")
_FRAME = re.compile(r"#\d+$")


@dataclass
class Originals:
    """The files of chosen images.

    Attributes:
        chosen: The images.
        config: The ingest that read them.
        key: Its key for identifiers.
        sources: The file of each image, in the order of the images.
        names: What each is called in the export: the same for images of one file.
        hashes: The staged content that the pool has, by image.
    """

    chosen: ChosenImages
    config: IngestConfig
    key: bytes
    sources: list[Source]
    names: list[str]
    hashes: dict[str, str]
    _last: tuple[str, bytes, dict[str, str]] = field(default=("", b"", {}))

    def pictures(self, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yield row and file of some images, as :meth:`ChosenImages.pictures` does.

        Raises:
            EchostillError: A file changed since the ingest.
        """
        ids = self.chosen.table["image_id"]
        for row in rows.tolist():
            source, image_id = self.sources[row], ids[row].as_py()
            if self._last[0] != source.file:
                self._last = (source.file, *self._read(source))
            data, found = self._last[1:]
            if found.get(image_id) != self.hashes[image_id]:
                what = "other pixels" if image_id in found else "other content"
                raise EchostillError(
                    f"'{source.name}' changed since the ingest: it has {what} now than when image "
                    f"{image_id} was read from it. Put the file back, or export the staged pixels "
                    "(another --as)."
                )
            yield row, data

    def _read(self, source: Source) -> tuple[bytes, dict[str, str]]:
        """Return a file's bytes, and the staged content of each image in it by id."""
        gate = ReviewGate(approved_pixels(self.chosen.store))
        data = SourceFile(source.name, source.file).read()
        entries = read_source(source, self.config, self.key, gate)
        rows = [entry for entry in entries if not isinstance(entry, Failure)]
        return data, {row["image_id"]: row["content_hash"] for row in rows}


def open_originals(
    chosen: ChosenImages, sources: Sequence[str] = (), *, may_identify: bool = False
) -> Originals:
    """Find the original file of every chosen image.

    Args:
        chosen: The images.
        sources: Where the files are, as the ingest was told; default what it was told then.
        may_identify: Whether originals of a de-identified pool may be copied.

    Raises:
        UsageError: The pool is de-identified, the files cannot be listed, or one is gone.
    """
    kept = read_configuration(chosen.pool.storage)
    if not kept:
        raise UsageError(f"'{chosen.pool.storage.root}' does not say how it was ingested.")
    pixels = (kept.get("deidentify") or {}).get("pixels", "unknown")
    if pixels != "off" and not may_identify:
        raise UsageError(
            f"the pool was de-identified (deidentify.pixels: {pixels}), and its originals are not: "
            "names may be in their headers and pixels. --may-identify copies them all the same; "
            "any other --as writes the de-identified pixels."
        )
    config, key, names = _listed(chosen, kept, sources)
    found, lost = [], []
    for known in chosen.table["source"].to_pylist():
        source = names.get(_FRAME.sub("", known)) or names.get(known)
        found.append(source)
        if source is None:
            lost.append(known)
    if lost:
        raise UsageError(
            f"the originals of {len(lost)} of {len(chosen)} images are not there as files of "
            f"their own ('{lost[0]}', ...): they are gone, or lie in an archive, which is not "
            "taken apart. Say with --source where they are, or export the staged pixels (another "
            "--as)."
        )
    console.print(WARNING, markup=False, soft_wrap=True)
    files = [source for source in found if source is not None]
    return Originals(
        chosen, config, key, files, [_name(source, key) for source in files], _hashes(chosen)
    )


def _hashes(chosen: ChosenImages) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in chosen.pool.parts(["image_id", "content_hash"]):
        kept = part.filter(pc.is_in(part["image_id"], chosen.table["image_id"].combine_chunks()))
        found |= dict(zip(*kept.to_pydict().values(), strict=True))
    return found


def _name(source: Source, key: bytes) -> str:
    """Return a name that says nothing but what kind of file it is."""
    known = [suffix for reader in (*READERS, PACKED) for suffix in reader.suffixes]
    fitting = [suffix for suffix in known if source.name.lower().endswith(suffix)]
    return keyed_hash(key, "original", source.name) + max(fitting, key=len, default="")


def _listed(
    chosen: ChosenImages, kept: dict[str, Any], sources: Sequence[str]
) -> tuple[IngestConfig, bytes, dict[str, Source]]:
    """List the files as the ingest did; return its settings, its key, and the files by name."""
    told = [kept["source"]] if isinstance(kept.get("source"), str) else list(kept.get("source", ()))
    if not sources and any(_HASHED.fullmatch(place) for place in told):
        raise UsageError(
            "the pool does not hold the names of its sources (deidentify.sources): give them with "
            "--source, as for the ingest."
        )
    values = {**kept, "source": list(sources) or told, "store": chosen.store.root}
    if _HASHED.fullmatch(kept.get("root") or ""):
        values["root"] = None
    values["exclude"] = [name for name in kept.get("exclude") or () if not _HASHED.fullmatch(name)]
    config = validate(IngestConfig, values)
    try:
        found = list_files(config)
    except UsageError as error:
        raise UsageError(
            f"the originals cannot be listed: {error} Say with --source where they are."
        ) from None
    pseudonymiser, _ = pool_pseudonymiser(config, found.sources, chosen.pool.storage)
    by_name = {
        pseudonymiser.name(source.name): under_key(source, pseudonymiser.key)
        for source in found.sources
        if not source.problem
    }
    return config, pseudonymiser.key, by_name
