"""One sentence per row that says why it is in the coreset or not, written a column at a time."""

import numpy as np
import pyarrow as pa

GROUP_LIMIT = "group limit"
# These mark the reasons of some outcomes; the texts of pins and exclusions follow them.
HELD_BACK_MARK = f"{GROUP_LIMIT}: its group already has"
PINNED_MARK = "selected: pinned"
EXCLUDED_MARK = "not selected: excluded"

# Outcomes of a selection, one per row.
WITHIN_QUOTA = 0  # selected
REFILLED = 1  # selected beyond the cluster's quota, because the group limit left places open
OUTRANKED = 2  # the quota was filled by better rows
TIED = 3  # the quota was filled by equally good rows with smaller ids
NO_QUOTA = 4  # the cluster is too small to get a quota
HELD_BACK = 5  # its group has reached the group limit
TRIMMED = 6  # one of the cluster's largest gradients, which are chosen last
PINNED = 7  # selected, because it is pinned
EXCLUDED = 8  # excluded by the user
FLAGGED = 9  # flagged by ingest, chosen last
SELECTED = (WITHIN_QUOTA, REFILLED, PINNED)


def ordinals(numbers: np.ndarray) -> pa.Array:
    """Write numbers as '1st', '2nd', '3rd', '4th', '11th', ...

    Args:
        numbers: (N,) integers from 0.

    Returns:
        (N,) strings.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    last = numbers % 10
    teen = (numbers // 10) % 10 == 1
    suffix = pa.array(["th", "st", "nd", "rd"]).take(pa.array(np.where(teen | (last > 3), 0, last)))
    return _joined(pa.array(numbers).cast(pa.string()), suffix)


def ordinal(number: int) -> str:
    """Write one number as an ordinal, as :func:`ordinals` does, without making arrays of it."""
    number = int(number)
    teen = number // 10 % 10 == 1
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def reasons(
    outcome: np.ndarray,
    cluster_rank: np.ndarray,
    cluster: np.ndarray,
    cluster_size: np.ndarray,
    quota: np.ndarray,
    *,
    better: str,
    equal: str,
    max_per_group: int | None,
    texts: pa.Array | None = None,
    kinds: pa.Array | None = None,
) -> pa.Array:
    """Write the reason of every row.

    Args:
        outcome: (N,) one of the outcomes above.
        cluster_rank: (N,) rank in the cluster, 1 = chosen first.
        cluster: (N,) cluster of the row.
        cluster_size: (N,) size of that cluster (of its part of that kind, if there are kinds).
        quota: (N,) quota of that cluster.
        better: what fills a quota first, such as 'better dual ranks'.
        equal: what fills it if rows tie.
        max_per_group: the group limit, if there is one.
        texts: (N,) why a row was pinned or excluded, as the user wrote it; may be empty.
        kinds: (N,) what each row's quota is for besides its cluster, such as "organ 'liver'".

    Returns:
        (N,) strings, such as 'selected: 3rd of 41 in cluster 7, quota 12'.
    """
    images = "image" if max_per_group == 1 else "images"
    sentences = [
        ("selected: ", ", quota ", ""),
        ("selected: ", ", beyond quota ", f", in a place that the {GROUP_LIMIT} left open"),
        ("not selected: ", ", quota ", f" was filled by {better}"),
        ("not selected: ", ", quota ", f" was filled by {equal}"),
        ("not selected: ", ", quota ", " leaves it no place"),
        (
            "not selected: ",
            ", quota ",
            f", {HELD_BACK_MARK} {max_per_group} {images} selected",
        ),
        ("not selected: ", ", quota ", ", its gradient is an outlier of the cluster, taken last"),
        (PINNED_MARK, ", quota ", ""),
        (EXCLUDED_MARK, ", quota ", ""),
        ("not selected: ", ", quota ", ", its quality flags put it last"),
    ]
    import pyarrow.compute as pc

    which = pa.array(outcome)
    lead, middle, end = (pa.array(column).take(which) for column in zip(*sentences, strict=True))
    if texts is not None:
        decided = pa.array(np.isin(outcome, (PINNED, EXCLUDED)))
        told = pc.and_(decided, pc.not_equal(texts, ""))
        lead = pc.if_else(told, _joined(lead, ", ", texts), lead)
    lead = pc.if_else(pa.array(outcome == PINNED), _joined(lead, "; "), lead)

    def text(numbers: np.ndarray) -> pa.Array:
        return pa.array(numbers).cast(pa.string())

    place = ordinals(cluster_rank)
    pieces = [lead, place, " of ", text(cluster_size), " in cluster ", text(cluster)]
    if kinds is not None:
        pieces += [" of ", kinds]
    whole = _joined(*pieces, middle, text(quota), end)
    return pc.if_else(pa.array(outcome == EXCLUDED), lead, whole)


def _joined(*pieces: pa.Array | str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*pieces, "")
