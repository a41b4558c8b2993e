"""The key for the identifiers of an ingest, and the file names behind hashed names."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from echostill.curation.deidentification.pseudonyms import (
    Pseudonymiser,
    check_key,
    key_shares,
    recovered_key,
    run_key,
    spread,
)
from echostill.curation.ingestion.archives import walk_archive
from echostill.curation.ingestion.identity import study_group
from echostill.curation.ingestion.listing import list_files
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.manifests.words import Words
from echostill.curation.ingestion.patients.spelling import patient_group
from echostill.curation.ingestion.settings import IngestSettings, Source, read_key
from echostill.curation.ingestion.sources import member_name
from echostill.platform.imaging.containers import ARCHIVE_SUFFIXES
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import Storage

KEY_SHARES = "key_shares.json"  # in the pool; can be opened only with the files
_BEGINNING = 2**20  # bytes of a file that a key is derived from
_LOT = 256  # files that are tried at once


def find_pseudonymiser(
    settings: IngestSettings, contents: Sequence[bytes], pool: Storage | None
) -> Pseudonymiser:
    """Return the key for identifiers, the user's or one of this run, and what it hides.

    Args:
        settings: Settings of the ingest.
        contents: The result of :func:`beginnings`.
        pool: Pool of a run that may be continued; some of its files may have been repaired since.

    Raises:
        UsageError: The user's key is missing, empty or too short.
    """
    key = read_key(settings)
    if key is not None:
        check_key(key)
    elif pool is not None and pool.exists(KEY_SHARES):
        key = recovered_key(json.loads(pool.read(KEY_SHARES)), contents)
    return Pseudonymiser(key or run_key(contents), settings.hides_names)


def pool_pseudonymiser(
    settings: IngestSettings, sources: Sources, pool: Storage | None
) -> tuple[Pseudonymiser, list[bytes]]:
    """Return the key for what is listed, that of the pool where it has one that can be found.

    A key of the pool's own run opens with files of that run. Where more files have come since, they
    are looked for among each source's own, and then among all.

    Args:
        settings: Settings of the ingest.
        sources: What is listed.
        pool: Pool of a run that may be continued.

    Returns:
        The pseudonymiser, and the contents that a new key would be locked with.
    """
    contents = beginnings(settings, sources)
    found = find_pseudonymiser(settings, contents, pool)
    if not contents or pool is None or not pool.exists(KEY_SHARES):
        return found, contents
    kept = json.loads(pool.read(KEY_SHARES))
    if recovered_key(kept, contents) is not None:
        return found, contents
    known = list(contents)
    for some in _likely(sources.readable()):
        known += [_beginning(source.file) for source in some]
        if key := recovered_key(kept, known):
            return replace(found, key=key), contents
    return found, contents


def _likely(readable: Sources) -> Iterator[Sequence[Source]]:
    """Yield files that a key may have been locked with: those of each source, then all, in lots."""
    roots = readable.words["root"].met()
    if len(roots.distinct) > 1:
        for number in range(len(roots.distinct)):
            yield spread(readable.take(np.flatnonzero(roots.numbers == number)))
    yield from readable.batches(_LOT)


def keep_key(pool: Storage, pseudonymiser: Pseudonymiser, contents: Sequence[bytes]) -> None:
    """Store a run's own key in a new pool, locked with the contents of its files."""
    if contents and not pool.exists(KEY_SHARES):
        pool.write(KEY_SHARES, json.dumps(key_shares(pseudonymiser.key, contents)).encode())


def beginnings(settings: IngestSettings, sources: Sources) -> list[bytes]:
    """Return the first bytes of some files for a key of this run; none if the user has a key."""
    if read_key(settings) is not None:
        return []
    return [_beginning(source.file) for source in spread(sources.readable())]


def _beginning(file: str) -> bytes:
    try:
        with SourceFile("", file).opened() as stream:
            return stream.read(_BEGINNING)
    except (DecodeError, OSError):
        return b""  # reading it later puts the reason into the quarantine


def under_key(source: Source, key: bytes) -> Source:
    """Replace a patient by a group, so that workers and fingerprints never see the name.

    Where the user gives the group, a study says nothing.
    """
    if not source.patient and not source.study:
        return source
    return replace(
        source,
        group=source.group or patient_group(source.patient, key),
        patient="",
        study="" if source.group else study_group(source.study, key),
    )


def all_under_key(sources: Sources, key: bytes) -> Sources:
    """Do as :func:`under_key` does to all sources, once for each patient and study."""
    words = sources.words
    groups = words["group"].or_else(words["patient"].map(partial(patient_group, key=key)))
    studies = words["study"].map(partial(study_group, key=key))
    return sources.with_words(
        group=groups,
        patient=Words.same("", len(sources)),
        study=studies.replaced(words["group"].where(bool), ""),
    )


def reveal(settings: IngestSettings, pool: Storage, hashes: Sequence[str]) -> dict[str, str]:
    """Find the file names behind hashed names, given the key and the files.

    Args:
        settings: Settings of the ingest; its sources are listed, and its key is used.
        pool: The pool of this ingest.
        hashes: Values of ``source``, with or without the number of a frame.

    Returns:
        Name by hash, for the hashes that were found.
    """
    listed = list_files(settings)
    sources = listed.sources
    found, _ = pool_pseudonymiser(settings, sources, pool)
    pseudonymiser = replace(found, hidden=True)
    names = {
        pseudonymiser.name(name): name for source in sources for name in _names(source, settings)
    }
    revealed = {}
    for given in hashes:
        stem, mark, frame = given.partition("#")
        if stem in names:
            revealed[given] = f"{names[stem]}{mark}{frame}"
    return revealed


def _names(source: Source, settings: IngestSettings) -> Iterator[str]:
    """Yield the name of a file, and for an archive the names of its members."""
    yield source.name
    if source.file and source.name.lower().endswith(ARCHIVE_SUFFIXES):
        for path, _ in walk_archive(SourceFile(source.name, source.file), settings.limits):
            yield member_name(source.name, path)
