"""What is to be withdrawn: a group, a patient or an image, and all that the store holds of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.deidentification.pseudonyms import key_check, keyed_hash
from echostill.curation.ingestion.keys import KEY_SHARES
from echostill.curation.ingestion.patients.spelling import patient_group
from echostill.platform.errors import UsageError, nearest
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store
from echostill.platform.withdrawal.tables import column_parts, part_columns
from echostill.platform.withdrawal.traces import Traces

IMAGE: Final = "image"
GROUP: Final = "group"
PATIENT: Final = "patient"
_HELD = ("quarantine/ingest", "quarantine/score")
_POOL = ("image_id", "group_id", "source", "content_hash")


class NothingFoundError(UsageError):
    """The store holds nothing of what is to be withdrawn."""


@dataclass(frozen=True)
class WithdrawalRequest:
    """What is to be withdrawn.

    Attributes:
        kind: What ``value`` names.
        value: An image's id, a group's id as in the pool, or a patient's id as in the files.
        issuer: Of a patient's id (DICOM's IssuerOfPatientID).
    """

    kind: Literal["image", "group", "patient"]
    value: str
    issuer: str = ""

    def groups(self, key: bytes | None) -> list[str]:
        """Return the groups that it may mean, as they may be in the pool.

        Raises:
            UsageError: A patient, without the key.
        """
        if self.kind != PATIENT:
            return [self.value] if self.kind == GROUP else []
        if key is None:
            raise UsageError(
                "--patient needs the key that the pool was made with: give the configuration with "
                "its key_file, --key-file, or the variable ECHOSTILL_KEY. Without one, withdraw by "
                "--group, with the group_id of one of the patient's images."
            )
        found = []
        for issuer in dict.fromkeys((self.issuer, "")):
            group = patient_group(self.value, key, issuer)
            found += [group, keyed_hash(key, "group", group)] if group else []
        return found


@dataclass(frozen=True)
class WithdrawnImages:
    """What a store holds of it.

    Attributes:
        kind: Of the request.
        traces: Its names.
        asked: Groups that were asked for.
        contents: Hashes of its pixels.
        staged: SHA-256 of its staged pictures.
        images: Rows of the pool.
        copies: How many of these were not asked for, but have the same pixels.
        waiting: Frames held back for review, and files in quarantine.
    """

    kind: str
    traces: Traces
    asked: tuple[str, ...]
    contents: tuple[str, ...]
    staged: tuple[str, ...]
    images: int
    copies: int
    waiting: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        named = {field.name: getattr(self.traces, field.name) for field in fields(Traces)}
        return {**vars(self), "traces": {name: sorted(names) for name, names in named.items()}}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "WithdrawnImages":
        """Read what :meth:`as_dict` gave."""
        traces = Traces(**{name: frozenset(found) for name, found in values["traces"].items()})
        lists = {name: tuple(values[name]) for name in ("asked", "contents", "staged")}
        return cls(**{**values, **lists, "traces": traces})


def check_user_key(store: Store, key: bytes | None, kind: str) -> bytes | None:
    """Return the key that the pool's identifiers are under, if it is the user's.

    Args:
        store: The store.
        key: The user's key.
        kind: Of the request.

    Raises:
        UsageError: It is another key, or none where one is needed.
    """
    pool = store.pool()
    kept = json.loads(pool.read(FINGERPRINT)) if pool.exists(FINGERPRINT) else {}
    check = kept.get("inputs", {}).get("key check")
    if check is None or pool.exists(KEY_SHARES):
        return None
    if key is None:
        if kind == IMAGE:
            return None
        raise UsageError(
            f"--{kind} needs the key that the pool '{store.root}' was made with, for a tombstone "
            "that refuses later files of the same patient: give the configuration with its "
            "key_file, --key-file, or the variable ECHOSTILL_KEY."
        )
    if key_check(key) != check:
        raise UsageError(
            f"the key is not the one that the pool '{store.root}' was made with: expected one "
            f"with the check {check}, this one has {key_check(key)}."
        )
    return key


def find_images(store: Store, request: WithdrawalRequest, key: bytes | None) -> WithdrawnImages:
    """Find all that a store holds of what is to be withdrawn.

    Args:
        store: The store.
        request: What is to be withdrawn.
        key: The key that the pool's identifiers are under, if it is the user's.

    Raises:
        NothingFoundError: It holds nothing of it.
    """
    groups = request.groups(key)
    pool = [part.select(list(_POOL)) for _, part in column_parts(store.pool(), _POOL)]
    rows = pa.concat_tables(pool) if pool else None
    review = [r for _, p in column_parts(store.storage.at("review"), _POOL) for r in p.to_pylist()]
    held = [r for place in _HELD for _, p in _quarantine(store, place) for r in p.to_pylist()]
    asked, images = _asked(rows, request, groups)
    ids = set(images["image_id"].to_pylist()) if images is not None else set()
    if request.kind == IMAGE:
        ids |= {row["id"] for row in held if row["id"] == request.value}
    ids |= {row["image_id"] for row in review if row["group_id"] in groups}
    if not ids:
        raise NothingFoundError(_nothing(store, request, rows))
    sources = set() if images is None else set(images["source"].to_pylist())
    sources |= {row["source"] for row in [*review, *held] if _id_of(row) in ids}
    sources.discard("")
    ids |= {row["id"] for row in held if row["source"] in sources}
    left = _left(rows, review, held, ids)
    own = set() if images is None else set(images["group_id"].to_pylist())
    own |= {row["group_id"] for row in review if row["image_id"] in ids}
    traces = Traces(
        frozenset(ids),
        frozenset(sources),
        frozenset({file_of(source) for source in sources} - left["files"]),
        frozenset(own - left["groups"] - {""}),
    )
    contents = set() if images is None else set(images["content_hash"].to_pylist()) - {"", None}
    count = 0 if images is None else images.num_rows
    return WithdrawnImages(
        request.kind,
        traces,
        tuple(group for group in groups if group in own),
        tuple(sorted(contents)),
        tuple(sorted(_staged(store, ids))),
        count,
        count - asked,
        sum(_id_of(row) in ids for row in held),
    )


def _quarantine(store: Store, place: str) -> Any:
    return column_parts(store.table(place), ("id", "source"))


def _id_of(row: Mapping[str, Any]) -> str:
    return str(row.get("image_id") or row.get("id") or "")


def _asked(
    rows: pa.Table | None, request: WithdrawalRequest, groups: list[str]
) -> tuple[int, pa.Table | None]:
    """Return how many rows of the pool are asked for, and these with all that show the same."""
    if rows is None:
        return 0, None
    if request.kind == IMAGE:
        mask = pc.equal(rows["image_id"], request.value)
    else:
        mask = pc.is_in(rows["group_id"], value_set=pa.array(groups, pa.string()))
    asked = rows.filter(mask)
    known = [one for one in asked["content_hash"].to_pylist() if one]
    same = pc.is_in(rows["content_hash"], value_set=pa.array(sorted(set(known)), pa.string()))
    return asked.num_rows, rows.filter(pc.or_(mask, same))


def _left(
    rows: pa.Table | None,
    review: list[dict[str, Any]],
    held: list[dict[str, Any]],
    ids: set[str],
) -> dict[str, set[str]]:
    """Return the files and groups of which something is left."""
    others = [] if rows is None else rows.select(["image_id", "group_id", "source"]).to_pylist()
    stay = [row for row in [*others, *review, *held] if _id_of(row) not in ids]
    return {
        "files": {file_of(row["source"]) for row in stay if row["source"]},
        "groups": {row["group_id"] for row in stay if row.get("group_id")},
    }


def file_of(source: str) -> str:
    """Return the name of a file, given the source of one of its frames."""
    stem, mark, frame = source.rpartition("#")
    return stem if mark and frame.isdigit() else source


def _staged(store: Store, ids: set[str]) -> set[str]:
    """Return the SHA-256 of the staged pictures."""
    wanted = pa.array(sorted(ids), pa.string())
    found = set()
    for name, part in column_parts(store.pool(), ("image_id",)):
        mask = pc.is_in(part["image_id"], value_set=wanted)
        if pc.any(mask).as_py():
            images = part_columns(store.pool(), name, ("image",))["image"].filter(mask)
            found |= {sha256(data) for data in images.to_pylist() if data}
    return found


def _nothing(store: Store, request: WithdrawalRequest, rows: pa.Table | None) -> str:
    said = f"'{store.root}' holds nothing of "
    if request.kind == PATIENT:
        return (
            f"{said}this patient. Ids of DICOM patients go with their issuer: give it with "
            "--issuer. Where the user gave groups, or files name only studies, withdraw by --group."
        )
    column = "image_id" if request.kind == IMAGE else "group_id"
    known = [] if rows is None else sorted(set(rows[column].to_pylist()))
    return f"{said}the {request.kind} '{request.value}'.{nearest(request.value, known)}"
