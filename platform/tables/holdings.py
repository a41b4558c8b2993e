"""What a store holds under names: coresets, runs, reports, caches of a teacher, sweeps.

For each: what it was made from and what was made from it, by the digests in the fingerprints.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from echostill.platform.errors import UsageError, nearest
from echostill.platform.names import check_name, is_name
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.tables.table_folder import RECORDS
from echostill.platform.tables.versions import versions
from echostill.platform.withdrawal.state import WITHDRAWN, former_digests

KINDS = {  # folder of the store: one of what is in it
    "coresets": "coreset",
    "runs": "run",
    "reports": "report",
    "teacher-cache": "teacher cache",
    "sweeps": "sweep",
}
TABLES = ("coresets",)  # whose records lie apart
_SINGLE = ("pool", "scores", "duplicates", "leaks")


@dataclass(frozen=True)
class Holding:
    """A named result of a store.

    Attributes:
        place: Where it is, such as ``coresets/default``.
        finished: Whether it has what is written last.
        size: Bytes of its files.
        written: When its last file was written, UTC; empty if that is not known.
        made_from: What it was made from: name in the fingerprint, and what of the store that is;
            ``(not in the store)`` where it is something else, or was made again since.
        used_by: Places of what was made from it.
        details: Of its manifest, in words.
    """

    place: str
    finished: bool
    size: int
    written: str
    made_from: dict[str, str] = field(default_factory=dict)
    used_by: tuple[str, ...] = ()
    details: str = ""

    @property
    def kind(self) -> str:
        """The folder it is in."""
        return self.place.partition("/")[0]

    @property
    def name(self) -> str:
        """Its name."""
        return self.place.partition("/")[2]

    def describe(self) -> str:
        """Say in a line what it is, what it was made from and what uses it."""
        state = "" if self.finished else " NOT FINISHED"
        here = [origin for origin in self.made_from.values() if origin != NOT_HERE]
        elsewhere = [name for name, origin in self.made_from.items() if origin == NOT_HERE]
        said = [
            f"{self.place}{state}",
            self.written or "no date",
            f"{self.size / 2**20:.1f} MiB",
            self.details,
            f"made from {', '.join(dict.fromkeys(here))}" if here else "",
            f"and what is not in the store: {', '.join(elsewhere)}" if elsewhere else "",
            f"used by {', '.join(self.used_by)}" if self.used_by else "",
        ]
        return "  ".join(text for text in said if text)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": KINDS[self.kind],
            "name": self.name,
            "finished": self.finished,
            "bytes": self.size,
            "written": self.written,
            "made_from": self.made_from,
            "used_by": list(self.used_by),
            "details": self.details,
        }


NOT_HERE = "(not in the store)"
PROXY_RUN = "runs/proxy"


def storage_of(store: Store, place: str) -> Storage:
    """Return the folder of a result."""
    kind = place.partition("/")[0]
    return store.table(place) if kind in TABLES else store.storage.at(place)


def holdings(store: Store, kind: str | None = None) -> list[Holding]:
    """Return the named results of a store, of all kinds or of one, by name.

    Raises:
        UsageError: There is no such store.
    """
    if not store.storage.exists():
        raise UsageError(f"there is no store '{store.root}'.")
    places = _places(store)
    found = {place: _json(storage_of(store, place), FINGERPRINT) for place in places}
    found |= {name: _json(store.table(name), FINGERPRINT) for name in _SINGLE}
    known = _digests(store, places)
    users: dict[str, set[str]] = defaultdict(set)
    origins: dict[str, dict[str, str]] = {}
    for place, values in found.items():
        origins[place] = _origins(values, known)
        for origin in origins[place].values():
            users[origin].add(place)
    return [
        _holding(store, place, origins[place], tuple(sorted(users[place] - {place})))
        for place in places
        if kind is None or place.startswith(f"{kind}/")
    ]


def find_holding(store: Store, place: str) -> Holding:
    """Return one named result, as :func:`find_holdings` finds several."""
    return find_holdings(store, [place])[0]


def find_holdings(store: Store, places: Sequence[str]) -> list[Holding]:
    """Return named results.

    Args:
        store: The store.
        places: Such as ``coresets/default``.

    Raises:
        UsageError: One is not there; the message names the nearest.
    """
    for place in places:
        _check_place(place)
    there = {holding.place: holding for holding in holdings(store)}
    for place in places:
        if place not in there:
            hint = nearest(place, list(there))
            raise UsageError(f"there is no '{place}' in '{store.root}'.{hint}")
    return [there[place] for place in places]


def _check_place(place: str) -> None:
    kind, _, name = place.partition("/")
    if kind not in KINDS or not name:
        kinds = ", ".join(f"{folder}/NAME" for folder in KINDS)
        raise UsageError(f"'{place}' is no place of a result: expected one of {kinds}.")
    check_name(name)


def _places(store: Store) -> list[str]:
    """Places in which there is anything, finished or not."""
    found = set()
    for kind in KINDS:
        roots = (kind, f"{RECORDS}/{kind}") if kind in TABLES else (kind,)
        for root in roots:
            for entry in store.storage.list(root, recursive=True):
                name = entry.removeprefix(f"{root}/").partition("/")
                if name[1] and is_name(name[0]):
                    found.add(f"{kind}/{name[0]}")
    # Records alone are what is left of a table whose folder somebody deleted.
    return sorted(place for place in found if storage_of(store, place).exists())


def _json(storage: Storage, name: str) -> dict[str, Any]:
    """A file's values; none where it is missing, or is not what echostill wrote."""
    if not storage.exists(name):
        return {}
    try:
        values = json.loads(storage.read(name))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _digests(store: Store, places: list[str]) -> dict[str, str]:
    """What has which digest: tables by their parts, runs by each of their files."""
    known: dict[str, str] = {}
    for place in (*_SINGLE, *places):
        single = "/" not in place
        storage = store.table(place) if single else storage_of(store, place)
        manifest = _json(storage, MANIFEST)
        if manifest.get("parts"):
            for version in versions(Table(storage, manifest)):
                known.setdefault(version.digest, place)
            for digest in former_digests(manifest):
                known.setdefault(digest, place)
        for file in manifest.get("files") or []:
            known.setdefault(file["sha256"], place)
    return known


def _origins(values: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """What a result was made from, by the names in its fingerprint."""
    made_from = {**(values.get("inputs") or {}), **(values.get("weights") or {})}
    made_from.pop(WITHDRAWN, None)  # the number of a withdrawal, not a digest
    found = {name: known.get(digest, NOT_HERE) for name, digest in made_from.items()}
    if "proxy" in found:  # the scores' one, known by a digest over its snapshots
        found["proxy"] = PROXY_RUN
    return found


def _holding(
    store: Store, place: str, made_from: dict[str, str], used_by: tuple[str, ...]
) -> Holding:
    storage = storage_of(store, place)
    manifest = _json(storage, MANIFEST)
    last = "evaluation.json" if place.startswith("reports/") else MANIFEST
    return Holding(
        place,
        storage.exists(last) or storage.exists(MANIFEST),
        sum(storage.sizes().values()),
        storage.newest(),
        made_from,
        used_by,
        _details(place, manifest),
    )


def _details(place: str, manifest: dict[str, Any]) -> str:
    configuration = (manifest.get("fingerprint") or {}).get("configuration") or {}
    if place.startswith("coresets/") and "budget" in manifest:
        return f"{manifest['budget']} of {manifest['rows']} by {configuration.get('method', '?')}"
    return str(manifest.get("stage", ""))
