"""List what there is to read: folders, lists, manifests, archives and files, local or in a bucket.

Files that cannot or must not be read are listed too, with their problem. They become rows of the
quarantine. Files that are no image, cine, volume or archive by name or content, hidden files and
masks beside their image are passed over and counted, so that no file is lost silently.
"""

import contextlib
import itertools
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from echostill.curation.ingestion.archives import kind_of_name, walk_archive
from echostill.curation.ingestion.findings import describe_counts
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.manifests.listed import list_manifest, size_of
from echostill.curation.ingestion.manifests.paths import portable_name
from echostill.curation.ingestion.manifests.rows import MANIFEST_SUFFIXES, SPREADSHEETS
from echostill.curation.ingestion.manifests.words import Words
from echostill.curation.ingestion.patients.spelling import Spellings
from echostill.curation.ingestion.settings import IngestSettings, Source, read_key
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.containers import (
    ARCHIVE,
    IMAGE_SUFFIXES,
    PACKED,
    SUFFIXES,
    container_of,
    has_known_suffix,
)
from echostill.platform.imaging.files import SourceFile, bucket_of, with_options_first
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.labels import MASK, named_masks
from echostill.platform.imaging.packed import unpacked
from echostill.platform.imaging.viewers import Viewers
from echostill.platform.tables.storage import sha256

_INDEX = "DICOMDIR"  # the table of contents of a DICOM disc


@dataclass
class Listing:
    """What there is to read, and what of it is not.

    Attributes:
        sources: The files to read, in order.
        passed_over: Files of folders that are not read, by kind.
        tables: What the columns of each manifest are used for, a sentence each.
        warnings: What is doubtful about them, a sentence each.
    """

    sources: Sources = field(default_factory=lambda: Sources.of([]))
    passed_over: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_sources(settings: IngestSettings) -> Sequence[Source]:
    """List every file to read: the sources of :func:`list_files`."""
    return list_files(settings).sources


def list_files(settings: IngestSettings) -> Listing:
    """List every file to read, in the order given; the files of a folder are sorted by name.

    A file that is listed twice appears twice, the second time with its ``problem``; the same holds
    for an id.

    Raises:
        UsageError: A source does not exist or contains nothing to read, a manifest has no file
            column, ``group_pattern`` matches no file name, or the key file is missing.
    """
    read_key(settings)  # a missing key file is an error before the work starts
    given = (settings.source,) if isinstance(settings.source, str) else settings.source
    found, parts = Listing(), []
    for location in given:
        root = location if "://" in location else os.path.abspath(os.path.expanduser(location))
        parts.append(_list_one(location, settings, found).found_in(root))
    found.sources = Sources.joined(parts)
    if not found.sources:
        raise UsageError(
            "nothing to ingest: set 'source' to a folder, list, manifest, archive or file."
        )
    _check_pattern(settings, found.sources)
    found.sources = _without_repeats(found)
    if excluded := _contents(settings):
        found.sources = _without(found.sources, excluded)
    return found


_SAID = ("id", "group", "patient", "study", "organ", "device", "label")


def _without_repeats(listing: Listing) -> Sources:
    """Return the sources, repeated ones with their problem, and devices in one spelling."""
    devices = listing.sources.words["device"].met()
    spellings = Spellings()
    sources = listing.sources.with_words(device=devices.map(spellings.of))
    first_file: dict[str, Source] = {}
    first_id: dict[str, str] = {}
    contradicting = 0
    problems: dict[int, str] = {}
    rows = _perhaps_repeated(sources)
    for row, source in zip(rows.tolist(), sources.take(rows), strict=True):
        if source.file in first_file:
            first = first_file[source.file]
            other = [name for name in _SAID if getattr(first, name) != getattr(source, name)]
            contradicting += bool(other)
            end = f"and says otherwise of {', '.join(other)}; the first row counts"
            message = f"listed more than once (first as '{first.name}')"
            problems[row] = f"{message} {end}" if other else f"{message}; it is read once"
            continue
        first_file[source.file] = source
        if source.id and source.id in first_id:
            # The id is not repeated in the message: it may name a person.
            problems[row] = f"has the same id as '{first_id[source.id]}'"
        elif source.id:
            first_id[source.id] = source.name
    if contradicting:
        listing.warnings.append(
            f"{contradicting} row(s) contradict an earlier row of the same file, which counts"
        )
    return sources.with_words(problem=sources.words["problem"].changed(problems))


