"""What a merge would do: what each store brings, found from their tables without the pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from echostill.curation.ingestion.patients.devices import other_spellings
from echostill.curation.merging.settings import MergeConfig, NameMap
from echostill.curation.merging.settling import SettledRows, Settling, apart, new_names, word
from echostill.curation.merging.stores import SourceStore
from echostill.platform.errors import UsageError, nearest
from echostill.platform.shards.records import Record
from echostill.platform.tables.holdings import PROXY_RUN
from echostill.platform.tables.table import MANIFEST
from echostill.platform.withdrawal.tombstones import Tombstones

COLUMNS = ["image_id", "content_hash", "group_id", "organ", "device"]
SHOWN = 20  # names of a column


@dataclass(frozen=True)
class Part:
    """A part of a store's pool, and what becomes of its rows."""

    record: Record
    rows: SettledRows
    changes: bool  # whether a row is left out, or has a new name


@dataclass
class Contribution:
    """What one store brings.

    Attributes:
        source: The store.
        joins: Whether its groups are those of the merged pool, under one key.
        parts: Of its pool, in order.
        organs: New names by name, as of devices.
        kept_organs: Images by organ in the merged pool, as of devices.
        groups: Of its merged rows, as in the merged pool.
    """

    source: SourceStore
    joins: bool
    parts: list[Part] = field(default_factory=list)
    organs: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    kept_organs: Counter[str] = field(default_factory=Counter)
    kept_devices: Counter[str] = field(default_factory=Counter)
    groups: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Of the store."""
        return self.source.name

    @property
    def copies(self) -> int:
        """Rows that are left out: another store has the same pixels."""
        return sum(len(part.rows.copies) for part in self.parts)

    @property
    def withdrawn(self) -> int:
        """Rows that are left out: withdrawn from one of the stores."""
        return sum(len(part.rows.withdrawn) for part in self.parts)

    @property
    def renamed(self) -> int:
        """Rows with a new id."""
        return sum(len(part.rows.renamed) for part in self.parts)

    @property
    def merged(self) -> int:
        """Rows that come into the pool."""
        return self.source.pool.rows - self.copies - self.withdrawn

    @property
    def quarantined(self) -> int:
        """Rows in the quarantine of its ingest."""
        return sum(
            part.record["quarantine"]["rows"] for part in self.parts if part.record["quarantine"]
        )

    @property
    def keeps_all(self) -> bool:
        """Whether each row of its pool comes into the merged one, under its own id."""
        return not (self.copies or self.withdrawn or self.renamed)

    @property
    def size(self) -> int:
        """Bytes of its pool's parts."""
        return sum(part.record["part"]["bytes"] for part in self.parts)

    def group(self, group: str) -> str:
        """Return the name of one of its groups in the merged pool."""
        return group if self.joins or not group else apart(self._key, group)

    @property
    def _key(self) -> str:
        return self.source.key_check or self.name


@dataclass(frozen=True)
class MergePlan:
    """What a merge does.

    Attributes:
        contributions: Of the stores, by their names in order.
        tombstones: Of all stores.
        key: The user's key, for the groups among them.
        unmapped: Names that stay although others of their column get new ones, with images.
    """

    contributions: Sequence[Contribution]
    tombstones: Tombstones = field(repr=False)
    key: bytes = field(repr=False)
    unmapped: dict[str, Counter[str]]

    @property
    def first(self) -> Contribution:
        """The store that the merged pool goes on from."""
        return self.contributions[0]

    @property
    def groups(self) -> int:
        """Groups of the merged pool."""
        return len(set().union(*(one.groups for one in self.contributions)))

    @property
    def carries_scores(self) -> bool:
        """Whether the first store's scores hold in the merged pool: each of its rows is in it."""
        store = self.first.source.store
        finished = store.scores().exists(MANIFEST) and store.storage.exists(
            f"{PROXY_RUN}/{MANIFEST}"
        )
        return finished and self.first.keeps_all


