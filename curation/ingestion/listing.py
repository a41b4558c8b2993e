"""What there is to read: folders, lists, manifests, archives and files, local or in a bucket.

What cannot or must not be read is listed too, with its problem: it becomes a row of the
quarantine, and none goes missing unsaid. Passed over without a word are hidden files and what is
neither by name nor by content an image, cine, volume or archive.
"""

import contextlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from echostill.curation.ingestion.archives import read_archive
from echostill.curation.ingestion.manifests import (
    MANIFEST_SUFFIXES,
    absolute_path,
    common_folder,
    is_inside,
    leads_out,
    manifest_rows,
    portable_name,
)
from echostill.curation.ingestion.settings import IngestSettings, Source, read_key
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.containers import (
    ARCHIVE_SUFFIXES,
    IMAGE_SUFFIXES,
    SUFFIXES,
    container_of,
)
from echostill.platform.imaging.files import SourceFile, bucket_of, with_options_first
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import sha256

_INDEX = "DICOMDIR"  # the table of contents of a DICOM disc


def list_sources(settings: IngestSettings) -> list[Source]:
    """List every file to read, in the order given; folders are listed by name.

    A file listed twice appears twice, the second time with its ``problem``; so does an id.

    Raises:
        UsageError: A source does not exist or holds nothing to read, a manifest lacks its file
            column, ``group_pattern`` fits no name, or the key file is missing.
    """
    read_key(settings)  # refuse a missing key file before the work, not in it
    given = (settings.source,) if isinstance(settings.source, str) else settings.source
    sources = [source for location in given for source in _list_one(location, settings)]
    if not sources:
        raise UsageError("nothing to ingest: set 'source' to a folder, list or manifest.")
    _check_pattern(settings, sources)
    listed = list(_without_repeats(sources))
    excluded = _contents(settings)
    return [kept for source in listed for kept in _without(source, excluded)]


def _without_repeats(sources: list[Source]) -> Iterator[Source]:
    first_file: dict[str, str] = {}
    first_id: dict[str, str] = {}
    for source in sources:
        if source.problem:
            yield source
            continue
        if source.file in first_file:
            first = first_file[source.file]
            said = f"listed more than once (first as '{first}'); it is read once"
            yield replace(source, problem=said)
            continue
        first_file[source.file] = source.name
        if source.id and source.id in first_id:
            # The id is not repeated in the message: it may name a person.
            yield replace(source, problem=f"has the same id as '{first_id[source.id]}'")
            continue
        if source.id:
            first_id[source.id] = source.name
        yield source


def _list_one(location: str, settings: IngestSettings) -> list[Source]:
    location = with_options_first(location) if "://" in location else location
    suffix = posixpath.splitext(location.lower())[1]
    kind = _kind_of_remote(location) if "://" in location else _kind_of_local(location)
    if "://" not in location:
        location = os.path.abspath(os.path.expanduser(location))
    if kind == "file":
        if suffix in MANIFEST_SUFFIXES:
            return _list_table(location, settings)
        name = portable_name(posixpath.basename(location))
        return [Source(location, name, size=_size(location))]
    listed = _remote_folder(location) if "://" in location else _local_folder(location, settings)
    if not listed:
        deeper = "" if settings.recursive else " Its folders are not read: recursive is false."
        raise UsageError(
            f"'{location}' holds no images ({', '.join(SUFFIXES)} or DICOM files).{deeper}"
        )
    return listed


def _kind_of_local(location: str) -> str:
    path = os.path.expanduser(location)
    if os.path.isdir(path):
        return "folder"
    if os.path.exists(path):
        return "file"
    folder = Path(path).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise UsageError(f"no source '{location}'.{nearest(Path(path).name, names)}")


def _kind_of_remote(location: str) -> str:
    storage, key = bucket_of(location.rstrip("/"))
    try:
        if storage.size(key) is not None:
            return "file"
        if storage.exists(key):
            return "folder"
    except OSError as error:
        raise UsageError(f"cannot look at '{location}': {error}") from None
    raise UsageError(f"no source '{location}'.")


def _local_folder(root: str, settings: IngestSettings) -> list[Source]:
    inside = os.path.realpath(root) + os.sep
    sources = []

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename or root, root)
        said = f"is a folder that cannot be read: {error.strerror}"
        sources.append(Source("", portable_name(Path(name).as_posix()), problem=said))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if settings.recursive and os.path.islink(os.path.join(folder, name)):
                said = "is a link to a folder, which is not followed: name its target as a source"
                sources.append(Source("", _relative(folder, name, root), problem=said))
        if not settings.recursive:
            folders.clear()
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith(".") or name == _INDEX:
                continue
            problem = _problem(path, inside)
            if problem is not None:
                file = "" if problem else path
                size = 0 if problem else _size(path)
                sources.append(
                    Source(file, _relative(folder, name, root), problem=problem, size=size)
                )
    return sorted(sources, key=lambda source: source.name)


def _relative(folder: str, name: str, root: str) -> str:
    return portable_name(Path(folder, name).relative_to(root).as_posix())


