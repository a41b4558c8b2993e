"""Under which key the identifiers of an ingest go, and which files stand behind hashed names."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from echostill.curation.deidentification.pseudonyms import (
    Veil,
    check_key,
    key_shares,
    recovered_key,
    run_key,
    spread,
)
from echostill.curation.ingestion.archives import read_archive
from echostill.curation.ingestion.identity import patient_group
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings, Source, read_key
from echostill.curation.ingestion.sources import member_name
from echostill.platform.imaging.containers import ARCHIVE_SUFFIXES
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import Storage

KEY_SHARES = "key_shares.json"  # in the pool; opens with the files alone
_BEGINNING = 2**20  # bytes of a file that a key is derived from


def find_veil(settings: IngestSettings, contents: Sequence[bytes], pool: Storage | None) -> Veil:
    """Return the key for identifiers, the user's or this run's own, and what it hides.

    Args:
        settings: Of the ingest.
        contents: What :func:`beginnings` returned.
        pool: Of a run that may be continued: some of its files may have been mended since.

    Raises:
        UsageError: The user's key is missing, empty or too short.
    """
    key = read_key(settings)
    if key is not None:
        check_key(key)
    elif pool is not None and pool.exists(KEY_SHARES):
        key = recovered_key(json.loads(pool.read(KEY_SHARES)), contents)
    return Veil(key or run_key(contents), settings.hides_names)


def keep_key(pool: Storage, veil: Veil, contents: Sequence[bytes]) -> None:
    """Keep a run's own key in a new pool, locked with the contents of its files."""
    if contents and not pool.exists(KEY_SHARES):
        pool.write(KEY_SHARES, json.dumps(key_shares(veil.key, contents)).encode())


def beginnings(settings: IngestSettings, sources: Sequence[Source]) -> list[bytes]:
    """Return the beginnings of some files for a key of this run; none where the user has one."""
    if read_key(settings) is not None:
        return []
    return [_beginning(source.file) for source in spread([s for s in sources if not s.problem])]


def _beginning(file: str) -> bytes:
    try:
        with SourceFile("", file).opened() as stream:
            return stream.read(_BEGINNING)
    except (DecodeError, OSError):
        return b""  # reading it again says why, in the quarantine


def under_key(source: Source, key: bytes) -> Source:
    """Exchange a patient for a group: neither workers nor fingerprints get to know the name."""
    return replace(source, group=source.group or patient_group(source.patient, key), patient="")


def reveal(settings: IngestSettings, pool: Storage, hashes: Sequence[str]) -> dict[str, str]:
    """Say which files stand behind hashed names, for who has the key and the files.

    Args:
        settings: Of the ingest; its sources are listed, and its key is used.
        pool: The pool that was made.
        hashes: Values of ``source``, with or without the number of a frame.

    Returns:
        Name by hash, as far as found.
    """
    sources = list_sources(settings)
    veil = replace(find_veil(settings, beginnings(settings, sources), pool), hidden=True)
    names = {veil.name(name): name for source in sources for name in _names(source, settings)}
    found = {}
    for given in hashes:
        stem, mark, frame = given.partition("#")
        if stem in names:
            found[given] = f"{names[stem]}{mark}{frame}"
    return found


def _names(source: Source, settings: IngestSettings) -> Iterator[str]:
    """Return the name of a file, and of an archive's members."""
    yield source.name
    if source.file and source.name.lower().endswith(ARCHIVE_SUFFIXES):
        with contextlib.suppress(DecodeError):
            for member in read_archive(SourceFile(source.name, source.file), settings.limits):
                yield member_name(source, member)
