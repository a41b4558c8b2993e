"""The duplicates stage: writes a table of the pool's copies, each with the image that is kept.

Exact copies have the same staged pixels. Near copies have close perceptual hashes and thumbnails
that agree (curation/copies/near.py), or show a part of one another (curation/copies/crops.py).
Semantic copies have teacher features that hardly differ.

Neighbouring frames of one clip are naturally near copies of each other. They are in one group, stay
on one side of every split, and a selection limits them (``max_per_group``). Near and semantic
copies are therefore searched only between groups, where a copy would cross a split unnoticed;
``within_group`` searches inside groups too. Exact copies are found everywhere.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from echostill.curation.copies.crops import crop_pairs
from echostill.curation.copies.groups import (
    EXACT,
    KINDS,
    NEAR,
    SEMANTIC,
    Links,
    exact_classes,
    group_copies,
)
from echostill.curation.copies.near import (
    NearSettings,
    near_links,
    pool_squares,
    pool_thumbnails,
)
from echostill.curation.copies.semantic import mean_feature, semantic_pairs
from echostill.curation.ingestion.perceptual import BITS, as_hashes, hamming
from echostill.curation.selection.features import TableFeatures
from echostill.platform import stages
from echostill.platform.config import StageConfig
from echostill.platform.errors import UsageError
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.ids import pool_rows
from echostill.platform.tables.schemas import DUPLICATES_SCHEMA, QUALITY_ISSUES, score_column
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store, describe_bytes, save_configuration
from echostill.platform.tables.table import MANIFEST, Table, write_table
from echostill.platform.tables.versions import only_grown

HASH_COLUMNS = ("content_hash", "perceptual_hash", "thumbnail")
CROP_CORRELATION, CROPS_SEARCHED = 0.93, 50_000  # about twelve minutes of one core
BYTES_PER_ROW = 600  # ids, hashes, scores and their arrays; only for the plan's estimate
# Why the kept copy was preferred: the first of these in which the two differ.
PREFERRED = (
    "it has fewer quality flags",
    "its quality scores are higher",
    "its original is larger",
    "of equals the smallest id is kept",
)


class DuplicatesConfig(StageConfig, NearSettings):
    """Search for copies in the pool."""

    semantic_epsilon: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest 1 - cosine of the centred teacher features of two semantic copies; "
        "null searches for none. Needs scores. A suitable value depends on the teacher: see "
        "docs/duplicates.md.",
    )
    crop_correlation: Annotated[float, Field(ge=0.8, le=1)] | Literal["auto"] | None = Field(
        "auto",
        description="Search for crops: smallest correlation of two pictures of which one shows a "
        "part of the other, once they are aligned; null searches for none. 'auto' is 0.93 for "
        f"pools of up to {CROPS_SEARCHED:,} images, and null for larger ones, since the images are "
        "decoded, and where near_distance is null.",
    )
    within_group: bool = Field(
        False,
        description="Search for near and semantic copies inside a patient, study or clip too.",
    )

    def crops_of(self, images: int) -> float | None:
        """The smallest correlation of crops in a pool of so many images; None for no search."""
        if self.crop_correlation != "auto":
            return self.crop_correlation
        if self.near_distance is None:
            return None
        return CROP_CORRELATION if images <= CROPS_SEARCHED else None


@logged(stages.DUPLICATES)
def find_duplicates(config: DuplicatesConfig, *, overwrite: bool = False) -> StageResult:
    """Find the copies in the pool and write them as ``duplicates`` in the store.

    Returns:
        Counts of copies by kind (``exact``, ``near``, ``semantic``), of their groups and of images.

    Raises:
        UsageError: The pool has no hashes (an earlier version), or needed scores are missing.
    """
    store = Store(config.store)
    pool = store.open_pool()
    scores = store.open_scores() if config.semantic_epsilon is not None else None
    claim = _claim(config, store, pool, scores)
    claim.take(overwrite or _has_grown(claim, pool, scores))
    storage, wanted = claim.storage, claim.wanted
    if storage.exists(MANIFEST):
        counts = count(
            Table.open(storage, "duplicates").read(["kind", "duplicate_group"]), pool.rows
        )
        return _result(storage, counts, f"already done: {storage.root}", already_done=True)
    save_configuration(storage, config)
    table = duplicate_table(pool, config, scores)
    write_table(storage, table, stage="duplicates", fingerprint=wanted.as_dict())
    counts = count(table, pool.rows)
    return _result(storage, counts, describe(counts) + left_out(config, pool.rows))


def left_out(config: DuplicatesConfig, images: int) -> str:
    """Say that crops are not searched where the configuration does not ask for that."""
    if config.crop_correlation != "auto" or images <= CROPS_SEARCHED:
        return ""
    return (
        f"; crops were not searched among more than {CROPS_SEARCHED:,} images: "
        f"crop_correlation={CROP_CORRELATION} searches for them"
    )


def _result(
    storage: Storage, counts: dict[str, int], sentence: str, *, already_done: bool = False
) -> StageResult:
    return StageResult(
        "duplicates", ("duplicates",), storage.root, {**counts}, sentence, already_done
    )


def _claim(config: DuplicatesConfig, store: Store, pool: Table, scores: Table | None) -> Claim:
    """Return the claim on the table's folder; a pool without hashes is an error."""
    require_columns(pool, HASH_COLUMNS)
    inputs, about = {"pool": pool.digest}, {"inputs.pool": f"{pool.rows} images"}
    if scores is not None:
        inputs["scores"] = scores.digest
        about["inputs.scores"] = f"{scores.rows} images"
    wanted = fingerprint(config, inputs=inputs, without=() if scores is not None else ("seed",))
    what = "a search for duplicates"
    return Claim(store.duplicates(), wanted, "duplicates", what, about=about)