def _problem(path: str, inside: str) -> str | None:
    """Return why a file must not be read, ``""`` where it may, None to pass it over."""
    known = path.lower().endswith(SUFFIXES)
    try:
        if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
            # What a link elsewhere shows is not the user's folder's; looking at it is following it.
            return "is a link that leads out of its folder" if known else None
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "is not a regular file" if known else None
        if known:
            return ""
        with open(path, "rb") as file:
            return "" if container_of(file.read(4096), "") else None
    except FileNotFoundError:
        return "is a link that leads nowhere" if known else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _remote_folder(root: str) -> list[Source]:
    storage, key = bucket_of(root.rstrip("/"))
    prefix = f"{key}/" if key else ""
    sources = []
    try:
        for full, size in sorted(storage.sizes(key).items()):
            name = full.removeprefix(prefix)
            base = posixpath.basename(name)
            if any(part.startswith(".") for part in name.split("/")) or base == _INDEX:
                continue
            location = f"{root.rstrip('/')}/{name}"
            if name.lower().endswith(SUFFIXES) or (_is_plain(base) and _recognised(location)):
                large = not name.lower().endswith(IMAGE_SUFFIXES)
                sources.append(Source(location, portable_name(name), size=size if large else 0))
    except OSError as error:
        raise UsageError(f"cannot list '{root}': {error}") from None
    return sources


def _is_plain(name: str) -> bool:
    """Return whether a name has no suffix but numbers: so DICOM files are called ('1.2.840.1')."""
    return all(part.isdigit() for part in name.split(".")[1:])


def _recognised(location: str) -> bool:
    try:
        return bool(container_of(SourceFile("", location).head(), ""))
    except DecodeError:
        return True  # reading it again says why, in the quarantine


def _list_table(location: str, settings: IngestSettings) -> list[Source]:
    """List a text file or manifest; absolute paths keep what tells them apart."""
    rows = list(manifest_rows(location, SourceFile(location, location).read()))
    root = settings.root or posixpath.dirname(location)
    if "://" not in root:
        root = os.path.abspath(os.path.expanduser(root))
    files = [absolute_path(row["file"], root) if row.get("file") else "" for row in rows]
    base = common_folder([file for file in files if file and not is_inside(file, root)])
    sources = []
    for number, (row, file) in enumerate(zip(rows, files, strict=True), start=1):
        problem = _row_problem(row, file, root, settings)
        where = f"row {number} of '{posixpath.basename(location)}'"
        if problem:
            name = portable_name(row.get("file") or f"row {number}")
            sources.append(Source("", name, problem=f"{where} {problem}"))
            continue
        name = os.path.relpath(file, root) if is_inside(file, root) else file[len(base) :]
        name = portable_name(Path(name).as_posix().lstrip("/"))
        sources.append(
            Source(
                file,
                name,
                id=row.get("id", ""),
                group=row.get("group", ""),
                patient=row.get("patient", ""),
                organ=row.get("organ", ""),
                device=row.get("device", ""),
                label=row.get("label", ""),
                size=_size(file),
            )
        )
    if not sources:
        raise UsageError(f"'{location}' lists no files.")
    return sources


def _row_problem(row: dict[str, str], file: str, root: str, settings: IngestSettings) -> str:
    if row.get("problem"):
        return row["problem"]
    if not file:
        return "names no file"
    if "\0" in file:
        return "names a file with a NUL in its name"
    if "id" in row and not row["id"]:
        return "has no id"
    if leads_out(row["file"], root):
        return "names a file outside of its folder: give an absolute path, or set 'root'"
    if settings.root is not None and not is_inside(file, root):
        return "names a file outside of 'root'"
    return ""


def _size(location: str) -> int:
    """Return the bytes of a file that may hold many frames; 0 for one picture, or where unknown."""
    if "://" in location or location.lower().endswith(IMAGE_SUFFIXES):
        return 0
    try:
        return os.stat(location).st_size
    except OSError:
        return 0  # reading it says why


def _check_pattern(settings: IngestSettings, sources: list[Source]) -> None:
    pattern = settings.group_pattern
    if pattern is not None and not any(re.search(pattern, source.name) for source in sources):
        example = "" if settings.hides_names else f"; the first is '{sources[0].name}'"
        raise UsageError(f"group_pattern '{pattern}' fits no name{example}.")


def _contents(settings: IngestSettings) -> set[str]:
    """Return the digests of the files to leave out: under another name they are the same image."""
    plain = settings.model_copy(update={"root": None})
    return {
        digest
        for manifest in settings.exclude
        for source in _list_one(manifest, plain)
        for digest in (*_digest(source), *_digests_inside(source).values())
    }


def _without(source: Source, excluded: set[str]) -> Iterator[Source]:
    """Give a source unless its content is to be left out; of an archive, leave out members."""
    if not excluded:
        yield source
    elif not excluded.intersection(_digest(source)):
        inside = _digests_inside(source).items()
        yield replace(source, skip=tuple(name for name, digest in inside if digest in excluded))


def _digest(source: Source) -> list[str]:
    if not source.file or source.problem:
        return []
    try:
        return [SourceFile(source.name, source.file).sha256()]
    except DecodeError:
        return []  # reading it again says why, in the quarantine


def _digests_inside(source: Source) -> dict[str, str]:
    """Return the digests of an archive's members by name; those before a damage, if it has one."""
    found: dict[str, str] = {}
    if source.file and not source.problem and source.name.lower().endswith(ARCHIVE_SUFFIXES):
        with contextlib.suppress(DecodeError):
            for member in read_archive(SourceFile(source.name, source.file), Limits()):
                if member.data is not None:
                    found[member.name] = sha256(member.data)
    return found
