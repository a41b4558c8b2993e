"""What an ingest into a pool that exists has to do: the shards that it has, and those to add."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.ingestion.growth.changes import Places, divided, listing
from echostill.curation.ingestion.growth.comparison import Comparison, compare
from echostill.curation.ingestion.growth.known import (
    UNKNOWN,
    KnownFiles,
    add_version,
    drop_unfinished,
)
from echostill.curation.ingestion.manifests.files import Sources
from echostill.platform.config import Config, execution
from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import (
    FINGERPRINT,
    Fingerprint,
    claimed,
    code_version,
    difference,
)
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, decode_parquet
from echostill.platform.tables.versions import Growth
from echostill.platform.withdrawal.tombstones import read_tombstones

# Keys that say what is listed: another value reads no file otherwise.
LISTING_KEYS = ("source", "exclude", "root", "recursive")


class GrowthSettings(Config):
    """How a pool is cut into parts, and what becomes of its files that are not what they were."""

    files_per_shard: int = Field(1024, ge=1, description="Files that one part of the pool holds.")
    bytes_per_shard: int = Field(
        2**30,
        ge=1,
        description="Bytes of cines, volumes and archives after which a part of the pool is full.",
    )
    changed: Literal["refuse", "keep", "read"] = execution(
        "refuse",
        "Files of the pool that have other content now: refuse them, keep the images as they were "
        "read, or read the new content as further images.",
    )
    vanished: Literal["refuse", "keep"] = execution(
        "refuse", "Files of the pool that are no longer there: refuse, or keep their images."
    )


@dataclass(frozen=True)
class Growing:
    """An ingest into a pool that exists.

    Attributes:
        known: The files that stay, and their versions.
        comparison: How they differ from what is listed now.
        fingerprint: What the pool was begun with.
        shards: Files of all shards, old and new; None for one whose files are not all listed now.
        added: The listing of the new ones as Parquet; None where nothing is new.
        new: How many files are new.
        history: Versions of the pool with the new one.
        drops: Whether an unfinished version is given up.
    """

    known: KnownFiles
    comparison: Comparison
    fingerprint: Fingerprint
    shards: list[Sources | None]
    added: bytes | None
    new: int
    history: tuple[Growth, ...]
    drops: bool

    @property
    def files(self) -> int:
        """Files of the pool with the new ones."""
        return len(self.known.files) + self.new

    def begin(self, store: Store) -> None:
        """Record the new version, so that it can be continued."""
        if self.drops:
            drop_unfinished(store, KnownFiles.read(store) or self.known)
        if self.added is not None:
            shards = self.history[-1].parts - self.history[-2].parts
            add_version(store, self.known, self.added, shards, self.history[-1].made_from)

    def check_unfinished(self, finished: Mapping[int, Any]) -> None:
        """Refuse to go on where a shard has to be read whose files are not listed.

        Raises:
            UsageError: There is one.
        """
        lost = [n for n, shard in enumerate(self.shards) if shard is None and n not in finished]
        if lost:
            raise UsageError(
                f"{len(lost)} part(s) of the pool '{self.known.store.pool().root}' must be read "
                "again, and not all of their files are listed: name the sources that the pool was "
                "made from too."
            )

    def notes(self) -> list[str]:
        """Say what is done with the files, a sentence each."""
        comparison, version = self.comparison, len(self.history)
        said = []
        if self.drops:
            said.append("an unfinished version of the pool is begun anew from what is listed now")
        if self.added is not None:
            said.append(
                f"{self.new} new file(s) make version {version} of the pool, beside "
                f"{len(self.known.files)} that are in it"
            )
        if comparison.elsewhere:
            elsewhere = len(comparison.elsewhere)
            said.append(f"{elsewhere} file(s) of the pool are of sources not listed now")
        if comparison.mended:
            said.append(
                f"{len(comparison.mended)} file(s) in quarantine have other content now: "
                "`echostill retry-failed ingest` reads them again"
            )
        return said


def grow(
    store: Store,
    settings: GrowthSettings,
    wanted: Fingerprint,
    listed: Sources,
    data: bytes,
    pseudonymiser: Pseudonymiser,
    *,
    retry: bool,
    own_key: bool,
) -> Growing | None:
    """Compare what is listed with the pool of a store; None where it has none that could grow.

    Args:
        store: The store.
        settings: What becomes of files that have changed or vanished.
        wanted: The fingerprint of a pool of what is listed.
        listed: The files.
        data: Their :func:`~.changes.listing`.
        pseudonymiser: Hides names and places.
        retry: Whether only files of the pool are read again.
        own_key: Whether the user gave the key.

    Raises:
        UsageError: The pool was made under another key or configuration, or files of it have
            changed or vanished and nothing says what becomes of them, or it is being merged.
    """
    if store.contributors().exists(FINGERPRINT) and not store.contributors().exists(MANIFEST):
        raise UsageError(
            f"a merge into the store '{store.root}' has begun and not ended: run `echostill merge` "
            "again to finish it."
        )
    known = KnownFiles.read(store)
    if known is None:
        return None
    if retry:
        known = known.finished()
    begun = claimed(store.pool())
    _refuse_other(store, begun, wanted, own_key)
    table = decode_parquet(data)
    comparison = compare(known, listed, table, pseudonymiser)
    drops = not retry and _is_abandoned(known, comparison)
    if drops:
        known = known.finished()
        comparison = compare(known, listed, table, pseudonymiser)
    complaint = comparison.complaint(settings.changed != "refuse", settings.vanished != "refuse")
    if complaint and not retry:
        raise UsageError(
            f"refused: of the pool '{store.pool().root}' there are {complaint}. Its images can "
            "stay as they were read: changed=keep, vanished=keep. With changed=read new content "
            "is read as further images."
        )
    if retry and comparison.new:
        raise UsageError(
            f"refused: {comparison.describe()}. Run `echostill ingest` first, which adds new files "
            "to the pool; `retry-failed` reads files of the pool again."
        )
    new = listed[:0]
    if not retry:
        new = _new(comparison, listed, settings, Places(pseudonymiser))
    added = cut_shards(new, settings)
    shards = [*_old(known, comparison, listed, settings), *(new[rows] for rows in added)]
    history, rows = tuple(known.history), None
    if added:
        gone = read_tombstones(store.storage)
        rows, _ = listing(new, added, pseudonymiser, known.history[-1].parts, gone)
        said = {key: wanted.configuration.get(key) for key in LISTING_KEYS}
        made_from = {**said, "files": len(new), "code": code_version()}
        history = (*history, Growth(len(shards), made_from))
    return Growing(known, comparison, begun, shards, rows, len(new), history, drops)


def _refuse_other(store: Store, begun: Fingerprint, wanted: Fingerprint, own_key: bool) -> None:
    """Refuse a pool that was made under another key, or whose files were read otherwise."""

    def comparable(one: Fingerprint) -> Fingerprint:
        kept = {key: v for key, v in one.configuration.items() if key not in LISTING_KEYS}
        return replace(one, configuration=kept, code="", inputs={**one.inputs, "files": ""})

    key = (
        "the key check differs, and another key for identifiers (key_file, ECHOSTILL_KEY) would "
        "make other groups"
    )
    if not own_key:
        key = (
            "the key of this pool comes from its own files, and too few of them are listed: name "
            "the sources that it was made from too, or read them all anew under a key of your own "
            "(key_file)"
        )
    old, new = (comparable(one).as_dict() for one in (begun, wanted))
    if changes := "; ".join(difference(old, new, {"inputs.key check": lambda: key})):
        raise UsageError(
            f"refused: {changes}. The pool '{store.pool().root}' grows by files that are read as "
            "its others were: use another store, or --overwrite to replace it."
        )


def _is_abandoned(known: KnownFiles, comparison: Comparison) -> bool:
    """Whether a version is unfinished and its files are no longer all listed as they were."""
    changed = {*comparison.changed, *comparison.described}
    return any(
        file.version > known.declared and (number not in comparison.found or number in changed)
        for number, file in enumerate(known.files)
    )


def _new(
    comparison: Comparison, listed: Sources, settings: GrowthSettings, place: Places
) -> Sources:
    """Return the files to read, in the order of the listing."""
    again = comparison.changed if settings.changed == "read" else []
    rows = sorted([*comparison.new, *(comparison.found[number] for number in again)])
    new, unknown = listed.take(np.array(rows, np.int64)), set(comparison.new)
    taken = {file.id for file in comparison.known.files if file.id}
    repeated = {
        number: "has the same id as a file that is in the pool"
        for number, (row, source) in enumerate(zip(rows, new, strict=True))
        if row in unknown and not source.problem and place.of(source.id) in taken
    }
    return new.with_words(problem=new.words["problem"].changed(repeated))


def cut_shards(new: Sources, settings: GrowthSettings) -> list[slice]:
    """Divide files into shards, in their order; return the rows of each."""
    return divided(new, settings.files_per_shard, settings.bytes_per_shard)


def _old(
    known: KnownFiles, comparison: Comparison, listed: Sources, settings: GrowthSettings
) -> list[Sources | None]:
    """Return the files of the pool's shards, None for a shard that is not listed whole."""
    parts = known.history[-1].parts
    shards: dict[int, list[int | None]] = defaultdict(list)
    for number, file in enumerate(known.files):
        shards[file.shard].append(comparison.found.get(number))
    if UNKNOWN in shards:  # an earlier release did not keep where it had cut
        rows = [row for row in shards[UNKNOWN] if row is not None]
        cut = cut_shards(listed.take(np.array(rows, np.int64)), settings)
        whole = len(rows) == len(shards[UNKNOWN]) and len(cut) == known.history[0].parts
        shards |= {number: [*rows[each]] for number, each in enumerate(cut)} if whole else {}
    whole_shards: list[Sources | None] = []
    for shard in range(parts):
        rows = [row for row in shards.get(shard, []) if row is not None]
        is_whole = len(rows) == len(shards.get(shard, [None]))
        whole_shards.append(listed.take(np.array(rows, np.int64)) if is_whole else None)
    return whole_shards
