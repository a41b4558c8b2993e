"""What the store holds under names: listed, deleted, renamed."""

from typing import Any

from echostill.curation.service.data.state import State
from echostill.curation.service.problems import Problem, conflict, unknown
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.names import check_name
from echostill.platform.tables.holdings import Holding, find_holding, holdings
from echostill.platform.tables.housekeeping import (
    Waste,
    collect_waste,
    delete_result,
    find_waste,
    rename_result,
)


def holding_item(holding: Holding) -> dict[str, Any]:
    """Return a named result as plain values."""
    return {"place": holding.place, **holding.as_dict()}


def holding_list(state: State, kind: str | None) -> dict[str, Any]:
    """List what the store holds under names, of all kinds or of one (a folder of the store)."""
    return {"items": [holding_item(holding) for holding in holdings(state.store, kind)]}


def delete_holding(
    state: State, place: str, *, picking: set[str], dry_run: bool, force: bool
) -> dict[str, Any]:
    """Delete a named result, or say what that would be.

    Args:
        state: the mapped store.
        place: such as ``coresets/default``.
        picking: names of the coresets that jobs of this service are picking.
        dry_run: only say what would be deleted, and whether it may.
        force: delete it although other results were made from it; those stay.

    Raises:
        Problem: There is no such result, it is at work, or others were made from it.
    """
    found = _find(state, place, picking)
    if found.used_by and not (force or dry_run):
        raise conflict(
            f"{', '.join(found.used_by)} was made from '{place}': delete that first, or give "
            "force=true. It stays, and can still be read."
        )
    if not dry_run:
        _changed(state, place, lambda: delete_result(state.store, place, force=force))
    return {"deleted": not dry_run, "result": holding_item(found)}


def rename_holding(state: State, place: str, name: str, picking: set[str]) -> dict[str, Any]:
    """Give a coreset, report or teacher cache another name.

    Raises:
        Problem: There is no such result, it is at work or cannot be renamed, or the name is taken.
    """
    _checked_name(name)
    _find(state, place, picking)
    target = f"{place.partition('/')[0]}/{name}"
    if target.partition("/")[2] in picking:
        raise conflict(f"a job is picking a coreset '{name}': choose another name.")
    _changed(state, place, lambda: rename_result(state.store, place, name))
    return holding_item(find_holding(state.store, target))


def waste_list(state: State, picking: set[str]) -> dict[str, Any]:
    """List what the store does not need; what jobs of this service are picking is not in it."""
    items = [
        {"place": waste.place, "bytes": waste.size, "reason": waste.reason}
        for waste in _waste(state, picking)
    ]
    return {"items": items}


def collect(state: State, places: list[str], picking: set[str]) -> dict[str, Any]:
    """Delete some of what the store does not need.

    Raises:
        Problem: Something of it is needed, or is not there, or another job works on the store.
    """
    known = {waste.place: waste for waste in _waste(state, picking)}
    for place in places:
        if place not in known:
            raise conflict(
                f"'{place}' is not, or no longer, what the store does not need: list it again."
            )
    found = [known[place] for place in dict.fromkeys(places)]
    try:
        freed = collect_waste(state.store, found)
    except EchostillError as error:
        raise conflict(str(error)) from None
    for waste in found:
        kind, _, name = waste.place.partition("/")
        if kind == "coresets":
            state.forget(name)
    return {"places": [waste.place for waste in found], "bytes": freed}


def _waste(state: State, picking: set[str]) -> list[Waste]:
    at_work = {f"coresets/{name}" for name in picking}
    return [waste for waste in find_waste(state.store) if waste.place not in at_work]


def _checked_name(name: str) -> None:
    try:
        check_name(name)
    except UsageError as error:
        raise Problem(422, "invalid", str(error)) from None


def _find(state: State, place: str, picking: set[str]) -> Holding:
    kind, _, name = place.partition("/")
    _checked_name(name)
    if kind == "coresets" and name in picking:
        raise conflict(f"a job is picking '{place}': cancel it first.")
    try:
        return find_holding(state.store, place)
    except UsageError as error:
        raise unknown("result", str(error)) from None


def _changed(state: State, place: str, change: Any) -> None:
    try:
        change()
    except EchostillError as error:  # another job is at work on it, or it cannot be renamed
        raise conflict(str(error)) from None
    kind, _, name = place.partition("/")
    if kind == "coresets":
        state.forget(name)