def plan_merge(config: MergeConfig, sources: Sequence[SourceStore], key: bytes) -> MergePlan:
    """Find what each store brings; reads no pictures and writes nothing.

    Args:
        config: Of the merge.
        sources: The stores, in order.
        key: The user's key; empty without one.

    Raises:
        UsageError: The configuration gives a new name, or a licence, to what no store has.
    """
    if strange := sorted(set(config.licence) - {one.name for one in sources}):
        names = [one.name for one in sources]
        raise UsageError(f"licence: no store '{strange[0]}'.{nearest(strange[0], names)}")
    tombstones = Tombstones.united(one.tombstones for one in sources)
    settling = Settling(lambda row: bool(tombstones.refusal(row, key)))
    spelt: set[str] = set()
    contributions = []
    for source in sources:
        settling.next_store()
        found = _contribution(source, sources[0], settling, config.map, spelt)
        spelt |= set(found.kept_devices)
        contributions.append(found)
    unmapped = _check_names(config.map, contributions)
    return MergePlan(contributions, tombstones, key, unmapped)


def _contribution(
    source: SourceStore, first: SourceStore, settling: Settling, names: NameMap, spelt: set[str]
) -> Contribution:
    """Find what a store brings; ``spelt`` are the devices of those before it."""
    found = Contribution(source, first.joins(source))
    own: list[tuple[set[str], set[str]]] = []
    organs: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for record in source.records:
        columns = source.pool.read_part(record["part"]["file"], COLUMNS)
        ids, contents, groups = (columns[name].to_pylist() for name in COLUMNS[:3])
        rows = settling.settle(ids, contents, groups)
        kept = columns.filter(pa.array(rows.stays(len(ids)), pa.bool_()))
        of_organ, of_device = (Counter(kept[name].to_pylist()) for name in COLUMNS[3:])
        organs += of_organ
        devices += of_device
        found.groups |= {found.group(group) for group in set(kept["group_id"].to_pylist())}
        own.append((set(of_organ), set(of_device)))
        changes = bool(rows.copies or rows.withdrawn or rows.renamed) or not found.joins
        found.parts.append(Part(record, rows, changes))
    found.organs = new_names(organs, {old: new.lower() for old, new in names.organ.items()})
    found.devices = _device_names(devices, names, spelt)
    found.kept_organs = _renamed(organs, found.organs)
    found.kept_devices = _renamed(devices, found.devices)
    found.parts = [
        replace(
            part,
            changes=part.changes or bool(one & found.organs.keys() or two & found.devices.keys()),
        )
        for part, (one, two) in zip(found.parts, own, strict=True)
    ]
    return found


def _device_names(devices: Counter[str], names: NameMap, spelt: set[str]) -> dict[str, str]:
    """Return new names of devices: those of the map, then in the spelling that the pool has."""
    mapped = new_names(devices, names.device)
    others = other_spellings(_renamed(devices, mapped), sorted(spelt))
    found = {name: mapped.get(name, name) for name in devices}
    found = {name: others.get(new, new) for name, new in found.items()}
    return {name: new for name, new in found.items() if name != new}


def _renamed(names: Counter[str], new: dict[str, str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, images in names.items():
        counts[new.get(name, name)] += images
    return counts


def _check_names(names: NameMap, contributions: Sequence[Contribution]) -> dict[str, Counter[str]]:
    """Refuse new names for what no store has; return the names that get none."""
    unmapped = {}
    for column, wanted in (("organ", names.organ), ("device", names.device)):
        known: Counter[str] = Counter()
        for one in contributions:
            known += one.kept_organs if column == "organ" else one.kept_devices
        given = {new for one in contributions for new in getattr(one, f"{column}s")}
        words = {word(name) for name in (*known, *given)}
        for name in wanted:
            if word(name) not in words:
                raise UsageError(
                    f"map: no store has the {column} '{name}'.{nearest(name, list(known))} There "
                    f"are: {counted(known)}. Nothing was written."
                )
        targets = {word(name) for name in wanted.values()}
        left = Counter({name: n for name, n in known.items() if name and word(name) not in targets})
        if wanted and left:
            unmapped[column] = left
    return unmapped


def counted(names: Counter[str]) -> str:
    """Return names with their counts, most first."""
    found = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(f"{name or 'unknown'} {count}" for name, count in found[:SHOWN]) + more