def _perhaps_repeated(sources: Sources) -> np.ndarray:
    """Return the rows whose file or id others may have too, as their hashes are equal."""
    found = np.zeros(len(sources), bool)
    allowed = ~sources.words["problem"].where(bool)
    for name in ("file", "id") if sources.id is not None else ("file",):
        given = allowed
        if name == "id":
            given = allowed & pc.greater(pc.binary_length(sources.id), 0).to_numpy()
        batches = (part.values(name) for part in sources.batches())
        hashes = np.fromiter(map(hash, itertools.chain.from_iterable(batches)), np.int64)
        ordered = np.sort(hashes[given])
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        found |= given & np.isin(hashes, again)
    return np.flatnonzero(found)


def _list_one(location: str, settings: IngestSettings, into: Listing) -> Sources:
    """Return the files of one source, and note what else there is to say."""
    location = with_options_first(location) if "://" in location else location
    suffix = posixpath.splitext(location.lower())[1]
    kind = _kind_of_remote(location) if "://" in location else _kind_of_local(location)
    if "://" not in location:
        location = os.path.abspath(os.path.expanduser(location))
    if kind == "file":
        if suffix in SPREADSHEETS:
            raise UsageError(
                f"'{location}' is a spreadsheet, which is not read: save it as CSV (UTF-8)."
            )
        if suffix in MANIFEST_SUFFIXES:
            listed = list_manifest(location, settings)
            into.tables += [listed.columns] if listed.columns else []
            into.warnings += listed.warnings
            return listed.sources
        name = portable_name(posixpath.basename(location))
        return Sources.of([Source(location, name, size=size_of(location))])
    passed: Counter[str] = Counter()
    viewers = Viewers()
    walk = _remote_folder if "://" in location else _local_folder
    found = _told(walk(location, settings, passed, viewers), viewers)
    masks = named_masks(source.name for source in found if not source.problem)
    found = [source for source in found if source.name not in masks]
    passed[MASK] += len(masks)
    into.passed_over += passed
    if not found:
        hint = "" if settings.recursive else " Its sub-folders are not read: recursive is false."
        there = f" There are: {describe_counts(passed)}." if passed else ""
        raise UsageError(
            f"'{location}' contains no images: expected {', '.join(SUFFIXES)} or DICOM files."
            f"{hint}{there}"
        )
    return Sources.of(found)


def _told(sources: list[Source], viewers: Viewers) -> list[Source]:
    """Return a folder's files, and of pictures whether they may be a viewer's or a web page's."""
    for source in sources:
        viewers.add(source.name)
    stills = {source.name for source in sources if source.name.lower().endswith(IMAGE_SUFFIXES)}
    return [
        replace(source, viewer=viewers.claim(source.name)) if source.name in stills else source
        for source in sources
    ]


def _kind_of_local(location: str) -> str:
    path = os.path.expanduser(location)
    if os.path.isdir(path):
        return "folder"
    if os.path.exists(path):
        return "file"
    folder = Path(path).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise UsageError(f"source '{location}' does not exist.{nearest(Path(path).name, names)}")


def _kind_of_remote(location: str) -> str:
    storage, key = bucket_of(location.rstrip("/"))
    try:
        if storage.size(key) is not None:
            return "file"
        if storage.exists(key):
            return "folder"
    except OSError as error:
        raise UsageError(f"cannot access source '{location}': {error}") from None
    raise UsageError(f"source '{location}' does not exist.")


