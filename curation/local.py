"""The service's answers straight from a store, without a server."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack

import pyarrow as pa

from echostill.curation.answer_files import EVERY_ROW, Pieces, check_answer_file, write_answer
from echostill.curation.questions import (
    ExportFilters,
    SampleFilters,
    check_filters,
    export_format,
    image_file,
    read_result,
    write_export,
)
from echostill.curation.service import answers
from echostill.curation.service.data.derived import ProgressLine, prepare
from echostill.curation.service.data.neighbours import Report
from echostill.curation.service.data.pages import SampleFinder, SampleQuery, sample_query
from echostill.curation.service.data.state import ABSENT, Preparation, State
from echostill.curation.service.problems import tool_errors
from echostill.curation.service.sql.views import describe_views, view_columns
from echostill.curation.service.sql.workers import Query, SqlPool
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store

if TYPE_CHECKING:
    from echostill.curation.service.answers.uploads import TeacherFeatures

QUERY_SECONDS = 3600.0  # no other callers wait
LISTS = ("organ", "device", "label", "group_id", "cluster", "min", "max")

P = ParamSpec("P")
R = TypeVar("R")


def open_store(
    root: str, *, report: Report | None = None, sql: SqlPool | None = None
) -> "LocalStore":
    """Open a store for questions.

    Args:
        root: folder or URI.
        report: called with stage and fraction while derived files are built, which happens when a
            question first needs them; default a line on standard error.
        sql: the process that runs queries, if there is one already; closed with the store.

    Raises:
        UsageError: There is no pool.
    """
    return LocalStore(root, report or ProgressLine(), sql)


class _ReaderState(State):
    """What one reader knows of a store: nothing is built in the background."""

    def __init__(self, root: str, report: Report) -> None:
        super().__init__(root)
        self._report = report
        self._prepare()

    def _run(self, work: Callable[[], None]) -> None:
        work()

    def _prepare(self) -> None:
        """Build the catalogue; the rest is built when a question needs it."""
        prepare(self.store, self.folder, self._report, ("catalogue",))
        self.preparation = Preparation(ABSENT)
        self.refresh()


class LocalStore:
    """Answers from a store's tables (``CoresetQuestions``). A ``with`` block closes it.

    Every method raises a UsageError if the request is wrong, and an EchostillError if it cannot be
    answered.
    """

    def __init__(self, root: str, report: Report, sql: SqlPool | None = None) -> None:
        self._store = Store(root)
        self._store.open_pool()
        self._report = report
        self._state = _ReaderState(root, report)
        self._finder = SampleFinder()
        self._sql = sql

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close files, and the process that runs queries."""
        if self._sql is not None:
            self._sql.close()
        self._state.close()

    @cached_property
    def _teacher(self) -> "TeacherFeatures":
        return answers.uploads.TeacherFeatures(self._state)

    # The pool and its coresets

    def pool(self) -> dict[str, Any]:
        """Return what the store contains: numbers of images, organs, devices, coresets."""
        return self._ask(answers.coresets.pool_overview)

    def coresets(self) -> list[dict[str, Any]]:
        """Return the coresets, newest first."""
        self._state.refresh()
        return list(self._ask(answers.coresets.coreset_list)["items"])

    def coreset(self, name: str) -> dict[str, Any]:
        """Return how a coreset was picked, and its files."""
        return self._ask(answers.coresets.coreset_details, name)

    def stats(self, name: str) -> dict[str, Any]:
        """Return shares of organs and devices, clusters and histograms of a coreset."""
        return self._ask(answers.coresets.coreset_stats, name)

    def samples(self, name: str, **filters: Unpack[SampleFilters]) -> Iterator[dict[str, Any]]:
        """Iterate over a coreset's samples; filters as in ``CoresetQuestions``."""
        check_filters(filters, SampleFilters)
        return self._ask(answers.samples.all_samples, self._finder, name, _query(filters))

    def table(self, name: str, **filters: Unpack[ExportFilters]) -> pa.Table:
        """Return a coreset's selected rows (``selected="any"``: all) as one Arrow table."""
        import pyarrow.parquet as pq

        check_filters(filters, ExportFilters)
        return pq.read_table(io.BytesIO(b"".join(self._pieces(name, "parquet", filters))))

    def export(self, name: str, path: str, **filters: Unpack[ExportFilters]) -> int:
        """Write a coreset to a ``.parquet``, ``.csv`` or ``.jsonl`` file; return its bytes."""
        check_filters(filters, ExportFilters)
        return write_export(path, self._pieces(name, export_format(path), filters))

    def compare(self, a: str, b: str, *, limit: int = 100) -> dict[str, Any]:
        """Compare two coresets: overlap, what entered, what left, what shifted."""
        return self._ask(answers.coresets.compare_coresets, a, b, limit)

    def clusters(self, *, coreset: str | None = None, sort: str = "cluster") -> pa.Table:
        """Return the clusters of a coreset as a table."""
        page = self._ask(answers.coresets.cluster_page, coreset, sort, limit=2**31, cursor=None)
        return pa.Table.from_pylist(page["items"])

    def cluster(self, number: int, *, coreset: str | None = None) -> dict[str, Any]:
        """Return one cluster and its first members."""
        return self._ask(answers.coresets.cluster_details, coreset, number)

    # Images

    def image(self, image_id: str, *, coreset: str | None = None) -> dict[str, Any]:
        """Return everything about one image: origin, scores, ranks, why it is selected or not."""
        return self._ask(answers.images.image_details, image_id, coreset)

    def why(self, image_id: str, *, coreset: str | None = None) -> str:
        """Say in words why an image is selected or not."""
        return str(self.image(image_id, coreset=coreset)["why"]["text"])

    def find(
        self, text: str, *, limit: int = 20, coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Find images by the beginning of an id, or by text in a source."""
        return list(self._ask(answers.images.search_images, text, limit, coreset)["items"])

    def resolve(self, name: str) -> str:
        """Return the id of the one image that an id, its beginning, a source or file name means."""
        return self._state.catalogue.ids[self._ask(answers.images.unique_image, name)]

    def look_up(
        self, *, rows: Sequence[int] = (), ids: Sequence[str] = (), coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Return samples by their rows in the map, then by ids, in the order given."""
        return list(self._ask(answers.images.look_up, rows, ids, coreset)["items"])

    def thumbnail(
        self, image_id: str, *, size: int = 160, format: Literal["jpeg", "png"] = "jpeg"
    ) -> bytes:
        """Return the staged picture of an image as JPEG or PNG."""
        return self._ask(answers.images.thumbnail, self._ask(State.row, image_id), size, format)

    def neighbours(
        self,
        image: str | Path,
        k: int = 10,
        *,
        coreset: str | None = None,
        selected: str = "any",
        same_group: bool = True,
    ) -> list[dict[str, Any]]:
        """Find the images nearest to one of the pool, or to an image file."""
        self._need("neighbours")
        file = image_file(image)
        if file is not None:
            found = self._ask(
                answers.neighbours.neighbours_of_upload, self._teacher, *file, k, coreset, selected
            )
        else:
            image_id = self.resolve(str(image))
            found = self._ask(
                answers.neighbours.neighbours_of_image, image_id, k, coreset, selected, same_group
            )
        return list(found["items"])

    def map(self, *, coreset: str | None = None, sample: int | None = None) -> pa.Table:
        """Return coordinates, cluster and selection of every scored image."""
        self._need("map")
        return self._ask(answers.map.map_table, self._ask(State.default_coreset, coreset), sample)

    def export_atlas(self, path: str, *, coreset: str | None = None, side: int = 96) -> int:
        """Write the pool for embedding-atlas, with a coreset's columns; return the rows.

        Raises:
            UsageError: The path is not a local Parquet file, or there are no scores for a map.
        """
        if not path.endswith(".parquet") or "://" in path:
            raise UsageError(f"'{path}': expected a local file whose name ends in .parquet.")
        self._need("map")
        if self._state.coordinates is None:
            raise UsageError(
                f"'{self._store.root}' has no scores to draw a map from: run `echostill score`."
            )
        shown = self._ask(State.default_coreset, coreset)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return self._ask(answers.atlas.write_atlas, shown, Path(path), side, self._report)

    # SQL

    def views(self) -> list[dict[str, Any]]:
        """Return the views that queries can read, with their columns."""
        return view_columns(self._ask(describe_views, None))

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] = (),
        *,
        coreset: str | None = None,
        limit: int = 1_000_000,
        timeout: float | None = None,
        pandas: bool = False,
    ) -> Any:
        """Run one SELECT over the views; arguments as in ``CoresetQuestions``."""
        with tool_errors():
            pieces = self._answer(query, parameters, coreset, limit, timeout)
            table = read_result(b"".join(pieces))
        return table.to_pandas() if pandas else table

    def export_sql(
        self,
        query: str,
        path: str,
        parameters: Sequence[Any] = (),
        *,
        coreset: str | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        overwrite: bool = False,
    ) -> int:
        """Write all rows of a query to a file; arguments as in ``CoresetQuestions``."""
        check_answer_file(path, overwrite=overwrite)
        with tool_errors():
            pieces = self._answer(query, parameters, coreset, limit or EVERY_ROW, timeout)
            return write_answer(path, pieces)

    def _answer(
        self,
        query: str,
        parameters: Sequence[Any],
        coreset: str | None,
        limit: int,
        timeout: float | None,
    ) -> Pieces:
        """Return the pieces of a query's Arrow stream."""
        if self._sql is None:
            self._sql = SqlPool(1)
        wanted = Query(
            sql=query,
            parameters=list(parameters),
            limit=limit,
            timeout=QUERY_SECONDS if timeout is None else timeout,
            arrow=True,
            description=self._ask(describe_views, coreset),
        )
        return self._sql.run(wanted, lambda: False)

    # Pins and bans

    def pins(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Return pins and bans, newest first; with ``history`` the removed ones too."""
        return list(self._ask(answers.pins.pin_list, history)["items"])

    def pin(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections take images."""
        return self._ask(answers.pins.add_pin, "pin", images, None, author, reason)

    def ban(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections leave images out."""
        return self._ask(answers.pins.add_pin, "ban", images, None, author, reason)

    def unpin(self, pin_id: str, *, author: str, reason: str) -> dict[str, Any]:
        """Remove a pin or ban."""
        return self._ask(answers.pins.remove_pin, pin_id, author, reason)

    def _ask(
        self, question: Callable[Concatenate[State, P], R], *args: P.args, **keys: P.kwargs
    ) -> R:
        with tool_errors():
            return question(self._state, *args, **keys)

    def _pieces(self, name: str, format: str, filters: Mapping[str, Any]) -> Iterator[bytes]:
        return self._ask(answers.exports.export_pieces, self._finder, name, _query(filters), format)

    def _need(self, kind: str) -> None:
        """Build what a question needs, unless it exists."""
        found = {"neighbours": self._state.neighbours, "map": self._state.coordinates}
        if found[kind] is None:
            prepare(self._store, self._state.folder, self._report, (kind,))
            self._state.refresh()


def _query(filters: Mapping[str, Any]) -> SampleQuery:
    with tool_errors():
        return sample_query(**{name: _value(name, value) for name, value in filters.items()})


def _value(name: str, value: Any) -> Any:
    """One value of a filter that takes several is a list of one."""
    return [value] if name in LISTS and isinstance(value, str | int) else value
