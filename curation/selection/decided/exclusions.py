"""Images that a selection leaves out, and why: leaks, copies of kept images, flagged images.

Nothing is dropped silently: an excluded row stays in the coreset table, and its reason says why it
is excluded and names the benchmark image or the copy that is kept.
"""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from echostill.curation.ingestion.quality import QualitySettings, flags
from echostill.platform.config import Config
from echostill.platform.errors import UsageError, nearest
from echostill.platform.tables.schemas import QUALITY_ISSUES, score_column
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.versions import version_with

EXCLUSIONS_SCHEMA = pa.schema([("image_id", pa.string()), ("reason", pa.string())])


class ExclusionSettings(Config):
    """What is left out of a selection."""

    only: dict[str, tuple[str, ...]] = Field(
        {},
        description="Columns of the pool and the values that may be chosen, such as "
        "{organ: [liver, breast]}; all others are left out.",
    )
    exclude_flags: tuple[str, ...] = Field(
        (), description="Quality flags whose images are left out, such as [blank, blurred]."
    )
    quality: QualitySettings | None = Field(
        None, description="Thresholds for these flags; null uses the flags that ingest set."
    )
    exclude_duplicates: bool = Field(
        True,
        description="Leave out images that `echostill duplicates` found to be copies.",
    )
    exclude_leaks: bool = Field(
        True, description="Leave out images that `echostill leakcheck` found in a benchmark."
    )
    exclude_leaked_groups: bool = Field(
        False, description="Leave out all images of a patient, study or clip that has a leak."
    )

    @field_validator("exclude_flags")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in QUALITY_ISSUES:
                raise ValueError(
                    f"no quality flag '{name}'.{nearest(name, QUALITY_ISSUES)} "
                    f"Expected one of: {', '.join(QUALITY_ISSUES)}"
                )
        return names


def exclusions(store: Store, config: ExclusionSettings, pool: Table | None = None) -> pa.Table:
    """Collect the images that a selection must not choose.

    Args:
        store: The store; its pool must exist, its duplicates and leaks may exist.
        config: What is left out.
        pool: The version of the pool that is selected from; default the store's pool as it is.

    Returns:
        Columns image_id and reason, a row for each reason, sorted by both; an image with several
        reasons has several rows.

    Raises:
        UsageError: The duplicates or the leaks were found in another pool, a flag is requested but
            the pool has none, or ``only`` names a column or a value that the pool does not have.
    """
    pool = pool or store.open_pool()
    found = [EXCLUSIONS_SCHEMA.empty_table()]
    if config.exclude_leaks or config.exclude_leaked_groups:
        found += _leaked(store, pool, config)
    if config.exclude_duplicates:
        found += _copies(store, pool)
    if config.exclude_flags:
        found += _flagged(pool, config)
    if config.only:
        found += _unwanted(pool, config.only)
    table = pa.concat_tables(found)
    return table.take(pc.sort_indices(table, [("image_id", "ascending"), ("reason", "ascending")]))


def _leaked(store: Store, pool: Table, config: ExclusionSettings) -> Iterator[pa.Table]:
    leaks = _of_this_pool(store.leaks(), pool, "leakcheck")
    if leaks is None or leaks.num_rows == 0:
        return
    if config.exclude_leaks:
        yield _rows(leaks["image_id"], leaks["reason"])
    if config.exclude_leaked_groups:
        images = pool.read(["image_id", "group_id"])
        own = images.filter(pc.is_in(images["image_id"], value_set=_set(leaks["image_id"])))
        leaked = pc.is_in(images["group_id"], value_set=_set(own["group_id"]))
        others = images.filter(pc.and_(leaked, pc.invert(_among(images, own))))
        example = own.group_by("group_id").aggregate([("image_id", "min")])
        place = pc.index_in(others["group_id"], value_set=_set(example["group_id"]))
        first = example["image_id_min"].take(place)
        yield _rows(
            others["image_id"], _joined("of one group with ", first, ", which is in a benchmark")
        )


