"""Pins and bans as the service shows and changes them."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from echostill.curation.selection import pin_table
from echostill.curation.selection.pin_table import Pin
from echostill.curation.service.answers.images import (
    IDS_SHOWN,
    image_answer,
    members_of,
    pin_counts,
    row_of,
)
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem, conflict, unknown
from echostill.platform.errors import nearest


def pin_item(pin: Pin) -> dict[str, Any]:
    """Return a pin as plain values."""
    named = pin.cluster >= 0
    return {
        "id": pin.pin_id,
        "action": pin.action,
        "kind": "cluster" if named else "image",
        "coreset": pin.coreset or None,
        "cluster": pin.cluster if named else None,
        "image_ids": list(pin.image_ids[:IDS_SHOWN]),
        "images": len(pin.image_ids),
        "author": pin.author,
        "reason": pin.reason,
        "time": pin.time,
        "removed": pin.removed,
    }


def pin_list(state: State, history: bool) -> dict[str, Any]:
    """List pins and bans, newest first."""
    state.refresh()
    shown = [pin for pin in state.pins.all if history or pin.removed is None]
    return {"items": [pin_item(pin) for pin in reversed(shown)], "counts": pin_counts(state)}


def pin_images(
    state: State,
    action: str,
    images: Sequence[str],
    cluster: tuple[str, int] | None,
    author: str,
    reason: str,
) -> dict[str, Any]:
    """Pin or ban images or a cluster's images."""
    if bool(images) == (cluster is not None):
        raise Problem(422, "invalid", "name either images or a cluster.")
    ids = [state.catalogue.ids[row_of(state, image_id)] for image_id in images]
    where: dict[str, Any] = {}
    if cluster is not None:
        coreset = state.coreset(cluster[0])
        members = members_of(coreset, cluster[1])
        ids = coreset.table["image_id"].take(pa.array(members)).to_pylist()
        where = {"coreset": cluster[0], "cluster": cluster[1]}
    pin = pin_table.add_pin(state.store, action, ids, author=author, reason=reason, **where)
    state.refresh()
    return pin_item(pin)


def unpin(state: State, pin_id: str, author: str, reason: str) -> dict[str, Any]:
    """Take a pin or ban back."""
    known = {pin.pin_id: pin for pin in pin_table.read_pins(state.store)}
    if pin_id not in known:
        raise unknown("pin", f"no pin '{pin_id}'.{nearest(pin_id, known)}")
    removed = known[pin_id].removed
    if removed is not None:
        raise conflict(f"pin '{pin_id}' was taken back by {removed['author']} before.")
    pin = pin_table.remove_pin(state.store, pin_id, author=author, reason=reason)
    state.refresh()
    return pin_item(pin)


def with_acts(state: State, image_id: str, coreset: str | None) -> dict[str, Any]:
    """Say everything about one image, its pins and bans included."""
    found = image_answer(state, image_id, coreset)
    found["pins"] = [
        pin_item(pin) for pin in state.pins.all if pin.removed is None and image_id in pin.image_ids
    ]
    return found
