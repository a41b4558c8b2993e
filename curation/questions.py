"""The questions one can ask about a store: one protocol, answered by a service or by a store.

``connect(url)`` gives a ``Client``, which asks a running service; ``open_store(root)`` gives a
``LocalStore``, which answers from the tables without a server. Both give the same answers and raise
the same errors, and the same tests cover both. Picking is not among the questions: on a store it is
the stage ``select``, on a service a job (``Client.pick``).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypedDict, Unpack

import pyarrow as pa

from echostill.curation.answer_files import AnswerStream
from echostill.platform.errors import UsageError, nearest
from echostill.platform.tables.atomic import atomic_write
from echostill.platform.tables.storage import Storage

IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
EXPORT_FORMATS = ("parquet", "csv", "jsonl")


class ExportFilters(TypedDict, total=False):
    """Which samples of a coreset: docs/api.md, ``samples``."""

    selected: str
    organ: str | Sequence[str]
    device: str | Sequence[str]
    label: str | Sequence[str]
    group_id: str | Sequence[str]
    cluster: int | Sequence[int]
    source: str
    min: str | Sequence[str]
    max: str | Sequence[str]


class SampleFilters(ExportFilters, total=False):
    """Which samples of a coreset, in which order."""

    sort: str


class CoresetQuestions(Protocol):
    """What a service and a store answer. A ``with`` block closes it.

    Every method raises a UsageError if the request is wrong, and an EchostillError if it cannot be
    answered.
    """

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""

    def close(self) -> None:
        """Close connections and files."""

    def pool(self) -> dict[str, Any]:
        """Return what the store contains: numbers of images, organs, devices, coresets."""

    def coresets(self) -> list[dict[str, Any]]:
        """Return the coresets, newest first."""

    def coreset(self, name: str) -> dict[str, Any]:
        """Return how a coreset was picked, and its files."""

    def stats(self, name: str) -> dict[str, Any]:
        """Return shares of organs and devices, clusters and histograms of a coreset."""

    def samples(self, name: str, **filters: Unpack[SampleFilters]) -> Iterator[dict[str, Any]]:
        """Iterate over a coreset's samples.

        Args:
            name: of the coreset.
            **filters: such as ``selected="any"``, ``organ="liver"``, ``cluster=[3, 4]``,
                ``min="distance:0.2"``, ``sort="-dual_rank"``; by default the selected ones by id.
        """

    def table(self, name: str, **filters: Unpack[ExportFilters]) -> pa.Table:
        """Return a coreset's selected rows (``selected="any"``: all) as one Arrow table."""

    def export(self, name: str, path: str, **filters: Unpack[ExportFilters]) -> int:
        """Write a coreset to a ``.parquet``, ``.csv`` or ``.jsonl`` file; return its bytes."""

    def compare(self, a: str, b: str, *, limit: int = 100) -> dict[str, Any]:
        """Compare two coresets: overlap, what entered, what left, what shifted."""

    def clusters(self, *, coreset: str | None = None, sort: str = "cluster") -> pa.Table:
        """Return the clusters of a coreset as a table."""

    def cluster(self, number: int, *, coreset: str | None = None) -> dict[str, Any]:
        """Return one cluster and its first members."""

    def image(self, image_id: str, *, coreset: str | None = None) -> dict[str, Any]:
        """Return everything about one image: origin, scores, ranks, why it is selected or not."""

    def why(self, image_id: str, *, coreset: str | None = None) -> str:
        """Say in words why an image is selected or not."""

    def find(
        self, text: str, *, limit: int = 20, coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Find images by the beginning of an id, or by text in a source."""

    def resolve(self, name: str) -> str:
        """Return the id of the one image that a name means.

        Args:
            name: an image id, a unique beginning of one, a source, or its file name.

        Raises:
            UsageError: It means no image, or several.
        """

    def look_up(
        self, *, rows: Sequence[int] = (), ids: Sequence[str] = (), coreset: str | None = None
    ) -> list[dict[str, Any]]:
        """Return samples by their rows in the map, then by ids, in the order given."""

    def thumbnail(
        self, image_id: str, *, size: int = 160, format: Literal["jpeg", "png"] = "jpeg"
    ) -> bytes:
        """Return the staged picture of an image as JPEG or PNG."""

    def neighbours(
        self,
        image: str | Path,
        k: int = 10,
        *,
        coreset: str | None = None,
        selected: str = "any",
        same_group: bool = True,
    ) -> list[dict[str, Any]]:
        """Find the nearest images.

        Args:
            image: the name of an image as in ``resolve``, or the path of an image file.
            k: how many, 1 to 200.
            coreset: whose columns are shown, and to which ``selected`` refers.
            selected: ``true``, ``false`` or ``any``.
            same_group: whether images of the same group may be among them; for images of the pool.
        """

    def map(self, *, coreset: str | None = None, sample: int | None = None) -> pa.Table:
        """Return coordinates, cluster and selection of every scored image."""

    def views(self) -> list[dict[str, Any]]:
        """Return the views that queries can read, with their columns."""

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
        """Run one SELECT over the views.

        Args:
            query: over ``pool``, ``scores``, ``coreset``, ``samples``, ``coresets``, ...
            parameters: values of its ``?``.
            coreset: name of the coreset that the view ``coreset`` shows.
            limit: rows at most; if there are more, the schema's metadata says so (``truncated``).
            timeout: seconds at most; default 60 on a service, which is its limit, and an hour on a
                store.
            pandas: return a data frame instead of an Arrow table.
        """

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
        """Write all rows of a query to a ``.parquet``, ``.arrow`` or ``.csv`` file.

        The file appears when it is complete.

        Args:
            query: as in ``sql``.
            path: a local path or a URI.
            parameters: values of its ``?``.
            coreset: name of the coreset that the view ``coreset`` shows.
            limit: rows at most; default all of them.
            timeout: as in ``sql``.
            overwrite: replace a file that is there.

        Returns:
            The number of rows.
        """

    def pins(self, *, history: bool = False) -> list[dict[str, Any]]:
        """Return pins and bans, newest first; with ``history`` the removed ones too."""

    def pin(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections take images."""

    def ban(self, images: Sequence[str], *, author: str, reason: str) -> dict[str, Any]:
        """Have all later selections leave images out."""

    def unpin(self, pin_id: str, *, author: str, reason: str) -> dict[str, Any]:
        """Remove a pin or ban."""


def check_filters(filters: Iterable[str], known: type[ExportFilters]) -> None:
    """Reject filters that do not exist.

    Raises:
        UsageError: Names an unknown one and the nearest that exists.
    """
    valid = sorted(known.__annotations__)
    for name in filters:
        if name not in valid:
            raise UsageError(
                f"unknown filter '{name}'.{nearest(name, valid)} There are: {', '.join(valid)}."
            )


def image_file(image: str | Path) -> tuple[bytes, str] | None:
    """Read an image file and its media type; None if there is no image file of this name."""
    path = Path(image)
    media_type = IMAGE_TYPES.get(path.suffix.lower())
    if media_type is None or not path.is_file():
        return None
    return path.read_bytes(), media_type


def export_format(path: str) -> str:
    """Return the format for a file's name.

    Raises:
        UsageError: The name does not end in .parquet, .csv or .jsonl.
    """
    found = Path(path).suffix.lower().removeprefix(".")
    if found not in EXPORT_FORMATS:
        raise UsageError(f"'{path}': the name must end in .parquet, .csv or .jsonl.")
    return found


def write_export(path: str, pieces: Iterable[bytes]) -> int:
    """Write the pieces of a file to a local path or a URI; return their bytes.

    The file appears when it is complete.
    """
    if "://" in path:
        folder, _, name = path.rpartition("/")
        data = b"".join(pieces)
        Storage(folder).write(name, data)
        return len(data)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("wb") as file:
        return sum(file.write(piece) for piece in pieces)


def read_result(data: bytes) -> pa.Table:
    """Read the Arrow stream of a query; its metadata says whether rows were cut off.

    Raises:
        EchostillError: The query failed while it was being answered.
    """
    stream = AnswerStream(data)
    table = pa.Table.from_batches(list(stream), stream.schema)
    return table.replace_schema_metadata({"truncated": str(stream.truncated).lower()})