def _copies(store: Store, pool: Table) -> Iterator[pa.Table]:
    copies = _of_this_pool(store.duplicates(), pool, "duplicates")
    if copies is not None:
        dropped = copies.filter(pc.invert(copies["kept"]))
        yield _rows(dropped["image_id"], dropped["reason"])


def _flagged(pool: Table, config: ExclusionSettings) -> Iterator[pa.Table]:
    scores = [score_column(issue) for issue in QUALITY_ISSUES]
    known = {name for name, _ in pool.manifest["schema"]}
    if not known.issuperset([*QUALITY_ISSUES, *scores]):
        raise UsageError(
            f"the pool '{pool.storage.root}' has no quality flags, because an earlier version made "
            "it. Run `echostill ingest --overwrite` to read the images again."
        )
    images = pool.read(["image_id", *QUALITY_ISSUES, *scores])
    flagged = images if config.quality is None else flags(images, config.quality)
    for issue in dict.fromkeys(config.exclude_flags):
        mask = pc.fill_null(flagged[issue], False)
        score = pc.cast(pc.round(images[score_column(issue)].filter(mask), 3), pa.string())
        reason = _joined(f"flagged {issue.replace('_', ' ')} (score ", score, ")")
        yield _rows(images["image_id"].filter(mask), reason)


def _unwanted(pool: Table, only: Mapping[str, Sequence[str]]) -> Iterator[pa.Table]:
    kinds = dict(pool.manifest["schema"])
    known = [name for name, kind in kinds.items() if not kind.endswith("binary")]
    for column in only:
        if column not in known:
            raise UsageError(
                f"only: the pool has no column '{column}' with values to choose from."
                f"{nearest(column, known)}"
            )
    images = pool.read(list({"image_id": None, **only}))
    for column, wanted in only.items():
        values = pc.fill_null(images[column].cast(pa.string()), "")
        there = pc.unique(values).to_pylist()
        for value in wanted:
            if value not in there:
                raise UsageError(
                    f"only: no image of the pool has {column} '{value}'.{nearest(value, there)}"
                )
        mask = pc.invert(pc.is_in(values, value_set=pa.array(wanted, pa.string())))
        reason = _joined(f"{column} '", values.filter(mask), "' is not among those asked for")
        yield _rows(images["image_id"].filter(mask), reason)


def _of_this_pool(storage: Storage, pool: Table, command: str) -> pa.Table | None:
    """Read a table of findings; None if there was no search.

    Raises:
        UsageError: It was made in another pool.
    """
    if not storage.exists(MANIFEST):
        return None
    table = Table.open(storage, command)
    made_from = table.manifest["fingerprint"]["inputs"]["pool"]
    if made_from != pool.digest and version_with(_whole(pool), made_from) is not None:
        before = version_with(pool, made_from) is not None
        raise UsageError(
            f"'{storage.root}' was made from another version of the pool '{pool.storage.root}', "
            + (
                f"which has grown since: run `echostill {command}` again."
                if before
                else "whose new images are not scored yet: run `echostill score` first."
            )
        )
    if made_from != pool.digest:
        raise UsageError(
            f"'{storage.root}' was made from an earlier version of the pool '{pool.storage.root}': "
            f"run `echostill {command}` again."
        )
    return table.read()


def _whole(pool: Table) -> Table:
    """Return the pool as it is now, given one of its versions."""
    return Table.open(pool.storage, "ingest")


def _rows(ids: pa.ChunkedArray, reasons: pa.ChunkedArray) -> pa.Table:
    return pa.table({"image_id": ids, "reason": reasons}).cast(EXCLUSIONS_SCHEMA)


def _joined(*pieces: pa.ChunkedArray | str) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*pieces, "")


def _set(column: pa.ChunkedArray) -> pa.Array:
    return pc.unique(column)


def _among(images: pa.Table, own: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(images["image_id"], value_set=_set(own["image_id"]))
