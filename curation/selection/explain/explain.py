"""Answers of `echostill why`: why an image is, or is not, in the coreset."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection.reasons import EXCLUDED_MARK, HELD_BACK_MARK, PINNED_MARK, ordinal
from echostill.platform.errors import UsageError, nearest

if TYPE_CHECKING:
    from echostill.curation.selection.settings import SelectionSettings

__all__ = ["describe_explanation", "explain", "explanation", "find_image", "ordinal"]

PREFIX_LENGTH = 4  # shorter ones would match by accident
SHOWN = 5
NEAREST_AMONG = 20_000  # comparing a misspelt name with millions would take minutes
ORIGIN_COLUMNS = ("source", "organ", "device", "label", "frame", "store")
MEMBER_COLUMNS = ["image_id", "cluster_rank", "dual_rank"]
BOUNDARY_COLUMNS = [*MEMBER_COLUMNS, "selected", "reason"]


def find_image(name: str, table: pa.Table) -> str:
    """Find the image that a name refers to.

    Args:
        name: an image id, a unique prefix of one (4 characters or more), a source, a unique prefix
            of one, or its file name.
        table: image_id and, to find sources, source; for example the pool.

    Returns:
        The image id.

    Raises:
        UsageError: There is no such image (suggests the nearest), or several (lists up to five).
    """
    ids = _texts(table, "image_id")
    sources = _texts(table, "source") if "source" in table.column_names else None
    wanted = name.strip()
    for column in (ids, sources):
        if column is None:
            continue
        row = pc.index(column, wanted).as_py()
        # A source may be in the pool twice (two roots); then the id is needed.
        if row >= 0 and (column is ids or pc.index(column, wanted, start=row + 1).as_py() < 0):
            return str(ids[row].as_py())
    if len(wanted) < PREFIX_LENGTH:
        raise UsageError(
            f"'{name}' is too short: give at least {PREFIX_LENGTH} characters of an image id, or a "
            "source."
        )
    matches = pc.starts_with(ids, wanted.lower())
    if sources is not None:
        matches = pc.or_(matches, pc.starts_with(sources, wanted))
        matches = pc.or_(matches, pc.ends_with(sources, "/" + wanted))
    found = table.select([c for c in ("image_id", "source") if c in table.column_names])
    rows = found.filter(pc.fill_null(matches, False)).sort_by("image_id")
    if rows.num_rows == 1:
        return str(rows["image_id"][0].as_py())
    if rows.num_rows:
        shown = [" ".join(row.values()) for row in rows.slice(0, SHOWN).to_pylist()]
        more = f"; and {rows.num_rows - SHOWN} more" if rows.num_rows > SHOWN else ""
        raise UsageError(
            f"'{name}' matches {rows.num_rows} images: {'; '.join(shown)}{more}. Give more of "
            "the id."
        )
    hint = nearest(wanted, _alike(wanted, ids, sources))
    raise UsageError(f"no image '{name}' among {table.num_rows}.{hint}")


def explanation(
    image_id: str,
    coreset: pa.Table,
    pool_row: Mapping[str, Any] | None,
    settings: "SelectionSettings",
) -> dict[str, Any]:
    """Return the values that explain why an image is, or is not, in the coreset.

    Args:
        image_id: a full id (``find_image`` completes shorter ones).
        coreset: the whole coreset table.
        pool_row: the image's row of the pool, if available; for source, organ, frame.
        settings: the settings of the coreset.

    Returns:
        The image's row of the coreset, and: ``origin``; ``pool_size`` and ``budget``;
        ``members``, images of the cluster (and stratum, if the budget was balanced);
        ``cluster_selected``, how many of them were chosen; their ``last_chosen`` and the
        ``next_not_chosen`` after it (image_id, cluster_rank, dual_rank; None if there is none);
        ``taken_by``, the ids of images chosen instead of this one; ``decided``, 'pinned',
        'excluded' or None; ``method``, ``fusion``, ``alpha`` and ``penalty``. All values can be
        written as JSON.

    Raises:
        UsageError: The coreset has no such row.
    """
    index = pc.index(coreset["image_id"], pa.scalar(image_id, coreset["image_id"].type)).as_py()
    if index < 0:
        raise UsageError(
            f"image '{image_id}' is not in the coreset table: it was not scored (see the "
            "quarantine), or belongs to another pool."
        )
    row = coreset.slice(index, 1).to_pylist()[0]
    own = pc.equal(coreset["cluster"], row["cluster"])
    if settings.balance is not None:
        own = pc.and_(own, pc.equal(coreset["stratum"], row["stratum"]))
    numbers = {"pool_size": coreset.num_rows, "budget": pc.sum(coreset["selected"]).as_py()}
    boundary = boundary_of(coreset.filter(own).sort_by("cluster_rank"))
    return explained(row, boundary, coreset, pool_row, settings, numbers)


def boundary_of(members: pa.Table) -> dict[str, Any]:
    """Return where the choice ended among the members of a cluster, or of a stratum in it.

    Args:
        members: their ``BOUNDARY_COLUMNS``, by cluster rank.

    Returns:
        ``members``, ``cluster_selected``, ``last_chosen`` and ``next_not_chosen``, as in
        :func:`explanation`.
    """
    chosen = members.filter(members["selected"])
    last = _member(chosen, chosen.num_rows - 1)
    passed = members.filter(
        pc.invert(pc.or_(members["selected"], pc.starts_with(members["reason"], EXCLUDED_MARK)))
    )
    after = passed.filter(pc.greater(passed["cluster_rank"], last["cluster_rank"] if last else 0))
    return {
        "members": members.num_rows,
        "cluster_selected": chosen.num_rows,
        "last_chosen": last,
        "next_not_chosen": _member(after, 0),
    }


def explained(
    row: Mapping[str, Any],
    boundary: Mapping[str, Any],
    coreset: pa.Table,
    pool_row: Mapping[str, Any] | None,
    settings: "SelectionSettings",
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    """Return what :func:`explanation` does, given an image's row and what was found before.

    Args:
        row: of the coreset table.
        boundary: of the row's cluster (``boundary_of``).
        coreset: ``image_id``, ``group_id`` and ``selected`` of the images of the row's group; read
            only if the limit per group held the image back.
        pool_row: the image's row of the pool, if available.
        settings: of the coreset.
        numbers: ``pool_size`` and ``budget``.
    """
    decided = None
    if row["reason"].startswith(EXCLUDED_MARK):
        decided = "excluded"
    elif row["reason"].startswith(PINNED_MARK):
        decided = "pinned"
    last = boundary["last_chosen"]
    taken_by: list[str] = []
    if decided is None and not row["selected"] and HELD_BACK_MARK in row["reason"]:
        same = pc.equal(coreset["group_id"], row["group_id"])
        taken_by = coreset.filter(pc.and_(same, coreset["selected"]))["image_id"].to_pylist()
    elif decided is None and not row["selected"] and last is not None:
        taken_by = [last["image_id"]]
    return {
        **row,
        "origin": {key: pool_row[key] for key in ORIGIN_COLUMNS if pool_row and key in pool_row},
        "pool_size": numbers["pool_size"],
        "budget": numbers["budget"],
        **boundary,
        "taken_by": taken_by,
        "decided": decided,
        "method": settings.method,
        "fusion": settings.fusion,
        "gradient_keep": settings.gradient_keep,
        "balance": settings.balance,
        "alpha": settings.alpha,
        "penalty": settings.penalty,
    }


def explain(
    image_id: str,
    coreset: pa.Table,
    pool_row: Mapping[str, Any] | None,
    settings: "SelectionSettings",
) -> str:
    """Describe why an image is, or is not, in the coreset.

    Arguments and errors are those of ``explanation``.

    Returns:
        A few lines of text: the image, its cluster, both ranks, the dual rank, the quota, the rows
        at the boundary, and the reason.
    """
    return describe_explanation(explanation(image_id, coreset, pool_row, settings))


def describe_explanation(found: Mapping[str, Any]) -> str:
    """Format the result of ``explanation`` as text."""
    size = found["cluster_size"]
    spread = f" (mean - {found['penalty']:g} x spread)" if found["penalty"] else ""
    lines = [
        f"Image {found['image_id']} is {'' if found['selected'] else 'not '}in the coreset.",
        _line("image", _origin(found)),
        _line("cluster", f"number {found['cluster']}: {size} of {found['pool_size']} images"),
        _line(
            "distance",
            f"{found['distance']:.4g}, {ordinal(found['distance_rank'])} nearest of {size} to the "
            "centroid",
        ),
        _line(
            "quality",
            f"gradient {found['gradient']:.4g}{spread}, {ordinal(found['gradient_rank'])} highest "
            f"of {size}",
        ),
        _line("dual rank", _fused(found)),
        _line("rank", _rank(found)),
        _line(
            "quota",
            f"{found['quota']} of the budget of {found['budget']}{_kind(found)}; "
            f"{found['cluster_selected']} chosen here",
        ),
        _line("last chosen", _boundary(found["last_chosen"], found["image_id"])),
        _line("next after it", _boundary(found["next_not_chosen"], found["image_id"])),
    ]
    if found["taken_by"]:
        lines.append(_line("chosen instead", _who(found)))
    lines.append(_line("reason", found["reason"]))
    return "\n".join(lines)


def _fused(found: Mapping[str, Any]) -> str:
    """The dual rank as a formula of the two ranks; see ``ranking.dual_ranks``."""
    near, steep = found["distance_rank"], found["gradient_rank"]
    size, alpha = found["cluster_size"], found["alpha"]
    formula = {
        "sum": f"({alpha:g} x {near} + {1 - alpha:g} x {steep}) / {size}",
        "product": f"{near}^{alpha:g} x {steep}^{1 - alpha:g} / {size}",
        "max": f"max({near}, {steep}) / {size}",
        "two-stage": f"{near} / {2 * size}"
        if found["dual_rank"] <= 0.5
        else f"({near} + {size}) / {2 * size}, beyond the first {found['gradient_keep']:.0%} by "
        "gradient",
    }[found["fusion"]]
    return f"{found['dual_rank']:.4f} = {formula}"


def _rank(found: Mapping[str, Any]) -> str:
    if found["decided"] == "excluded":
        return "none: excluded"
    from echostill.curation.selection.methods import METHODS  # not for `find_image`

    rank = f"{ordinal(found['cluster_rank'])} of {found['members']}"
    if found["decided"] == "pinned":
        return f"{rank}, pinned"
    if METHODS[found["method"]].by_dual_rank:
        return rank
    return f"{rank} by method '{found['method']}'"


def _kind(found: Mapping[str, Any]) -> str:
    if found["balance"] is None:
        return ""
    return f", for {found['balance']} '{found['stratum']}' in this cluster"


def _line(name: str, text: str) -> str:
    return f"  {name:<15}{text}"


def _origin(found: Mapping[str, Any]) -> str:
    origin = found["origin"]
    parts = [str(origin["source"])] if "source" in origin else []
    parts += [f"{key} {origin[key]}" for key in ("organ", "device", "label") if origin.get(key)]
    parts.append(f"group {found['group_id']}")
    if origin.get("store"):
        parts.append(f"store {origin['store']}")
    if "frame" in origin:
        parts.append(f"frame {origin['frame']}")
    return ", ".join(parts)


def _boundary(member: Mapping[str, Any] | None, own: str) -> str:
    if member is None:
        return "none"
    name = "this image" if member["image_id"] == own else member["image_id"]
    return f"{name}, {ordinal(member['cluster_rank'])}, dual rank {member['dual_rank']:.4f}"


def _who(found: Mapping[str, Any]) -> str:
    names = ", ".join(found["taken_by"][:SHOWN])
    more = len(found["taken_by"]) - SHOWN
    names += f" and {more} more" if more > 0 else ""
    if HELD_BACK_MARK in found["reason"]:
        return f"{names}, of the same group"
    return f"{names}, the last chosen of the cluster"


def _member(members: pa.Table, row: int) -> dict[str, Any] | None:
    if not 0 <= row < members.num_rows:
        return None
    return dict(members.select(MEMBER_COLUMNS).slice(row, 1).to_pylist()[0])


def _texts(table: pa.Table, name: str) -> pa.Array:
    column = table[name].cast(pa.string()).combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)


def _alike(wanted: str, ids: pa.Array, sources: pa.Array | None) -> Iterable[str]:
    """Yield candidates for a misspelt name: prefixes of ids of the same length, and sources."""
    prefixes = pc.unique(pc.utf8_slice_codeunits(ids, 0, len(wanted)))
    yield from prefixes.slice(0, NEAREST_AMONG).to_pylist()
    if sources is not None:
        near = sources.filter(pc.starts_with(sources, wanted[:1]))
        yield from pc.unique(near).slice(0, NEAREST_AMONG).to_pylist()
        names = pc.replace_substring_regex(sources, ".*/", "")
        yield from pc.unique(names).slice(0, NEAREST_AMONG).to_pylist()
