"""What the service answers, as plain values: images, coresets, clusters, comparisons, pins."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection import pin_table
from echostill.curation.selection.explain.comparison import compare_selections
from echostill.curation.selection.explain.questions import quarantined
from echostill.curation.service.data.catalogue import CATEGORIES
from echostill.curation.service.data.columns import numbers
from echostill.curation.service.data.coresets import ORIGIN, OWN, Coreset
from echostill.curation.service.data.pages import check_sort, read_cursor, write_cursor
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import (
    bad_request,
    unknown,
)
from echostill.platform.errors import nearest
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.table import MANIFEST, Table

VALUES_SHOWN = 1000
IDS_SHOWN = 100
MEMBERS_SHOWN = 50
PREFIX_LENGTH = 4
GROUP_EXTRA = 4  # neighbours looked at for each one wanted, where the own group is left out
SEARCHED_MAX = 1000
CLUSTER_SORTS = ("cluster", "size", "selected", "quota", "mean_distance")


def pool_overview(state: State) -> dict[str, Any]:
    """Say what the store holds."""
    catalogue = state.catalogue
    quarantine = {}
    for stage in ("ingest", "score"):
        storage = state.store.quarantine(stage)
        quarantine[stage] = Table.open(storage, stage).rows if storage.exists(MANIFEST) else 0
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
        "coresets": [item["name"] for item in coreset_list(state)],
        "index": state.preparation.as_dict(),
        "map": {"state": "ready" if state.places is not None else state.preparation.state},
        "pins": pin_counts(state),
    }


def pin_counts(state: State) -> dict[str, int]:
    """Count the images that are pinned and banned."""
    acts = list(state.pins.acts.values())
    return {
        "pinned": sum(pin.action == pin_table.PIN for pin in acts),
        "banned": sum(pin.action == pin_table.BAN for pin in acts),
    }


def coreset_list(state: State) -> list[dict[str, Any]]:
    """List the coresets, newest first."""
    entries = sorted(state.entries.values(), key=lambda entry: entry.name)
    return [e.summary() for e in sorted(entries, key=lambda e: e.created, reverse=True)]


def coreset_details(state: State, name: str) -> dict[str, Any]:
    """Describe one coreset."""
    entry = state.entry(name)
    manifest = entry.table.manifest
    return {
        **entry.summary(),
        "clusters": state.coreset(name).stats["clusters"]["count"],
        "configuration": entry.configuration,
        "fingerprint": manifest["fingerprint"],
        "files": manifest["parts"],
    }


def with_pins(state: State, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each sample whether it is pinned or banned."""
    acts = state.pins.acts
    for sample in samples:
        act = acts.get(sample["image_id"])
        sample["pin"] = act.action if act else None
    return clean(samples)


def row_of(state: State, image_id: str) -> int:
    """Return an image's row.

    Raises:
        Problem: No such image; names what begins alike.
    """
    row = state.catalogue.ids.find(image_id)
    if row is None:
        raise unknown("image", f"no image '{image_id[:64]}' in the pool.{_alike(state, image_id)}")
    return row


def _alike(state: State, image_id: str) -> str:
    """A hint: ids that share the longest beginning."""
    ids = state.catalogue.ids
    for length in range(min(len(image_id), 32), 3, -1):
        rows = ids.with_prefix(image_id[:length])
        if len(rows):
            return nearest(image_id, [ids[row] for row in rows[:IDS_SHOWN]])
    return ""


def image_answer(state: State, image_id: str, coreset_name: str | None) -> dict[str, Any]:
    """Say everything about one image."""
    catalogue = state.catalogue
    row = catalogue.ids.find(image_id)
    if row is None:
        held = quarantined(state.store, image_id)
        if held is None:
            row_of(state, image_id)
        assert held is not None
        return {
            "image": None,
            "scores": None,
            "coreset": None,
            "why": {"text": held.text, "values": clean(held.values)},
            "pins": [],
        }
    found: dict[str, Any] = {
        "image": {"row": row, **catalogue.image(row)},
        "scores": catalogue.scores(row),
        "coreset": None,
        "why": {"text": "", "values": {}},
        "pins": [],
    }
    if coreset_name is None and not state.entries:
        found["why"]["text"] = "There is no coreset yet: pick one."
        return clean(found)
    coreset = state.coreset(coreset_name)
    position = coreset.position(row)
    if position is None:
        held = quarantined(state.store, image_id)
        found["why"] = {
            "text": held.text if held else f"Image {image_id} was not scored.",
            "values": held.values if held else {},
        }
        return clean(found)
    text, values = coreset.why(position)
    own = {name: values[name] for name in coreset.own_columns if name in values}
    found["coreset"] = {"name": coreset.entry.name, **own}
    found["why"] = {"text": text, "values": values}
    return clean(found)


