"""Pins and bans: listed, added and removed."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from echostill.curation.selection.decided import pin_table
from echostill.curation.selection.decided.pin_table import Pin
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem, conflict, unknown
from echostill.platform.errors import nearest

IDS_SHOWN = 100


def pin_item(pin: Pin) -> dict[str, Any]:
    """Return a pin or ban as plain values."""
    of_cluster = pin.cluster >= 0
    return {
        "id": pin.pin_id,
        "action": pin.action,
        "kind": "cluster" if of_cluster else "image",
        "coreset": pin.coreset or None,
        "cluster": pin.cluster if of_cluster else None,
        "image_ids": list(pin.image_ids[:IDS_SHOWN]),
        "images": len(pin.image_ids),
        "author": pin.author,
        "reason": pin.reason,
        "time": pin.time,
        "removed": pin.removed,
    }


def pins_of(state: State, image_id: str) -> list[dict[str, Any]]:
    """Return the pins and bans of an image that have not been removed."""
    pins = state.pins.all
    return [pin_item(pin) for pin in pins if pin.removed is None and image_id in pin.image_ids]


def pin_counts(state: State) -> dict[str, int]:
    """Count the images that are pinned and banned."""
    active = list(state.pins.active.values())
    return {
        "pinned": sum(pin.action == pin_table.PIN for pin in active),
        "banned": sum(pin.action == pin_table.BAN for pin in active),
    }


def pin_list(state: State, history: bool) -> dict[str, Any]:
    """List pins and bans, newest first; with ``history`` the removed ones too."""
    state.refresh()
    shown = [pin for pin in state.pins.all if history or pin.removed is None]
    return {"items": [pin_item(pin) for pin in reversed(shown)], "counts": pin_counts(state)}


def add_pin(
    state: State,
    action: str,
    images: Sequence[str],
    cluster: tuple[str, int] | None,
    author: str,
    reason: str,
) -> dict[str, Any]:
    """Pin or ban images, or the images of a cluster (name of the coreset, number).

    Raises:
        Problem: Neither or both are given, or there is no such image, coreset or cluster.
    """
    if bool(images) == (cluster is not None):
        raise Problem(422, "invalid", "give either images or a cluster.")
    ids = [state.catalogue.ids[state.row(image_id)] for image_id in images]
    origin: dict[str, Any] = {}
    if cluster is not None:
        coreset = state.coreset(cluster[0])
        members = coreset.members_of(cluster[1])
        ids = coreset.table["image_id"].take(pa.array(members)).to_pylist()
        origin = {"coreset": cluster[0], "cluster": cluster[1]}
    pin = pin_table.add_pin(state.store, action, ids, author=author, reason=reason, **origin)
    state.refresh()
    return pin_item(pin)


def remove_pin(state: State, pin_id: str, author: str, reason: str) -> dict[str, Any]:
    """Remove a pin or ban.

    Raises:
        Problem: No such pin, or it was removed before.
    """
    known = {pin.pin_id: pin for pin in pin_table.read_pins(state.store)}
    if pin_id not in known:
        raise unknown("pin", f"no pin '{pin_id}'.{nearest(pin_id, known)}")
    removed = known[pin_id].removed
    if removed is not None:
        raise conflict(f"pin '{pin_id}' was already removed by {removed['author']}.")
    pin = pin_table.remove_pin(state.store, pin_id, author=author, reason=reason)
    state.refresh()
    return pin_item(pin)
