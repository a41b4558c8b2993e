"""What a selection would give, before it is picked: images by organ, and how long it may take."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from echostill.curation.selection.clustering import cluster_count
from echostill.curation.selection.quotas import share
from echostill.curation.selection.settings import SelectionSettings, resolve_budget
from echostill.curation.service.data.state import State

ORGAN = "organ"
Times = Sequence[tuple[str | None, str | None]]  # when picks started and ended, newest first


def estimate(state: State, settings: SelectionSettings, picks: Times) -> dict[str, Any]:
    """Estimate a selection.

    With ``balance: organ`` the numbers by organ are the shares that the selection divides, pins and
    bans counted, and only copies that it leaves out may change them. Otherwise they are those of a
    coreset that is made up as the pool is.

    Args:
        state: the mapped store.
        settings: of the selection.
        picks: of the earlier ones of this service, for the time.

    Raises:
        UsageError: The budget or the number of clusters is not possible.
    """
    catalogue = state.catalogue
    rows = len(catalogue.scored_rows)
    budget = resolve_budget(settings.budget, rows)
    clusters = cluster_count(rows, settings.clusters)
    codes, names = catalogue.categories[ORGAN]
    open_rows = catalogue.scored.copy()
    open_rows[state.pins.banned] = False
    sizes = np.bincount(codes[open_rows], minlength=len(names))
    pinned = state.pins.pinned[catalogue.scored[state.pins.pinned]]
    pins = np.bincount(codes[pinned], minlength=len(names))
    balanced = settings.balance == ORGAN
    rule = settings.balance_quota if balanced else "proportional"
    quotas = share(sizes, budget, rule, pins)
    found = sorted(zip(names, sizes.tolist(), quotas.tolist(), strict=True), key=lambda x: -x[1])
    return {
        "budget": budget,
        "images": rows,
        "clusters": clusters,
        "balanced": balanced,
        "organs": [
            {"value": name, "images": size, "selected": quota}
            for name, size, quota in found
            if size
        ],
        "seconds": _last_seconds(picks),
    }


def _last_seconds(picks: Times) -> float | None:
    """How long the last pick took; selections of one pool differ less than pools do."""
    for started, ended in picks:
        if started and ended:
            return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    return None
