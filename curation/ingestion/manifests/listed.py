"""The files that a manifest lists, as sources with what it says about them."""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echostill.curation.ingestion.manifests.paths import (
    absolute_path,
    common_folder,
    is_inside,
    leads_out,
    portable_name,
)
from echostill.curation.ingestion.manifests.rows import read_manifest
from echostill.curation.ingestion.patients.spelling import (
    is_placeholder,
    same_device,
    same_group,
    same_organ,
)
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.platform.errors import UsageError
from echostill.platform.imaging.containers import IMAGE_SUFFIXES
from echostill.platform.imaging.files import SourceFile, existing_form

_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Listed:
    """What a manifest lists.

    Attributes:
        sources: Its files, a row each.
        columns: Which of its columns are used, in words; empty for a list without columns.
        warnings: What is doubtful about its rows, a sentence each.
    """

    sources: list[Source]
    columns: str
    warnings: list[str]


def list_manifest(location: str, settings: IngestSettings) -> Listed:
    """List the files of a text file or manifest; names of absolute paths stay distinct.

    Raises:
        UsageError: It is unreadable, has no file column, a misspelt one, or no rows.
    """
    manifest = read_manifest(location, SourceFile(location, location).read())
    root = settings.root or posixpath.dirname(location)
    if "://" not in root:
        root = os.path.abspath(os.path.expanduser(root))
    rows = [_with_slashes(row, root) for row in manifest.rows]
    files = [absolute_path(row["file"], root) if row.get("file") else "" for row in rows]
    base = common_folder([file for file in files if file and not is_inside(file, root)])
    title = "the manifest" if settings.hides_names else f"'{posixpath.basename(location)}'"
    sources = []
    for number, (row, file) in enumerate(zip(rows, files, strict=True), start=1):
        problem = _row_problem(row, file, root, settings)
        if problem:
            name = portable_name(row.get("file") or f"row {number}")
            sources.append(Source("", name, problem=f"row {number} of {title} {problem}"))
            continue
        sources.append(_source(row, file, _name(file, root, base)))
    if not sources:
        raise UsageError(f"'{location}' lists no files.")
    if manifest.columns is None:
        return Listed(sources, "", [])
    said = f"{title} {manifest.columns.describe()}"
    return Listed(sources, said, _doubts(title, rows))


def _name(file: str, root: str, base: str) -> str:
    """Return the name of a file, relative to the root or, outside of it, to the common folder."""
    if not is_inside(file, root):
        name = file[len(base) :]
    elif "://" in file:
        name = os.path.relpath(file, root)
    else:
        name = file[len(root.rstrip("/")) + 1 :]
    if "://" in file:  # local paths are normal already
        name = Path(name).as_posix()
    return portable_name((name or ".").lstrip("/"))


def _source(row: dict[str, str], file: str, name: str) -> Source:
    return Source(
        file,
        name,
        id=row.get("id", ""),
        group=same_group(row.get("group", "")),
        patient=row.get("patient", ""),
        organ=same_organ(row.get("organ", "")),
        device=same_device(row.get("device", "")),
        label=row.get("label", ""),
        size=size_of(file),
        study=row.get("study", ""),
    )


def _doubts(title: str, rows: Sequence[dict[str, str]]) -> list[str]:
    """Say how many rows name no patient."""
    said = []
    named = [row["patient"] for row in rows if "patient" in row]
    nobody = sum(is_placeholder(patient) for patient in named)
    if nobody:
        said.append(
            f"{nobody} of {len(rows)} rows of {title} name no patient (an empty cell, or a "
            "placeholder such as ANONYMOUS or 0): their images are grouped by study, or else by "
            "file"
        )
    return said


def _with_slashes(row: dict[str, str], root: str) -> dict[str, str]:
    """Return a row with the path as Windows does not write it, unless a file is called so."""
    file = row.get("file", "")
    if "\\" not in file or ("://" not in root and _is_there(file, root)):
        return row
    return {**row, "file": file.replace("\\", "/")}


def _is_there(file: str, root: str) -> bool:
    return os.path.lexists(existing_form(absolute_path(file, root)))


def _row_problem(row: dict[str, str], file: str, root: str, settings: IngestSettings) -> str:
    if row.get("problem"):
        return row["problem"]
    if not file:
        return "names no file"
    if "\0" in file:
        return "names a file with a NUL in its name"
    if "id" in row and not row["id"]:
        return "has no id"
    if _DRIVE.match(row["file"]) and not _is_there(row["file"], root):
        return "names a file on a drive of Windows: give paths relative to 'root'"
    inside = is_inside(file, root)
    if not inside and leads_out(row["file"], root):
        return "names a file outside of its folder: give an absolute path, or set 'root'"
    if settings.root is not None and not inside:
        return "names a file outside of 'root'"
    return ""


def size_of(location: str) -> int:
    """Return the bytes of a file that may have many frames; 0 for a single image or if unknown."""
    if "://" in location or location.lower().endswith(IMAGE_SUFFIXES):
        return 0
    try:
        return os.stat(location).st_size
    except OSError:
        return 0  # reading it later gives the reason
