"""What lies near an image: its neighbours by feature, and the map of all images."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.service.answers.images import samples_of
from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.neighbours import Neighbour, NeighbourIndex
from echostill.curation.service.data.state import ABSENT, State
from echostill.curation.service.problems import conflict, not_ready, unknown

GROUP_EXTRA = 4  # neighbours looked at for each one wanted, where the own group is left out
SEARCHED_MAX = 1000


def neighbours_of(
    state: State,
    vector: np.ndarray,
    count: int,
    coreset: Coreset | None,
    selected: str,
    *,
    own_row: int | None = None,
    other_groups: bool = False,
) -> list[dict[str, Any]]:
    """Find the nearest images and describe them.

    Args:
        state: the mapped store.
        vector: (D,) what to be near to.
        count: how many.
        coreset: whose columns are shown and whose choice ``selected`` means.
        selected: ``true``, ``false`` or ``any``.
        own_row: the image that was asked about, which is left out.
        other_groups: leave out the images of its group as well.
    """
    index = neighbour_index(state)
    keep = None
    if selected != "any":
        if coreset is None:
            raise unknown("coreset", "there is no coreset yet, so none is selected.")
        keep = coreset.selected_bits if selected == "true" else coreset.unselected_bits
    wanted = count + 1
    if other_groups:
        wanted = min(SEARCHED_MAX, count * GROUP_EXTRA + 1)
    found = [near for near in index.search(vector, wanted, keep) if near.row != own_row]
    if other_groups and own_row is not None:
        found = _of_other_groups(state, found, own_row)
    found = found[:count]
    samples = samples_of(state, coreset, [near.row for near in found])
    return [
        {"similarity": round(near.similarity, 6), "sample": sample}
        for near, sample in zip(found, samples, strict=True)
    ]


def _of_other_groups(state: State, found: list[Neighbour], own_row: int) -> list[Neighbour]:
    groups = state.catalogue.table["group_id"]
    own = groups[own_row].as_py()
    of_rows = groups.take(pa.array([near.row for near in found], pa.int64())).to_pylist()
    return [near for near, group in zip(found, of_rows, strict=True) if group != own]


def neighbour_index(state: State) -> NeighbourIndex:
    """Return the neighbour index.

    Raises:
        Problem: It is being made, or there are no scores.
    """
    if state.neighbours is None:
        if state.preparation.state == ABSENT:
            raise conflict("nothing is scored yet, so there are no neighbours: `echostill score`.")
        raise not_ready("the neighbour index is being made.", 10)
    return state.neighbours


def own_vector(state: State, row: int) -> np.ndarray:
    """Return the feature of a row.

    Raises:
        Problem: The image was not scored, or the index is not ready.
    """
    vector = neighbour_index(state).vector(row)
    if vector is None:
        raise conflict(
            f"image {state.catalogue.ids[row]} was not scored: it has no feature to compare."
        )
    return vector


def map_table(state: State, coreset: Coreset | None, sample: int | None) -> pa.Table:
    """Return the map as one Arrow table.

    Args:
        state: the mapped store.
        coreset: whose clusters and choice are shown.
        sample: about so many rows, the same each time; None for all.

    Raises:
        Problem: The projection is being made, or there are no scores.
    """
    if state.places is None:
        if state.preparation.state == ABSENT:
            raise conflict("nothing is scored yet, so there is no map: `echostill score`.")
        raise not_ready("the map is being made.", 10)
    catalogue = state.catalogue
    rows = catalogue.scored_rows
    if sample is not None and sample < len(rows):
        # A fixed hash of the row number: spread evenly, whatever the order of ids means.
        share = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        rows = rows[share < np.uint64(sample / len(rows) * 2**32)]
    size = len(catalogue)
    cluster = np.full(size, -1, dtype=np.int32)
    rank = np.full(size, np.nan, dtype=np.float32)
    chosen = np.zeros(size, dtype=np.uint8)
    pin = np.zeros(size, dtype=np.int8)
    pin[state.pins.pinned], pin[state.pins.banned] = 1, -1
    if coreset is not None:
        cluster[coreset.rows] = coreset.cluster
        rank[coreset.rows] = coreset.column("dual_rank")
        chosen[coreset.rows[coreset.selected_positions]] = 1
    organ, organs = catalogue.categories["organ"]
    device, devices = catalogue.categories["device"]
    places = state.places[rows]
    columns = {
        "row": rows,
        "x": np.ascontiguousarray(places[:, 0]),
        "y": np.ascontiguousarray(places[:, 1]),
        "organ": organ[rows].astype(np.uint16),
        "device": device[rows].astype(np.uint16),
        "cluster": cluster[rows],
        "rank": rank[rows],
        "selected": chosen[rows],
        "pin": pin[rows],
    }
    metadata = {
        "organs": json.dumps(organs),
        "devices": json.dumps(devices),
        "coreset": coreset.entry.name if coreset else "",
        "images": str(len(catalogue.scored_rows)),
    }
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    return table.replace_schema_metadata(metadata)
