"""The files that a manifest lists, as sources with what it says about them."""

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.manifests.paths import (
    absolute_path,
    common_folder,
    is_inside,
    leads_out,
    portable_name,
)
from echostill.curation.ingestion.manifests.rows import Manifest, read_manifest
from echostill.curation.ingestion.manifests.words import (
    BATCH,
    Words,
    joined_texts,
    read_texts,
    texts,
)
from echostill.curation.ingestion.patients.spelling import (
    is_placeholder,
    same_device,
    same_group,
    same_organ,
)
from echostill.curation.ingestion.settings import IngestSettings
from echostill.platform.errors import UsageError
from echostill.platform.imaging.containers import IMAGE_SUFFIXES
from echostill.platform.imaging.files import SourceFile, existing_form

_DRIVE = re.compile(r"[A-Za-z]:/")
# A relative path that is not the name of its file as it stands: parts that are empty or lead
# elsewhere, signs of Windows, of a home folder, and letters that Unicode writes in several ways.
_ODD = r"(^|/)\.{0,2}(/|$)|\\|^~|^[A-Za-z]:/|[^\x01-\x7f]"


@dataclass(frozen=True)
class Listed:
    """What a manifest lists.

    Attributes:
        sources: Its files, a row each.
        columns: Which of its columns are used, in words; empty for a list without columns.
        warnings: What is doubtful about its rows, a sentence each.
    """

    sources: Sources
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
    title = "the manifest" if settings.hides_names else f"'{posixpath.basename(location)}'"
    if not len(manifest):
        raise UsageError(f"'{location}' lists no files.")
    sources = _Files(manifest, root, settings, title).sources()
    if manifest.columns is None:
        return Listed(sources, "", [])
    return Listed(sources, f"{title} {manifest.columns.describe()}", _doubts(title, manifest))


