"""The map: coordinates, cluster and selection of every scored image, as one Arrow table."""

import json

import numpy as np
import pyarrow as pa

from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.state import ABSENT, State
from echostill.curation.service.problems import conflict, not_ready


def map_table(state: State, coreset: Coreset | None, sample: int | None) -> pa.Table:
    """Return the map as one Arrow table.

    Args:
        state: the mapped store.
        coreset: whose clusters and selection are shown.
        sample: approximate number of rows, the same ones each time; None for all.

    Raises:
        Problem: The map is being built, or there are no scores.
    """
    if state.coordinates is None:
        if state.preparation.state == ABSENT:
            raise conflict("the pool is not scored, so there is no map: `echostill score`.")
        raise not_ready("the map is being built.", 10)
    catalogue = state.catalogue
    rows = catalogue.scored_rows
    if sample is not None and sample < len(rows):
        # A fixed hash of the row number: spread evenly, whatever the order of ids means.
        share = (rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        rows = rows[share < np.uint64(sample / len(rows) * 2**32)]
    size = len(catalogue)
    cluster = np.full(size, -1, dtype=np.int32)
    rank = np.full(size, np.nan, dtype=np.float32)
    selected = np.zeros(size, dtype=np.uint8)
    pin = np.zeros(size, dtype=np.int8)
    pin[state.pins.pinned], pin[state.pins.banned] = 1, -1
    if coreset is not None:
        cluster[coreset.rows] = coreset.cluster
        rank[coreset.rows] = coreset.column("dual_rank")
        selected[coreset.rows[coreset.selected_positions]] = 1
    organ, organs = catalogue.categories["organ"]
    device, devices = catalogue.categories["device"]
    coordinates = state.coordinates[rows]
    columns = {
        "row": rows,
        "x": np.ascontiguousarray(coordinates[:, 0]),
        "y": np.ascontiguousarray(coordinates[:, 1]),
        "organ": organ[rows].astype(np.uint16),
        "device": device[rows].astype(np.uint16),
        "cluster": cluster[rows],
        "rank": rank[rows],
        "selected": selected[rows],
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


def map_version(state: State, coreset: Coreset | None, sample: int | None) -> str:
    """Return a text that changes whenever :func:`map_table` of these arguments does."""
    digest = coreset.entry.table.digest if coreset else ""
    pins = f"{len(state.pins.all)} {len(state.pins.active)}"
    return f"{state.derived.key} {digest} {pins} {sample} {state.coordinates is None}"
