"""Delete and rename what a store holds under names, and find what nothing needs.

Whatever is deleted loses first what makes it finished: a deletion that is interrupted leaves an
unfinished result, never a damaged one, and the same command finishes it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from echostill.platform.errors import UsageError
from echostill.platform.names import check_name
from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint
from echostill.platform.tables.holdings import (
    NOT_HERE,
    TABLES,
    Holding,
    find_holding,
    find_holdings,
    holdings,
    storage_of,
)
from echostill.platform.tables.lease import hold
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import CONFIGURATION, Store
from echostill.platform.tables.table import MANIFEST

STAGED = "cache"  # folder of the store: images staged for training
_LAST = ("evaluation.json", "report.html", MANIFEST)  # written last by the stages
RENAMED_FROM = "renamed-from.txt"  # in a copy, until what it was made from is deleted


@dataclass(frozen=True)
class Waste:
    """Something that nothing in the store needs.

    Attributes:
        place: Where it is.
        size: Bytes.
        reason: Why nothing needs it.
    """

    place: str
    size: int
    reason: str

    def describe(self) -> str:
        """Say in a line what it is."""
        return f"{self.place}  {self.size / 2**20:.1f} MiB  {self.reason}"


def find_deletable(store: Store, places: Sequence[str], *, force: bool = False) -> list[Holding]:
    """Return named results, provided that nothing that stays was made from them.

    Args:
        store: The store.
        places: What is to be deleted together, such as ``coresets/default``.
        force: Whether they may go although results that were made from them stay.

    Raises:
        UsageError: There is no such result, or it may not go.
    """
    found = find_holdings(store, places)
    for holding in found:
        left = [place for place in holding.used_by if place not in places]
        if left and not force:
            raise UsageError(
                f"{_listed(left)} was made from '{holding.place}': delete that too, or give "
                "--force. It stays, and can still be read."
            )
    return found


def delete_result(store: Store, place: str, *, force: bool = False) -> Holding:
    """Delete one named result, as :func:`delete_results` deletes several."""
    return delete_results(store, [place], force=force)[0]


def delete_results(store: Store, places: Sequence[str], *, force: bool = False) -> list[Holding]:
    """Delete named results; all are looked at before the first is deleted.

    Args:
        store: The store.
        places: Such as ``coresets/default``.
        force: Delete them although other results were made from them; those stay.

    Returns:
        What was deleted.

    Raises:
        UsageError: There is no such result, or others were made from it.
    """
    found = find_deletable(store, places, force=force)
    for holding in found:
        with hold(store.storage, "delete", holding.place, alone=False):
            _delete(storage_of(store, holding.place))
    return found


def _delete(storage: Storage) -> None:
    for name in (*_LAST, FINGERPRINT):
        storage.delete(name)
    storage.delete("")


def rename_result(store: Store, place: str, name: str) -> str:
    """Give a coreset, report or teacher cache another name.

    Its configuration and fingerprint get the new name too, so that the stage with that name finds
    it finished. What was made from it is known by content and stays as it is.

    Args:
        store: The store.
        place: Such as ``coresets/default``.
        name: The new name.

    Returns:
        The new place.

    Raises:
        UsageError: There is no such result, it is not finished or cannot be renamed, or the new
            name is taken.
    """
    target = f"{place.partition('/')[0]}/{check_name(name)}"
    with hold(store.storage, "rename", place, alone=False):
        _rename(store, place, target, name)
    return target


def _rename(store: Store, place: str, target: str, name: str) -> None:
    into = storage_of(store, target)
    resumed = into.exists(RENAMED_FROM) and into.read(RENAMED_FROM).decode() == place
    if not resumed:
        holding = find_holding(store, place)
        if not holding.finished:
            raise UsageError(f"'{place}' is not finished: it can be deleted, not renamed.")
        if target == place or into.exists():
            raise UsageError(f"'{target}' exists: choose another name, or delete it first.")
        configuration = _values(storage_of(store, place), FINGERPRINT).get("configuration", {})
        if configuration.get("name") != holding.name:
            raise UsageError(
                f"'{place}' cannot be renamed: its name comes from its configuration, as a run's "
                "comes from its student and seed."
            )
        into.write(RENAMED_FROM, place.encode())
    source = storage_of(store, place)
    _copy(source, into, name)
    _delete(source)
    into.delete(RENAMED_FROM)


def _copy(source: Storage, into: Storage, name: str) -> None:
    """Copy a result under its new name, what makes it finished last."""
    names = [file for file in source.list(recursive=True) if file != RENAMED_FROM]
    last = [file for file in (FINGERPRINT, *_LAST) if file in names]
    for file in [*(file for file in names if file not in last), *last]:
        if file in (FINGERPRINT, MANIFEST, CONFIGURATION):
            values = _with_name(file, _values(source, file), name)
            into.write(file, json.dumps(values, indent=1, sort_keys=True).encode())
        else:
            into.write(file, source.read(file))


def _with_name(file: str, values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration, fingerprint or manifest with another name in it."""
    if file == CONFIGURATION:
        return {**values, "name": name}
    if file == MANIFEST:
        return {**values, "fingerprint": _with_name(FINGERPRINT, values["fingerprint"], name)}
    changed = Fingerprint(
        {**values["configuration"], "name": name},
        values["code"],
        values["weights"],
        values["inputs"],
    )
    return {**values, **changed.as_dict()}


def _values(storage: Storage, file: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(storage.read(file))
    return values


def find_waste(store: Store) -> list[Waste]:
    """Return what nothing in the store needs: staged images, unfinished and outdated results.

    A result is outdated if the pool, scores or coreset that it was made from was made again since,
    and nothing was made from it. Runs and reports are never outdated: they are what the work was
    for.
    """
    found = []
    staged = sum(store.storage.sizes(STAGED).values())
    if staged:
        found.append(Waste(STAGED, staged, "images staged for training; made again when needed"))
    for holding in holdings(store):
        if not holding.finished:
            found.append(Waste(holding.place, holding.size, "not finished"))
        elif holding.kind in TABLES and not holding.used_by:
            changed = [
                name
                for name, origin in holding.made_from.items()
                if origin == NOT_HERE and store.table(name).exists(MANIFEST)
            ]
            if changed:
                reason = f"made from another {_listed(changed)} than the store has now"
                found.append(Waste(holding.place, holding.size, reason))
    return found


def collect_waste(store: Store, waste: Iterable[Waste]) -> int:
    """Delete what :func:`find_waste` found, and return how many bytes that was."""
    freed = 0
    with hold(store.storage, "gc", "gc"):  # alone: what is unfinished may be at work
        for each in waste:
            staged = each.place == STAGED
            _delete(store.storage.at(STAGED) if staged else storage_of(store, each.place))
            freed += each.size
    return freed


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