class _Files:
    """The files of a manifest: where they are, what they are called, and what is said of them."""

    def __init__(self, manifest: Manifest, root: str, settings: IngestSettings, title: str) -> None:
        self._manifest, self._root, self._settings = manifest, root, settings
        self._title = title
        self._inside = f"{root.rstrip('/')}/"
        self._is_normal = absolute_path("x", root) == f"{self._inside}x"
        self._base = common_folder(self._outside())
        self._problems: dict[int, str] = {}  # by row

    def sources(self) -> Sources:
        """Return the files, one for each row."""
        chunks = [self._batch(start, paths) for start, paths in self._batches()]
        names, files, folders, sizes = zip(*chunks, strict=True)
        rows = len(self._manifest)
        said = self._manifest.words
        words = {
            "group": said.get("group", Words.same("", rows)).map(same_group),
            "patient": said.get("patient", Words.same("", rows)),
            "organ": said.get("organ", Words.same("", rows)).map(same_organ),
            "device": said.get("device", Words.same("", rows)).map(same_device),
            "label": said.get("label", Words.same("", rows)),
            "study": said.get("study", Words.same("", rows)),
        }
        ids = self._manifest.unique.get("id")
        if self._problems:  # of these rows nothing else counts
            wrong = np.zeros(rows, bool)
            wrong[list(self._problems)] = True
            words = {name: column.replaced(wrong, "") for name, column in words.items()}
            words["problem"] = Words.same("", rows).changed(self._problems)
            ids = None if ids is None else pc.if_else(pa.array(wrong), b"", ids)
        words["folder"] = Words(np.concatenate(folders), [self._inside, self._base])
        size = np.concatenate(sizes)
        return Sources.made(
            joined_texts(names),
            joined_texts(files),
            words,
            id=ids,
            size=size if size.any() else None,
        )

    def _batches(self) -> Iterator[tuple[int, list[str]]]:
        column = self._manifest.unique["file"]
        for start in range(0, len(column), BATCH):
            yield start, read_texts(column.slice(start, BATCH))

    def _plain(self, start: int, paths: list[str]) -> list[str | None]:
        """Return the names of files that are in the root as they stand, None for other rows."""
        if not self._is_normal:
            return [None] * len(paths)
        below = [path.removeprefix(self._inside) for path in paths]
        odd = pc.match_substring_regex(texts(below), _ODD)
        if "id" in self._manifest.unique:
            ids = self._manifest.unique["id"].slice(start, len(paths))
            odd = pc.or_(odd, pc.equal(pc.binary_length(ids), 0))
        return [
            None if is_odd else name for name, is_odd in zip(below, odd.to_pylist(), strict=True)
        ]

    def _outside(self) -> Iterator[str]:
        """Yield the files that are not in the root."""
        for start, paths in self._batches():
            for path, name in zip(paths, self._plain(start, paths), strict=True):
                if path and name is None:
                    file = absolute_path(_with_slashes(path, self._root), self._root)
                    if not is_inside(file, self._root):
                        yield file

    def _batch(
        self, start: int, paths: list[str]
    ) -> tuple[pa.Array, pa.Array, np.ndarray, np.ndarray]:
        """Return names, files, folders and sizes of some rows, see :class:`Sources`."""
        names: list[str] = []
        files: list[str | None] = []
        folders, sizes = np.zeros(len(paths), np.int32), np.zeros(len(paths), np.int64)
        for row, plain in enumerate(self._plain(start, paths)):
            name, file = plain, None
            if name is None:
                name, file = self._odd(start + row, paths[row])
                if file == f"{self._base}{name}":
                    file, folders[row] = None, 1
            if file != "" and not (file or name).lower().endswith(IMAGE_SUFFIXES):
                folder = self._base if folders[row] else self._inside
                sizes[row] = size_of(file or f"{folder}{name}")
            names.append(name)
            files.append(file)
        return texts(names), texts(files), folders, sizes

    def _odd(self, row: int, written: str) -> tuple[str, str]:
        """Return the name and the path of a row's file; "" for a path where it has a problem."""
        path = _with_slashes(written, self._root)
        file = absolute_path(path, self._root) if path else ""
        problem = self._problem(row, path, file)
        if problem:
            self._problems[row] = f"row {row + 1} of {self._title} {problem}"
            return portable_name(path or f"row {row + 1}"), ""
        return _name(file, self._root, self._base), file

    def _problem(self, row: int, path: str, file: str) -> str:
        said, root = self._manifest, self._root
        if "problem" in said.words and said.words["problem"][row]:
            return said.words["problem"][row]
        if not file:
            return "names no file"
        if "\0" in file:
            return "names a file with a NUL in its name"
        if "id" in said.unique and not said.unique["id"][row].as_py():
            return "has no id"
        if _DRIVE.match(path) and not _is_there(path, root):
            return "names a file on a drive of Windows: give paths relative to 'root'"
        inside = is_inside(file, root)
        if not inside and leads_out(path, root):
            return "names a file outside of its folder: give an absolute path, or set 'root'"
        if self._settings.root is not None and not inside:
            return "names a file outside of 'root'"
        return ""


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


def _doubts(title: str, manifest: Manifest) -> list[str]:
    """Say how many rows name no patient."""
    patients, problems = manifest.words.get("patient"), manifest.words.get("problem")
    if patients is None:
        return []
    unnamed = patients.where(is_placeholder)
    if problems is not None:  # of these rows nothing is known
        unnamed &= ~problems.where(bool)
    if not unnamed.any():
        return []
    return [
        f"{np.count_nonzero(unnamed)} of {len(manifest)} rows of {title} name no patient (an empty "
        "cell, or a placeholder such as ANONYMOUS or 0): their images are grouped by study, or "
        "else by file"
    ]


def _with_slashes(path: str, root: str) -> str:
    """Return a path as Windows does not write it, unless a file is called so."""
    if "\\" not in path or ("://" not in root and _is_there(path, root)):
        return path
    return path.replace("\\", "/")


def _is_there(file: str, root: str) -> bool:
    return os.path.lexists(existing_form(absolute_path(file, root)))


def size_of(location: str) -> int:
    """Return the bytes of a file that may have many frames; 0 for a single image or if unknown."""
    if "://" in location or location.lower().endswith(IMAGE_SUFFIXES):
        return 0
    try:
        return os.stat(location).st_size
    except OSError:
        return 0  # reading it later gives the reason
