"""Samples: the rows of a coreset with the origin of each image, in pages or one by one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from echostill.curation.service.data.coresets import OWN, SAMPLE, Coreset
from echostill.curation.service.data.pages import SampleFinder, SampleQuery, page
from echostill.curation.service.data.rows import dictionaries
from echostill.curation.service.data.state import State

ROWS_PER_READ = 1000


def sample_page(
    state: State,
    finder: SampleFinder,
    name: str,
    query: SampleQuery,
    limit: int,
    cursor: str | None,
) -> dict[str, Any]:
    """Return one page of a coreset's samples: items, total, and the cursor of the next page."""
    found = page(state.coreset(name), finder, query, limit, cursor)
    found["items"] = with_pins(state, found["items"])
    return found


def all_samples(
    state: State, finder: SampleFinder, name: str, query: SampleQuery
) -> Iterator[dict[str, Any]]:
    """Return an iterator over all samples of a coreset that match a query."""
    coreset = state.coreset(name)
    positions = finder.find(coreset, query)
    return (
        sample
        for start in range(0, len(positions), ROWS_PER_READ)
        for sample in with_pins(state, coreset.samples(positions[start : start + ROWS_PER_READ]))
    )


def with_pins(state: State, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each sample whether it is pinned or banned."""
    active = state.pins.active
    for sample in samples:
        pin = active.get(sample["image_id"])
        sample["pin"] = pin.action if pin else None
    return samples


def samples_of(state: State, coreset: Coreset | None, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return samples by their rows in the catalogue.

    The columns of the coreset are null for an image that is not in it.
    """
    catalogue = state.catalogue
    wanted = np.asarray(rows, dtype=np.int64)
    inside: dict[int, dict[str, Any]] = {}
    if coreset is not None:
        located = (coreset.position(row) for row in wanted.tolist())
        positions = np.array([at for at in located if at is not None], dtype=np.int64)
        samples = coreset.samples(positions)
        if len(samples) == len(wanted):
            return with_pins(state, samples)
        inside = {sample["row"]: sample for sample in samples}
    origins = catalogue.origins.json_columns(wanted)
    ids = [catalogue.ids[row] for row in wanted.tolist()]
    missing = [[None] * len(wanted)] * len(OWN)
    outside = dictionaries(SAMPLE, [ids, wanted.tolist(), *origins, *missing])
    return with_pins(state, [inside.get(sample["row"], sample) for sample in outside])
