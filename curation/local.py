"""The service's answers straight from a store, without a server: for the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from echostill.curation.client import SUFFIXES, export_format, read_result
from echostill.curation.selection.explain.explain import find_image
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.store import Store

if TYPE_CHECKING:
    from echostill.curation.service.data.state import State

QUERY_SECONDS = 3600.0  # nobody else waits


@contextmanager
def opened(root: str, kinds: tuple[str, ...] = ("catalogue",)) -> "Iterator[State]":
    """Map a store, making first what is missing of the given kinds.

    Problems of the service become the errors of the tool.
    """
    from echostill.curation.service.data.derived import derived_folder, prepare
    from echostill.curation.service.data.state import State
    from echostill.curation.service.problems import Problem
    from echostill.curation.service.serving import print_progress

    store = Store(root)
    store.open_pool()
    prepare(store, derived_folder(store), print_progress, kinds)
    state = State(root)
    state.refresh()
    try:
        yield state
    except Problem as problem:
        kind = UsageError if problem.status < 500 else EchostillError
        raise kind(problem.detail) from None


def query(root: str, sql: str, *, coreset: str | None = None, limit: int = 1000) -> pa.Table:
    """Run one SELECT over a store's views; as ``Client.sql``."""
    from echostill.curation.service.sql.views import describe_views
    from echostill.curation.service.sql.workers import Query, SqlPool

    with opened(root) as state:
        description = describe_views(state, coreset)
        wanted = Query(sql, [], limit, QUERY_SECONDS, arrow=True, description=description)
        pool = SqlPool(1)
        try:
            return read_result(b"".join(pool.run(wanted, lambda: False)))
        finally:
            pool.close()


def neighbours(
    root: str,
    image: str,
    k: int = 10,
    *,
    coreset: str | None = None,
    selected: str = "any",
    same_group: bool = True,
) -> list[dict[str, Any]]:
    """Find the nearest images to one of the pool, or to an image file; as ``Client.neighbours``."""
    from echostill.curation.service.answers import images as answers
    from echostill.curation.service.answers import neighbours as near
    from echostill.curation.service.answers.uploads import TeacherFeatures

    with opened(root, ("catalogue", "neighbours")) as state:
        shown = answers.default_coreset(state, coreset)
        kind = SUFFIXES.get(Path(image).suffix.lower())
        if kind is not None and Path(image).is_file():
            vector = TeacherFeatures(state).feature(Path(image).read_bytes(), kind)
            return near.neighbours_of(state, vector, k, shown, selected)
        table = state.catalogue.table.select(["image_id", "source"])
        row = answers.row_of(state, find_image(image, table))
        return near.neighbours_of(
            state,
            near.own_vector(state, row),
            k,
            shown,
            selected,
            own_row=row,
            other_groups=not same_group,
        )


def compare(root: str, a: str, b: str, *, limit: int = 100) -> dict[str, Any]:
    """Compare two coresets of a store; as ``Client.compare``."""
    from echostill.curation.service.answers import images as answers

    with opened(root) as state:
        found: dict[str, Any] = answers.clean(answers.compare(state, a, b, limit))
        return found


def export_coreset(root: str, name: str, path: str, *, selected: str = "true") -> int:
    """Write a coreset to a ``.parquet``, ``.csv`` or ``.jsonl`` file; returns its bytes."""
    from echostill.curation.service.answers.exports import export
    from echostill.curation.service.data.pages import Finder, Question
    from echostill.platform.tables.storage import Storage

    kind = export_format(path)
    folder, _, file = path.rpartition("/")
    with opened(root) as state:
        coreset = state.coreset(name)
        positions = Finder().find(coreset, Question(selected=selected))
        data = b"".join(export(coreset, positions, kind))
    Storage(folder or ".").write(file, data)
    return len(data)


def export_atlas(root: str, path: str, *, coreset: str | None = None, side: int = 96) -> int:
    """Write the pool for embedding-atlas, with a coreset's columns; returns the rows.

    Raises:
        UsageError: The path is not a local Parquet file, or there are no scores to draw a map of.
    """
    from echostill.curation.service.answers import images as answers
    from echostill.curation.service.answers.atlas import write_atlas
    from echostill.curation.service.serving import print_progress

    if not path.endswith(".parquet") or "://" in path:
        raise UsageError(f"'{path}': expected a local file that ends in .parquet.")
    with opened(root, ("catalogue", "map")) as state:
        if state.places is None:
            raise UsageError(f"'{root}' has no scores to draw a map of: run `echostill score`.")
        shown = answers.default_coreset(state, coreset)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return write_atlas(state, shown, Path(path), side, print_progress)
