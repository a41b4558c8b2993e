"""What the service knows about a store: mapped tables, refreshed when the store changes."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from echostill.curation.selection.decided.pin_table import Pin, in_force, read_pins
from echostill.curation.service import children
from echostill.curation.service.data.catalogue import Catalogue
from echostill.curation.service.data.coresets import Coreset, Entry, read_entry, write_coreset
from echostill.curation.service.data.derived import Derived, derived_folder, derived_of, open_scores
from echostill.curation.service.data.neighbours import NeighbourIndex
from echostill.curation.service.data.thumbnails import Thumbnails
from echostill.curation.service.problems import Problem, not_ready, unknown
from echostill.platform.errors import EchostillError, nearest
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.withdrawal.state import PENDING, TOMBSTONES

LOGGER = logging.getLogger("echostill.service")
REFRESH_SECONDS = 2.0  # between checks whether the store has changed
DEFAULT_CORESET = "default"
COMPARED_IDS = 100  # for a hint at a mistyped one
READY, BUILDING, FAILED, ABSENT = "ready", "building", "failed", "absent"


@dataclass
class Preparation:
    """Progress of the derived files."""

    state: str = BUILDING
    stage: str = ""
    fraction: float = 0.0
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Pins:
    """Pins and bans of the store.

    Attributes:
        all: every pin and ban, oldest first, removed ones included.
        active: by image id, the pin or ban that applies: the latest one.
        pinned, banned: rows of the catalogue, ascending.
    """

    all: list[Pin] = field(default_factory=list)
    active: dict[str, Pin] = field(default_factory=dict)
    pinned: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    banned: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class State:
    """A store, mapped into memory. Any thread may read it: what changes is replaced as a whole."""

    def __init__(self, root: str, folder: str | None = None) -> None:
        """Open a store; :meth:`start` maps it.

        Raises:
            UsageError: There is no pool.
        """
        self.store = Store(root)
        self.store.open_pool()
        self._given_folder = folder
        self.folder = derived_folder(self.store, folder)
        self.preparation = Preparation()
        self.entries: dict[str, Entry] = {}
        self.pins = Pins()
        self.merged = False  # whether the pool was merged from other stores'
        self.neighbours: NeighbourIndex | None = None
        self.coordinates: np.ndarray | None = None  # (N, 2), of the map
        self._catalogue: Catalogue | None = None
        self._thumbnails: Thumbnails | None = None
        self._derived: Derived | None = None
        self._coresets: dict[tuple[str, str], Coreset] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}
        self._lock = threading.RLock()
        self._mapping = threading.Lock()
        self._stop = threading.Event()
        self._child: Any = None
        self._warmed = False
        self._threads: list[threading.Thread] = []
        self._withdrawn = self._withdrawal_marks()

    def start(self) -> None:
        """Map what exists, and prepare the rest in the background."""
        self.refresh()
        for work in (self._watch, self._prepare, self._warm):
            self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=work.__name__, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """End the background work."""
        self._stop.set()
        if self._child is not None:
            children.stop(self._child)
        for thread in self._threads:
            thread.join(timeout=children.GRACE * 2)

    @property
    def ready(self) -> bool:
        """Whether every request that the store allows can be answered without delay."""
        derived = self._catalogue is not None and self.preparation.state in (READY, ABSENT)
        name = self.default_name()
        mapped = {key[0] for key in self._coresets}
        return derived and (name is None or name in mapped or self._warmed)

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue.

        Raises:
            Problem: It is still being built.
        """
        if self.store.storage.is_local and self._withdrawal_marks() != self._withdrawn:
            self.refresh()  # nothing that was withdrawn is shown again; buckets are only watched
        catalogue = self._catalogue
        if catalogue is None:
            if self.preparation.state == FAILED:
                raise Problem(503, "not-ready", self.preparation.message)
            if self._withdrawn[0] is not None:
                raise not_ready("images are being withdrawn from this store.", 2)
            raise not_ready("the catalogue of the pool is being built.", 2)
        return catalogue

    @property
    def thumbnails(self) -> Thumbnails:
        """The pool's pictures."""
        _ = self.catalogue
        assert self._thumbnails is not None
        return self._thumbnails

    def refresh(self) -> None:
        """Check the store for another pool, new coresets and pins, and finished derived files."""
        with self._lock:
            noticed = self._withdrawal_marks() != self._withdrawn or self._replaced()
            if noticed:
                self._forget()
            if self._withdrawn[0] is not None:
                return
            if noticed:
                self.folder = derived_folder(self.store, self._given_folder)
            self._map_derived()
            self._read_entries()
            self._read_pins()
            self.merged = self.store.origins().exists(MANIFEST)
        if noticed:
            self._run(self._prepare)

    def _replaced(self) -> bool:
        """Whether pool or scores have grown, or were made again, since they were mapped."""
        if self._derived is None or not self._tables_changed():
            return False
        try:
            return derived_of(self.store, self.folder).key != self._derived.key
        except (EchostillError, OSError, ValueError):
            self._seen.pop("pool", None)  # look again
            raise

    def _withdrawal_marks(self) -> tuple[tuple[Any, ...] | None, ...]:
        """What changes when a withdrawal begins and ends; the first is None where none is open."""
        storage = self.store.storage
        return storage.mark(PENDING), storage.mark(TOMBSTONES)

    def _forget(self) -> None:
        """Forget all that is known of the store: it has other images than before."""
        self._withdrawn = self._withdrawal_marks()
        child, self._child = self._child, None
        if child is not None:
            children.stop(child)
        self._catalogue = self._thumbnails = self._derived = None
        self.neighbours = self.coordinates = None
        self.preparation, self.pins = Preparation(), Pins()
        self.entries, self._coresets, self._seen = {}, {}, {}

    def forget(self, name: str) -> None:
        """Let go of a coreset that was deleted or renamed, and of what was derived from it."""
        known = self.entries.get(name)
        self.refresh()
        if known is None or self._derived is None or name in self.entries:
            return
        self._coresets = {key: kept for key, kept in self._coresets.items() if key[0] != name}
        self._derived.coreset(name, known.table.digest).unlink(missing_ok=True)

    def entry(self, name: str) -> Entry:
        """Return a finished coreset's description.

        Raises:
            Problem: There is none of that name; names the nearest.
        """
        found = self.entries.get(name)
        if found is None:
            self.refresh()
            found = self.entries.get(name)
        if found is None:
            known = sorted(self.entries)
            existing = f" There are: {', '.join(known)}." if known else " There is none yet."
            raise unknown("coreset", f"no coreset '{name}'.{nearest(name, known)}{existing}")
        return found

    def default_name(self) -> str | None:
        """Name of the coreset that answers when none is named: 'default', else the newest."""
        if DEFAULT_CORESET in self.entries:
            return DEFAULT_CORESET
        newest = sorted(self.entries.values(), key=lambda entry: (entry.created, entry.name))
        return newest[-1].name if newest else None

    def coreset(self, name: str | None) -> Coreset:
        """Return a mapped coreset; the first use of one takes a moment.

        Raises:
            Problem: There is none of that name, or none at all.
        """
        name = name or self.default_name()
        if name is None:
            raise unknown("coreset", "there is no coreset yet: pick one (`echostill select`).")
        entry, catalogue = self.entry(name), self.catalogue
        key = (name, entry.table.digest)
        found = self._coresets.get(key)
        if found is not None:
            return found
        with self._mapping:
            if key not in self._coresets:
                path = self.coreset_file(entry)
                coreset = Coreset(entry, path, catalogue)
                others = {k: v for k, v in self._coresets.items() if k[0] != name}
                self._coresets = {**others, key: coreset}
            return self._coresets[key]

    def default_coreset(self, name: str | None) -> Coreset | None:
        """Return the named coreset, or the default one; None if none is named and none exists."""
        return self.coreset(name) if name is not None or self.entries else None

    def row(self, image_id: str) -> int:
        """Return an image's row in the catalogue.

        Raises:
            Problem: No such image; suggests an id that begins alike.
        """
        row = self.catalogue.ids.find(image_id)
        if row is None:
            hint = self._similar_id(image_id)
            raise unknown("image", f"no image '{image_id[:64]}' in the pool.{hint}")
        return row

    def _similar_id(self, image_id: str) -> str:
        """A hint for the user: the nearest of the ids that share the longest prefix."""
        ids = self.catalogue.ids
        for length in range(min(len(image_id), 32), 3, -1):
            rows = ids.with_prefix(image_id[:length])
            if len(rows):
                return nearest(image_id, [ids[row] for row in rows[:COMPARED_IDS]])
        return ""

    def coreset_file(self, entry: Entry) -> Path:
        """Return the mapped file of a coreset, writing it if it is missing."""
        assert self._derived is not None
        path = self._derived.coreset(entry.name, entry.table.digest)
        if not path.exists():
            write_coreset(path, entry.table, self.catalogue)
            for old in self._derived.replaced_coresets(entry.name, entry.table.digest):
                old.unlink(missing_ok=True)
        return path

    @property
    def derived(self) -> Derived:
        """Names of the derived files that are in use."""
        _ = self.catalogue
        assert self._derived is not None
        return self._derived

    def _map_derived(self) -> None:
        if self._derived is None:
            self._tables_changed()  # from here on
            self._derived = derived_of(self.store, self.folder)
        derived = self._derived
        if self._catalogue is None and derived.catalogue.exists():
            self._thumbnails = Thumbnails(self.store.open_pool())
            self._catalogue = Catalogue(derived.catalogue)
        if self.neighbours is None and derived.neighbours.exists():
            self.neighbours = NeighbourIndex(derived.neighbours)
        if self.coordinates is None and derived.map.exists():
            self.coordinates = np.load(derived.map, mmap_mode="r")
        if not derived.missing():
            self.preparation = Preparation(READY if derived.scored else ABSENT, "", 1.0, "")

    def _tables_changed(self) -> bool:
        return any(
            [
                self._changed("pool", self.store.pool()),
                self._changed("scores", self.store.scores()),
            ]
        )

    def _read_entries(self) -> None:
        found: dict[str, Entry] = {}
        for name in self.store.coreset_names():
            mark = self.store.coreset(name).mark(MANIFEST)
            if mark is None:
                continue
            known = self.entries.get(name)
            if known is not None and self._seen.get(f"coreset {name}") == mark:
                found[name] = known
                continue
            try:
                made = datetime.fromtimestamp(mark[0] / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                table = Table.open(self.store.coreset(name), "select")
                found[name] = read_entry(name, table, made)
                self._seen[f"coreset {name}"] = mark
            except (EchostillError, OSError, ValueError, KeyError) as error:
                LOGGER.warning("coreset '%s' cannot be read: %s", name, error)
        self.entries = found

    def _read_pins(self) -> None:
        if self._catalogue is None:
            return
        if not self._changed("pins", self.store.pins()):
            return
        every = read_pins(self.store)
        active = in_force(every)
        rows: dict[str, list[int]] = {"pin": [], "ban": []}
        for image_id, pin in active.items():
            row = self._catalogue.ids.find(image_id)
            if row is not None:
                rows[pin.action].append(row)
        pinned, banned = (np.sort(np.array(rows[a], dtype=np.int64)) for a in ("pin", "ban"))
        self.pins = Pins(every, active, pinned, banned)

    def _changed(self, name: str, table: Storage) -> bool:
        mark = table.mark(MANIFEST)
        if self._seen.get(name) == mark:
            return False
        self._seen[name] = mark or ()
        return mark is not None

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            try:
                self.refresh()
            except (EchostillError, OSError, ValueError) as error:
                LOGGER.warning("cannot read the store: %s", error)

    def _warm(self) -> None:
        """Map the default coreset before the first request for it."""
        while self._catalogue is None:
            if self._stop.wait(0.1):
                return
        try:
            if self.entries:
                self.coreset(None).warm()
        except (Problem, EchostillError, OSError, ValueError) as error:
            LOGGER.warning("the default coreset cannot be mapped: %s", error)
        self._warmed = True

    def _prepare(self) -> None:
        """Build what is missing in a child process."""
        assert self._derived is not None
        if not self._derived.missing():
            return
        module = "echostill.curation.service.data.derived"
        self._child = child = children.start(module, self.store.root, str(self.folder))
        done, error = False, ""
        for event in children.messages(child):
            done, error = event.get("done", done), event.get("error", error)
            if "stage" in event:
                self.preparation = Preparation(BUILDING, event["stage"], event["fraction"])
                self.refresh()
        if self._stop.is_set() or child is not self._child:
            return
        if done:
            self.refresh()
        else:
            text = error or f"preparing the store failed with exit code {child.returncode}"
            LOGGER.error("%s", text)
            self.preparation = Preparation(FAILED, message=text)

    def scores(self) -> Table | None:
        """The scores table, where there is one."""
        return open_scores(self.store)