def _local_folder(
    root: str, settings: IngestSettings, passed: Counter[str], viewers: Viewers
) -> list[Source]:
    inside = os.path.realpath(root) + os.sep
    sources = []

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename or root, root)
        message = f"is a folder that cannot be read: {error.strerror}"
        sources.append(Source("", portable_name(Path(name).as_posix()), problem=message))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        passed["hidden folders"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if settings.recursive and os.path.islink(os.path.join(folder, name)):
                message = (
                    "is a link to a folder, which is not followed: name its target as a source"
                )
                sources.append(Source("", _relative(folder, name, root), problem=message))
        if not settings.recursive:
            folders.clear()
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith("."):
                passed["hidden files"] += 1
                continue
            problem = None if name.upper() == _INDEX else _problem(path, inside)
            if problem is None:
                viewers.add(_relative(folder, name, root))
                passed[_INDEX if name.upper() == _INDEX else kind_of_name(name)] += 1
                continue
            file = "" if problem else path
            size = 0 if problem else size_of(path)
            sources.append(Source(file, _relative(folder, name, root), problem=problem, size=size))
    return sorted(sources, key=lambda source: source.name)


def _relative(folder: str, name: str, root: str) -> str:
    return portable_name(Path(folder, name).relative_to(root).as_posix())


def _problem(path: str, inside: str) -> str | None:
    """Return why a file must not be read, ``""`` if it may be, None to ignore it."""
    known = has_known_suffix(path)
    try:
        if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
            # The target is outside the user's folder; even opening it would follow the link.
            return "is a link that leads out of its folder" if known else None
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "is not a regular file" if known else None
        if known:
            return ""
        with open(path, "rb") as file:
            return "" if _is_of_use(path, file.read(4096)) else None
    except FileNotFoundError:
        return "is a link that leads nowhere" if known else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _is_of_use(name: str, head: bytes) -> bool:
    """Return whether content alone tells that a file of an unknown suffix is to be read.

    Documents and arrays of numpy are zip files too, and anything may be packed.
    """
    found = container_of(head, "")
    return bool(found) and not (
        found in (ARCHIVE.name, PACKED.name) and posixpath.splitext(name)[1]
    )


def _remote_folder(
    root: str, settings: IngestSettings, passed: Counter[str], viewers: Viewers
) -> list[Source]:
    storage, key = bucket_of(root.rstrip("/"))
    prefix = f"{key}/" if key else ""
    sources = []
    try:
        for full, size in sorted(storage.sizes(key).items()):
            name = full.removeprefix(prefix)
            base = posixpath.basename(name)
            if any(part.startswith(".") for part in name.split("/")):
                passed["hidden files"] += 1
                continue
            if base.upper() == _INDEX:
                viewers.add(name)
                passed[_INDEX] += 1
                continue
            location = f"{root.rstrip('/')}/{name}"
            if has_known_suffix(name) or (_is_plain(base) and _recognised(location)):
                large = not name.lower().endswith(IMAGE_SUFFIXES)
                sources.append(Source(location, portable_name(name), size=size if large else 0))
            else:
                viewers.add(name)
                passed[kind_of_name(base)] += 1
    except OSError as error:
        raise UsageError(f"cannot list '{root}': {error}") from None
    return sources


def _is_plain(name: str) -> bool:
    """Return whether all parts after a dot are numbers, as in DICOM file names ('1.2.840.1')."""
    return all(part.isdigit() for part in name.split(".")[1:])


def _recognised(location: str) -> bool:
    try:
        return bool(container_of(SourceFile("", location).head(), ""))
    except DecodeError:
        return True  # reading it later puts the reason into the quarantine


def _check_pattern(settings: IngestSettings, sources: Sources) -> None:
    pattern = settings.group_pattern
    if pattern is not None and not any(re.search(pattern, source.name) for source in sources):
        example = "" if settings.hides_names else f"; the first is '{sources[0].name}'"
        raise UsageError(
            f"group_pattern '{pattern}' matches no file name{example}. It is searched in each path "
            "relative to its source: correct it, or leave it out."
        )


def _contents(settings: IngestSettings) -> set[str]:
    """Return the digests of the files to leave out, because a copy may have another name."""
    plain = settings.model_copy(update={"root": None})
    return {
        digest
        for manifest in settings.exclude
        for source in _list_one(manifest, plain, Listing())
        for digest in (*_digests(source), *itertools.chain(*_digests_inside(source).values()))
    }


def _without(sources: Sources, excluded: set[str]) -> Sources:
    """Return the sources whose content is not excluded; such members of archives are skipped."""
    kept, skips = [], []
    for row, source in enumerate(sources):
        if not excluded.intersection(_digests(source)):
            inside = _digests_inside(source).items()
            kept.append(row)
            skips.append(tuple(name for name, found in inside if excluded.intersection(found)))
    return sources.take(np.array(kept, np.int64)).with_words(skip=Words.of(skips))


def _digests(source: Source) -> list[str]:
    """Return the digest of a file, and of what is packed in it."""
    if not source.file or source.problem:
        return []
    with contextlib.suppress(DecodeError):  # reading it later puts the reason into the quarantine
        file = SourceFile(source.name, source.file)
        return [file.sha256(), *_unpacked_digest(file)]
    return []


def _unpacked_digest(file: SourceFile) -> list[str]:
    if container_of(file.head(), file.name) != PACKED.name:
        return []
    with contextlib.suppress(DecodeError):
        return [unpacked(file, Limits()).sha256()]
    return []


def _digests_inside(source: Source) -> dict[str, list[str]]:
    """Return the digests of an archive's members by path; if it is damaged, of those before."""
    if not source.file or source.problem:
        return {}
    file = SourceFile(source.name, source.file)
    with contextlib.suppress(DecodeError):
        if container_of(file.head(), source.name) == ARCHIVE.name:
            return {
                path: [sha256(data), *_unpacked_digest(SourceFile(path, data=data))]
                for path, data in walk_archive(file, Limits())
                if data is not None
            }
    return {}