def _has_grown(claim: Claim, pool: Table, scores: Table | None) -> bool:
    """Whether the search is out of date only because its pool has grown: it is then made anew.

    A new image may be a better copy of an old one, so the groups of the whole pool are looked at.
    """
    inputs = {"pool": pool, **({} if scores is None else {"scores": scores})}
    return only_grown(claim.storage, claim.wanted, inputs)


def plan_find_duplicates(config: DuplicatesConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`find_duplicates` would do."""
    store = Store(config.store)
    pool = store.open_pool()
    scores = store.open_scores() if config.semantic_epsilon is not None else None
    claim = _claim(config, store, pool, scores)
    replaces = claim.check(overwrite or _has_grown(claim, pool, scores))
    out = Plan("duplicates")
    out.add("pool", f"{pool.rows} images in {pool.storage.root}")
    out.add("exact", "equal staged pixels, everywhere")
    where = "everywhere" if config.within_group else "between groups"
    if config.near_distance is None:
        out.add("near", "not searched")
    else:
        limit = f"up to {config.near_distance} of {BITS} bits"
        out.add("near", f"{limit}, correlation from {config.near_correlation}, {where}")
    least = config.crops_of(pool.rows)
    crops = f"correlation from {least} once aligned, {where}" if least else "not searched"
    out.add("crops", crops + left_out(config, pool.rows))
    if scores is None:
        out.add("semantic", "not searched")
    else:
        out.add("semantic", f"1 - cosine up to {config.semantic_epsilon}, {where}")
        out.add("scores", f"{scores.rows} rows in {scores.storage.root}")
    out.add("memory", f"about {describe_bytes(pool.rows * BYTES_PER_ROW)}")
    out.add("result", store.duplicates().root)
    done = store.duplicates().exists(MANIFEST) and not replaces
    out.add("already done", "yes" if done else "no")
    return out


def count(table: pa.Table, rows: int) -> dict[str, int]:
    """Count what a search found among ``rows`` images: copies by kind, groups, images."""
    kinds = table["kind"].to_pylist()
    groups = pc.count_distinct(table["duplicate_group"]).as_py()
    return {**{kind: kinds.count(kind) for kind in KINDS}, "groups": groups, "images": rows}


def describe(counts: dict[str, int]) -> str:
    """Describe what a search found."""
    found = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    return f"{found} copies in {counts['groups']} groups; {counts['images']} images searched"


def require_columns(pool: Table, names: tuple[str, ...]) -> None:
    """Reject a pool of an earlier version.

    Raises:
        UsageError: A column is missing.
    """
    present = {name for name, _ in pool.manifest["schema"]}
    missing = [name for name in names if name not in present]
    if missing:
        raise UsageError(
            f"the pool '{pool.storage.root}' has no column '{missing[0]}', because an earlier "
            "version made it. Run `echostill ingest --overwrite` to read the images again."
        )


@dataclass(frozen=True)
class Preference:
    """Which of two copies is the better one: by flags, by scores, by size, by id.

    Attributes:
        keys: flags, minus the mean score (to two decimals: less is noise of the encoding) and
            minus the original's pixels; each (N,), the smaller the better.
        place: (N,) int64, distinct: the smaller the better.
    """

    keys: tuple[np.ndarray, np.ndarray, np.ndarray]
    place: np.ndarray

    @classmethod
    def of(cls, pool: pa.Table, id_place: np.ndarray) -> "Preference":
        """Judge the rows of a pool; ``id_place`` is their place by id, (N,) int64."""
        flagged = sum(_numbers(pool[issue].cast(pa.int8())) for issue in QUALITY_ISSUES)
        scores = sum(_numbers(pool[score_column(issue)]) for issue in QUALITY_ISSUES)
        pixels = _numbers(pool["original_width"]) * _numbers(pool["original_height"])
        keys = (np.asarray(flagged), -np.round(scores / len(QUALITY_ISSUES), 2), -pixels)
        order = np.lexsort((id_place, *keys[::-1]))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return cls(keys, place)

    def why(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """Return which of the reasons ``PREFERRED`` decided each pair of rows, (P,) int64."""
        differs = [key[better] != key[worse] for key in self.keys]
        reason: np.ndarray = np.argmax([*differs, np.ones(len(better), dtype=bool)], axis=0)
        return reason


def duplicate_table(pool: Table, config: DuplicatesConfig, scores: Table | None) -> pa.Table:
    """Find the copies among the pool's rows.

    Args:
        pool: The pool table.
        config: What counts as a copy.
        scores: The scores table; needed where ``semantic_epsilon`` is set.

    Returns:
        A row for every image that has a copy, kept or not, sorted by id (DUPLICATES_SCHEMA).
    """
    quality = [*QUALITY_ISSUES, *map(score_column, QUALITY_ISSUES)]
    rows = pool.read(["image_id", "content_hash", "original_width", "original_height", *quality])
    ids = rows["image_id"].combine_chunks()
    order = pc.sort_indices(ids).to_numpy()
    id_place = np.empty(len(order), dtype=np.int64)
    id_place[order] = np.arange(len(order))
    preference = Preference.of(rows, id_place)
    # The searches below treat copies with the same pixels as one image.
    stands_for = exact_classes(_codes(rows["content_hash"]), preference.place)
    links = find_links(pool, stands_for, config, scores)
    return _as_table(links, stands_for, preference, ids, id_place)


def find_links(
    pool: Table, stands_for: np.ndarray, config: DuplicatesConfig, scores: Table | None
) -> Links:
    """Find the near and the semantic copies among the rows that stand for themselves.

    Args:
        pool: The pool table.
        stands_for: (N,) int64, for each row the row that represents it.
        config: What counts as a copy.
        scores: The scores table; needed where ``semantic_epsilon`` is set.
    """
    columns = pool.read(["image_id", "group_id", "perceptual_hash"])
    rows = np.arange(len(columns))
    labels = rows if config.within_group else _codes(columns["group_id"])
    some = np.flatnonzero(stands_for == rows)
    hashes = as_hashes(columns["perceptual_hash"])[some]
    near = near_links(hashes, labels[some], lambda r: pool_thumbnails(pool, some[r]), config)
    links = [replace(near, first=some[near.first], second=some[near.second])]
    least = config.crops_of(len(rows))
    if least is not None:
        one, other = crop_pairs(
            pool_thumbnails(pool, some)[:, 0],
            labels[some],
            lambda r, size: pool_squares(pool, some[r], size),
            least,
        )
        # Bits of the whole pictures' hashes, as the other near copies have.
        bits = hamming(hashes[one, 0], hashes[other, 0])
        links.append(Links.of(some[one], some[other], NEAR, bits))
    if config.semantic_epsilon is not None and scores is not None:
        features = TableFeatures(scores)
        row = pool_rows(scores.read(["image_id"])["image_id"], columns["image_id"])
        first, second, gap = semantic_pairs(
            features, mean_feature(features), labels[row], config.semantic_epsilon, config.seed
        )
        one, other = stands_for[row[first]], stands_for[row[second]]
        apart = one != other
        links.append(Links.of(one[apart], other[apart], SEMANTIC, gap[apart]))
    return Links.joined(links)


def _as_table(
    links: Links,
    stands_for: np.ndarray,
    preference: Preference,
    ids: pa.Array,
    id_place: np.ndarray,
) -> pa.Table:
    groups = group_copies(links, preference.place)
    rows = np.arange(len(ids))
    kept = groups.kept[stands_for]
    same_pixels = kept == stands_for
    kind = np.where(kept == rows, -1, np.where(same_pixels, EXACT, groups.kind[stands_for]))
    distance = np.where(same_pixels, np.float32(0), groups.distance[stands_for])
    # A component of links or, without links, the rows with the same pixels.
    group = groups.group[stands_for]
    group = np.where(group >= 0, group, len(rows) + stands_for)
    _, group, size = np.unique(group, return_inverse=True, return_counts=True)
    smallest = np.full(len(size), len(rows), dtype=np.int64)
    np.minimum.at(smallest, group, id_place)
    members = np.flatnonzero(size[group] > 1)
    members = members[np.argsort(id_place[members])]
    by_id = ids.take(pc.sort_indices(ids))
    why = preference.why(kept[members], members)
    columns = {
        "image_id": ids.take(pa.array(members)),
        "duplicate_group": by_id.take(pa.array(smallest[group[members]])),
        "kept": pa.array(kept[members] == members),
        "kept_id": ids.take(pa.array(kept[members])),
        "kind": pa.array(["", *KINDS]).take(pa.array(kind[members] + 1)),
        "distance": pa.array(distance[members], pa.float32()),
    }
    texts = [
        _reason(*values)
        for values in zip(
            columns["kept_id"].to_pylist(),
            kind[members].tolist(),
            distance[members].tolist(),
            why.tolist(),
            size[group[members]].tolist(),
            strict=True,
        )
    ]
    columns["reason"] = pa.array(texts, pa.string())
    return pa.table(columns, schema=DUPLICATES_SCHEMA)


def _reason(kept_id: str, kind: int, distance: float, why: int, size: int) -> str:
    if kind < 0:
        return f"kept: stands for copies of it, in a group of {size} images"
    return f"{describe_copy(kind, distance)} of {kept_id}, which is kept: {PREFERRED[why]}"


def describe_copy(kind: int, distance: float) -> str:
    """Describe the kind of copy that a link stands for."""
    if kind == EXACT:
        return "exact copy (the same pixels)"
    if kind == NEAR:
        return f"near copy ({distance:.0f} of {BITS} bits of the perceptual hash differ)"
    return f"semantic copy (1 - cosine {distance:.4f})"


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Return a number for each distinct text of a column, (N,) int64."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    codes: np.ndarray = encoded.indices.to_numpy().astype(np.int64)
    return codes


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    numbers: np.ndarray = pc.fill_null(column, 0).to_numpy().astype(np.float64)
    return numbers


STAGE = Stage(stages.DUPLICATES, DuplicatesConfig, find_duplicates, plan_find_duplicates)
