"""The pool and its coresets: what they contain, their clusters, and how two of them differ."""

from typing import Any

import numpy as np

from echostill.curation.selection.explain.comparison import compare_selections
from echostill.curation.service.answers.pins import pin_counts
from echostill.curation.service.answers.samples import with_pins
from echostill.curation.service.answers.values import json_value
from echostill.curation.service.data.catalogue import CATEGORIES
from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.pages import check_sort, read_cursor, write_cursor
from echostill.curation.service.data.state import State
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.table import MANIFEST, Table

VALUES_SHOWN = 1000
MEMBERS_SHOWN = 50
CLUSTER_SORTS = ("cluster", "size", "selected", "quota", "mean_distance")


def pool_overview(state: State) -> dict[str, Any]:
    """Return what the store contains."""
    catalogue = state.catalogue
    quarantine = {}
    for stage in ("ingest", "score"):
        storage = state.store.quarantine(stage)
        quarantine[stage] = Table.open(storage, stage).rows if storage.exists(MANIFEST) else 0
    has_map = state.coordinates is not None
    return {
        "version": code_version(),
        "store": state.store.root.rstrip("/").rpartition("/")[2],
        "images": len(catalogue),
        "scored": len(catalogue.scored_rows),
        "dimension": state.neighbours.dimension if state.neighbours else None,
        "quarantined": quarantine,
        "organs": catalogue.counts("organ", VALUES_SHOWN),
        "devices": catalogue.counts("device", VALUES_SHOWN),
        "labels": catalogue.counts("label", VALUES_SHOWN),
        "coresets": [item["name"] for item in coreset_list(state)["items"]],
        "index": state.preparation.as_dict(),
        "map": {"state": "ready" if has_map else state.preparation.state},
        "pins": pin_counts(state),
    }


def coreset_list(state: State) -> dict[str, Any]:
    """List the coresets, newest first."""
    entries = sorted(state.entries.values(), key=lambda entry: entry.name)
    newest_first = sorted(entries, key=lambda entry: entry.created, reverse=True)
    return {"items": [entry.summary() for entry in newest_first]}


def coreset_details(state: State, name: str) -> dict[str, Any]:
    """Describe one coreset: configuration, fingerprint and files."""
    entry = state.entry(name)
    manifest = entry.table.manifest
    found = {
        **entry.summary(),
        "clusters": state.coreset(name).stats["clusters"]["count"],
        "configuration": entry.configuration,
        "fingerprint": manifest["fingerprint"],
        "files": manifest["parts"],
    }
    return dict(json_value(found))


def coreset_stats(state: State, name: str) -> dict[str, Any]:
    """Return the numbers about a whole coreset."""
    return dict(json_value(state.coreset(name).stats))


def cluster_page(
    state: State, name: str | None, sort: str, limit: int, cursor: str | None
) -> dict[str, Any]:
    """Return one page of a coreset's clusters.

    Raises:
        Problem: No such coreset, an unknown column to sort by, or an invalid cursor.
    """
    coreset = state.coreset(name)
    check_sort(sort, CLUSTER_SORTS)
    table = coreset.clusters
    digest = f"{coreset.entry.table.digest[:16]} {sort}"
    offset = read_cursor(cursor, digest)
    used = np.flatnonzero(table["size"] > 0)
    keys = table[sort.removeprefix("-")][used].astype(np.float64)
    order = used[np.argsort(-keys if sort.startswith("-") else keys, kind="stable")]
    chosen = order[offset : offset + limit]
    more = offset + limit < len(order)
    found = {
        "items": [_cluster_summary(coreset, int(cluster)) for cluster in chosen],
        "total": len(order),
        "next": write_cursor(offset + limit, digest) if more else None,
    }
    return dict(json_value(found))


def _cluster_summary(coreset: Coreset, cluster: int) -> dict[str, Any]:
    item = coreset.cluster_item(cluster)
    del item["devices"]
    return item


def cluster_details(state: State, name: str | None, cluster: int) -> dict[str, Any]:
    """Describe one cluster of a coreset, with its first members.

    Raises:
        Problem: There is no such cluster.
    """
    coreset = state.coreset(name)
    members = coreset.members_of(cluster)
    item = coreset.cluster_item(cluster, VALUES_SHOWN)
    item["members"] = with_pins(state, coreset.samples(members[:MEMBERS_SHOWN]))
    return dict(json_value(item))


def compare_coresets(state: State, a: str, b: str, limit: int) -> dict[str, Any]:
    """Compare two coresets over the images of the first."""
    first, second = state.coreset(a), state.coreset(b)
    catalogue = state.catalogue
    chosen = []
    for coreset in (first, second):
        mask = np.zeros(len(catalogue), dtype=bool)
        mask[coreset.rows[coreset.selected_positions]] = True
        chosen.append(mask)
    clusters = np.full(len(catalogue), -1, dtype=np.int64)
    clusters[first.rows] = first.cluster
    names: list[Any] = list(range(len(first.cluster_starts) - 1))
    categories: dict[str, tuple[np.ndarray, list[Any]]] = {
        name: catalogue.categories[name] for name in CATEGORIES if name != "label"
    }
    categories["cluster"] = (clusters, names)
    found = compare_selections(
        catalogue.ids, chosen[0], chosen[1], categories, names=(a, b), limit=limit
    )
    return dict(json_value(found))
