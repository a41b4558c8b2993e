"""Fingerprints: what a result depends on, and whether a half-finished one may be continued."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from echostill.platform.errors import UsageError
from echostill.platform.progress import console
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import MANIFEST

if TYPE_CHECKING:
    from echostill.platform.config import StageConfig

FINGERPRINT = "fingerprint.json"
SHOWN = 60  # characters of a value in a message
_PARTS = ("configuration", "code", "weights", "inputs")


def code_version() -> str:
    """Return the installed version of echostill."""
    from importlib import metadata

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
    config: "StageConfig",
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
    from echostill.platform.config import result_relevant

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


def difference(
    old: dict[str, Any],
    new: dict[str, Any],
    explained: Mapping[str, Callable[[], str]] | None = None,
) -> list[str]:
    """Say in words what differs between two fingerprints, one text for each part.

    Args:
        old: The fingerprint as plain values, with what was said ``about`` its parts.
        new: The other one.
        explained: For a part that is a digest (``inputs.files``), what says how it differs.
    """
    before = flatten({part: old.get(part, {}) for part in _PARTS})
    after = flatten({part: new.get(part, {}) for part in _PARTS})
    about = old.get("about", {}), new.get("about", {})
    lines = []
    for key in sorted(before.keys() | after.keys()):
        values = before.get(key), after.get(key)
        if values[0] == values[1]:
            continue
        part, _, name = key.partition(".")
        if explained and key in explained:
            lines.append(explained[key]())
        elif part == "configuration":
            was, is_now = (_shown(each, key) for each in (before, after))
            lines.append(f"{name} {was} -> {is_now}")
        elif part == "code":
            lines.append(f"echostill {values[0]} -> {values[1]}")
        else:
            what = f"weights of the {name}" if part == "weights" else name
            said = tuple(each.get(key, "") for each in about)
            lines.append(f"{what}: {_change_of_digest(values, said)}")
    return lines


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "unset"
    value = values[key]
    text = (value or "''") if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _change_of_digest(values: tuple[Any, Any], said: tuple[str, str]) -> str:
    if None in values:
        was, now = (
            text or ("some" if value else "none") for text, value in zip(said, values, strict=True)
        )
        return f"{was} -> {now}"
    if said[0] != said[1] and all(said):
        return f"{said[0]} -> {said[1]}"
    kept = f"{said[1]}, but " if said[1] else ""
    return f"{kept}with other content ({values[0][:8]} -> {values[1][:8]})"


def claimed(storage: Storage) -> Fingerprint:
    """Return the fingerprint that a folder was claimed with."""
    values = json.loads(storage.read(FINGERPRINT))
    return Fingerprint(**{key: values[key] for key in _PARTS})


@dataclass(frozen=True)
class Claim:
    """A folder that a stage wants for its result.

    Attributes:
        storage: The folder.
        wanted: What the result depends on.
        stage: Name of the stage.
        what: The result in words, such as ``a coreset``.
        shared_with: Another stage that writes into the same folder.
        about: What to say of a part that is a digest, by the part's key: ``inputs.pool`` or
            ``weights.teacher``.
        explained: For such a part, what says how it differs.
    """

    storage: Storage
    wanted: Fingerprint
    stage: str
    what: str
    shared_with: str = ""
    about: dict[str, str] = field(default_factory=dict)
    explained: dict[str, Callable[[], str]] = field(default_factory=dict)

    def check(self, overwrite: bool = False) -> bool:
        """Say whether the folder holds (part of) another result, which would be replaced.

        Args:
            overwrite: Whether another result of the same stage may be replaced.

        Raises:
            UsageError: It may not, or what is there was made by another stage or by nobody we know.
        """
        if not self.storage.exists(FINGERPRINT):
            self._check_unclaimed()
            return False
        old = json.loads(self.storage.read(FINGERPRINT))
        if old["digest"] == self.wanted.digest:
            return False
        self._check_maker(self._maker(old))
        if not overwrite:
            changes = "; ".join(difference(old, self._written(), self.explained))
            raise UsageError(
                f"refused: {changes}. '{self.storage.root}' holds {self.what} made from something "
                "else: use another store or name, or --overwrite to replace it."
            )
        return True

    def take(self, overwrite: bool) -> None:
        """Claim the folder: new, continuing the same result, or replacing another one.

        Raises:
            UsageError: As :meth:`check`.
        """
        if self.check(overwrite):
            # The fingerprint goes last: whoever kills this in the middle leaves a claimed folder.
            names = [name for name in self.storage.list(recursive=True) if name != FINGERPRINT]
            for name in sorted(names, key=lambda name: name != MANIFEST):
                self.storage.delete(name)
        elif self.storage.exists(FINGERPRINT):
            if overwrite:
                console.print(
                    f"--overwrite replaces nothing: '{self.storage.root}' holds {self.what} of "
                    "this very request, which is kept. Delete the folder to make it anew.",
                    markup=False,
                    soft_wrap=True,
                )
            return
        data = json.dumps(self._written(), indent=1, sort_keys=True).encode()
        self.storage.write(FINGERPRINT, data)

    def _written(self) -> dict[str, Any]:
        return {**self.wanted.as_dict(), "stage": self.stage, "about": self.about}

    def _check_unclaimed(self) -> None:
        """Refuse a folder that nobody has claimed and that holds something."""
        if self.storage.exists(MANIFEST):  # a table that was brought here without its fingerprint
            self._check_maker(self._maker({}))
            return
        strangers = self.storage.list(recursive=True)
        if strangers:
            raise UsageError(
                f"'{self.storage.root}' is not empty, and no stage made what is in it "
                f"('{strangers[0]}', ...): move it away, or use another store or name."
            )

    def _check_maker(self, maker: str) -> None:
        if maker not in ("", self.stage, self.shared_with):
            raise UsageError(
                f"'{self.storage.root}' was made by `echostill {maker}`, and `{self.stage}` does "
                "not replace it, with --overwrite or without: use another name."
            )

    def _maker(self, old: dict[str, Any]) -> str:
        """Name of the stage that claimed the folder; folders of before say it in the manifest."""
        if "stage" in old:
            return str(old["stage"])
        if not self.storage.exists(MANIFEST):
            return ""
        return str(json.loads(self.storage.read(MANIFEST)).get("stage", ""))