def samples_of(state: State, coreset: Coreset | None, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return samples by their rows in the catalogue; coreset columns are null where it has none."""
    catalogue = state.catalogue
    wanted = np.asarray(rows, dtype=np.int64)
    origin = catalogue.rows(wanted, ["image_id", *ORIGIN]).to_pylist()
    own: dict[int, dict[str, Any]] = {}
    if coreset is not None:
        held = [(row, coreset.position(int(row))) for row in wanted]
        inside = [(row, place) for row, place in held if place is not None]
        places = np.array([place for _, place in inside], dtype=np.int64)
        columns = coreset.table.select(list(OWN)).take(pa.array(places)).to_pylist()
        own = {int(row): values for (row, _), values in zip(inside, columns, strict=True)}
    nothing = dict.fromkeys(OWN)
    found = [
        {"image_id": theirs["image_id"], "row": int(row), **theirs, **own.get(int(row), nothing)}
        for row, theirs in zip(wanted, origin, strict=True)
    ]
    return with_pins(state, found)


def default_coreset(state: State, name: str | None) -> Coreset | None:
    """Return the named coreset, or the default one; None where there is none and none is named."""
    return state.coreset(name) if name is not None or state.entries else None


def search_images(state: State, text: str, limit: int) -> list[int]:
    """Find rows by the beginning of an id, then by text in the source.

    Raises:
        Problem: The text is too short.
    """
    text = text.strip()
    if len(text) < PREFIX_LENGTH:
        raise bad_request(f"give at least {PREFIX_LENGTH} characters of an id, or of a source.")
    catalogue = state.catalogue
    rows = list(catalogue.ids.with_prefix(text.lower())[:limit])
    if len(rows) < limit:
        found = pc.match_substring(catalogue.table["source"], text)
        named = np.flatnonzero(numbers(pc.fill_null(found, False)))[: limit + len(rows)]
        rows += [int(row) for row in named if row not in set(rows)]
    return rows[:limit]


def lookup_rows(state: State, rows: Sequence[int], ids: Sequence[str]) -> list[int]:
    """Check rows and find ids.

    Raises:
        Problem: A row that the pool does not have, or an unknown id.
    """
    size = len(state.catalogue)
    for row in rows:
        if not 0 <= row < size:
            raise unknown("image", f"there is no row {row}: the pool has {size} images.")
    return [*rows, *(row_of(state, image_id) for image_id in ids)]


def cluster_page(coreset: Coreset, sort: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """Return one page of a coreset's clusters."""
    check_sort(sort, CLUSTER_SORTS)
    table = coreset.clusters
    name = sort.removeprefix("-")
    digest = f"{coreset.entry.table.digest[:16]} {sort}"
    offset = read_cursor(cursor, digest)
    used = np.flatnonzero(table["size"] > 0)
    keys = table[name][used].astype(np.float64)
    order = used[np.argsort(-keys if sort.startswith("-") else keys, kind="stable")]
    chosen = order[offset : offset + limit]
    more = offset + limit < len(order)
    return clean(
        {
            "items": [_cluster_line(coreset, int(cluster)) for cluster in chosen],
            "total": len(order),
            "next": write_cursor(offset + limit, digest) if more else None,
        }
    )


def _cluster_line(coreset: Coreset, cluster: int) -> dict[str, Any]:
    item = coreset.cluster_item(cluster)
    del item["devices"]
    return item


def cluster_answer(state: State, coreset: Coreset, cluster: int) -> dict[str, Any]:
    """Describe one cluster and its first members.

    Raises:
        Problem: There is none of that number.
    """
    members = members_of(coreset, cluster)
    item = coreset.cluster_item(cluster, VALUES_SHOWN)
    item["members"] = with_pins(state, coreset.samples(members[:MEMBERS_SHOWN]))
    return clean(item)


def members_of(coreset: Coreset, cluster: int) -> np.ndarray:
    """Return the positions of a cluster's images.

    Raises:
        Problem: There is none of that number.
    """
    members = coreset.members(cluster)
    if members is None:
        last = len(coreset.cluster_starts) - 2
        raise unknown(
            "cluster",
            f"coreset '{coreset.entry.name}' has no cluster {cluster}: they go from 0 to {last}.",
        )
    return members


def compare(state: State, a: str, b: str, limit: int) -> dict[str, Any]:
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
    return compare_selections(
        catalogue.ids, chosen[0], chosen[1], categories, names=(a, b), limit=limit
    )


def clean(value: Any) -> Any:
    """Make values fit for JSON: NaN and infinities become null, bytes are left out of reach."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        return clean(value.item())
    return value
