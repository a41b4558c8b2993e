"""Questions to a store about an image: the tables behind `echostill why`."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from echostill.curation.selection.explain.explain import explain, explanation, find_image
from echostill.curation.selection.explain.origins import kept_for, stores_of
from echostill.platform.config import validate
from echostill.platform.errors import UsageError
from echostill.platform.tables.quarantine import quarantine_parts
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.tables.versions import latest, version_with, versions

ORIGIN = ["image_id", "group_id", "source", "organ", "device", "label", "frame"]


@dataclass(frozen=True)
class Answer:
    """Why an image is, or is not, in the coreset: as text and as values."""

    text: str
    values: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self.values


def why(store_root: str, coreset: str, image: str) -> Answer:
    """Explain why an image is, or is not, in a coreset.

    Args:
        store_root: The store.
        coreset: Name of the coreset.
        image: An image id, a unique prefix of one, or a source.

    Raises:
        UsageError: There is no such store, coreset or image; suggests the nearest.
    """
    from echostill.curation.selection.stage import SelectConfig

    store = Store(store_root)
    try:
        table = store.open_coreset(coreset)
    except UsageError:
        held = quarantined(store, image)  # known before any selection
        if held is None:
            raise
        return held
    pool = store.open_pool().read(ORIGIN)
    try:
        image_id = find_image(image, pool)
    except UsageError:
        held = quarantined(store, image)
        if held is None:
            raise
        return held
    rows = table.read()
    found = {**pool.filter(pc.equal(pool["image_id"], image_id)).to_pylist()[0]}
    if origin := stores_of(store, image_id):
        found["store"] = origin
    if pc.index(rows["image_id"], image_id).as_py() < 0:
        held = quarantined(store, image_id)
        if held is not None:
            return held
        _check_version(store, table, image_id)
    settings = validate(SelectConfig, json.loads(table.storage.read("configuration.json")))
    return Answer(
        explain(image_id, rows, found, settings), explanation(image_id, rows, found, settings)
    )


def _check_version(store: Store, coreset: Table, image_id: str) -> None:
    """Say of an image that came after a coreset was selected in which version of the pool it came.

    Raises:
        UsageError: The pool has grown since.
    """
    pool = store.open_pool()
    own = version_with(pool, coreset.manifest["fingerprint"].get("inputs", {}).get("pool", ""))
    if own is None or own.number == latest(pool).number:
        return
    row = pc.index(pool.read(["image_id"])["image_id"], image_id).as_py()
    came = next(version.number for version in versions(pool) if row < version.rows)
    name = coreset.storage.root.rpartition("/")[2]
    raise UsageError(
        f"image '{image_id}' came with version {came} of the pool, and coreset '{name}' was "
        f"selected from version {own.number}, which has {own.rows} images: score and select again, "
        "under a new name."
    )


def quarantined(store: Store, image: str) -> Answer | None:
    """Explain why an image is no row of the pool, by its id or source; None for other images."""
    for stage, part in quarantine_parts(store):
        match = pc.or_(pc.equal(part["id"], image), pc.equal(part["source"], image))
        for row in part.filter(match).slice(0, 1).to_pylist():
            name = row["source"] or row["id"]
            text = (
                f"Image {name} is not in the coreset: it went to quarantine at {stage}, "
                f"{row['error_class']}: {row['message']}"
            )
            return Answer(text, {**row, "selected": False})
    name, kept = kept_for(store, image)
    if kept:
        text = (
            f"Image {image} is not in the pool: when it was merged, store {name} had the same "
            f"pixels as image {kept}, which is there for both"
        )
        return Answer(text, {"image_id": image, "store": name, "kept_id": kept, "selected": False})
    return None
