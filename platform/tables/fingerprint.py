"""Fingerprints: what a result depends on, and whether a half-finished one may be continued."""

import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from echostill.platform.config import StageConfig, result_relevant
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage, sha256

FINGERPRINT = "fingerprint.json"


def code_version() -> str:
    """Return the installed version of echostill."""
    return metadata.version("echostill")


@dataclass(frozen=True)
class Fingerprint:
    """Configuration, code version, model weights and input tables of a result."""

    configuration: dict[str, Any]
    code: str
    weights: dict[str, str]
    inputs: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the digest over the rest."""
        parts = {
            "configuration": self.configuration,
            "code": self.code,
            "weights": self.weights,
            "inputs": self.inputs,
        }
        return {**parts, "digest": sha256(json.dumps(parts, sort_keys=True).encode())}

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the whole."""
        return str(self.as_dict()["digest"])


def fingerprint(
    config: StageConfig,
    *,
    weights: dict[str, str] | None = None,
    inputs: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> Fingerprint:
    """Describe what a stage's result depends on.

    Args:
        config: The resolved configuration; fields that only steer execution are left out.
        weights: Digest of each weights file used, by role.
        inputs: Digest of each input table, by name.
        without: Keys to leave out because ``weights`` or ``inputs`` say the same by content.
    """
    values = {key: value for key, value in result_relevant(config).items() if key not in without}
    return Fingerprint(values, code_version(), weights or {}, inputs or {})


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return lines that say what differs between two fingerprints."""
    before, after = flatten(old), flatten(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if key != "digest" and before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}")
    return lines


def claimed(storage: Storage) -> Fingerprint:
    """Return the fingerprint that a folder was claimed with."""
    values = json.loads(storage.read(FINGERPRINT))
    return Fingerprint(**{key: values[key] for key in values if key != "digest"})


def claim(storage: Storage, wanted: Fingerprint, what: str, overwrite: bool) -> None:
    """Claim a folder for a result: new, or continuing one with the same fingerprint.

    Raises:
        UsageError: The folder holds (part of) a result with another fingerprint; says what differs.
    """
    new = wanted.as_dict()
    if storage.exists(FINGERPRINT):
        old = json.loads(storage.read(FINGERPRINT))
        if old["digest"] == new["digest"]:
            return
        if not overwrite:
            changes = "; ".join(difference(old, new))
            raise UsageError(
                f"'{storage.root}' holds {what} made from something else ({changes}). "
                "Use another store or name, or --overwrite to replace it."
            )
        storage.delete("")
    storage.write(FINGERPRINT, json.dumps(new, indent=1, sort_keys=True).encode())
