"""What is noticed while files are read and is no row: what was passed over, whose ids are doubtful.

A finding is a text under a kind. Findings are sets, so that files that are read again (a shard that
was cut short, a retry of the quarantine) are counted once.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from echostill.platform.imaging.images import NoImageError

Notes = dict[str, list[str]]  # as a shard's record keeps them

_COMPANY, _MEMBERS, _KEYS = "company", "members", "keys"
_STUDIES, _NOBODIES = "studies", "nobodies"
_SHORT = 16  # characters of an id that tell it from the others
_NAMED = 8  # names that a sentence lists
_KEPT = 64  # names of a shard: a .json may have others in every file


class Findings:
    """Collects findings, and says them in words."""

    def __init__(self, notes: Iterable[Mapping[str, Sequence[str]]] = ()) -> None:
        """Begin with what was noticed before."""
        self.content = ""  # digest of the bytes of the file that was read last
        self._sets: dict[str, set[str]] = {}
        for one in notes:
            for kind, texts in one.items():
                self._sets.setdefault(kind, set()).update(texts)

    def notes(self) -> Notes:
        """Return everything as plain values."""
        return {kind: sorted(texts) for kind, texts in sorted(self._sets.items())}

    def _add(self, kind: str, text: str) -> None:
        self._sets.setdefault(kind, set()).add(text)

    def _of(self, kind: str) -> set[str]:
        return self._sets.get(kind, set())

    def company(self, file_id: str, error: NoImageError) -> None:
        """A file that is no picture of ultrasound and was not meant to be one."""
        self._add(_COMPANY, f"{file_id[:_SHORT]} {error.kind}")

    def members(self, file_id: str, passed_over: Mapping[str, int]) -> None:
        """Members of an archive that were passed over, by kind."""
        for kind, number in passed_over.items():
            if number:
                self._add(_MEMBERS, f"{file_id[:_SHORT]} {number} {kind}")

    def keys(self, names: Iterable[str]) -> None:
        """Names in the ``.json`` files of an archive that were not used."""
        for name in itertools.islice(sorted(names), max(_KEPT - len(self._of(_KEYS)), 0)):
            self._add(_KEYS, name)

    def group(self, group: str, study: str, nobody: bool) -> None:
        """Whose a file's images are."""
        if nobody:
            self._add(_NOBODIES, group[:_SHORT])
        elif study:
            self._add(_STUDIES, f"{study[:_SHORT]} {group[:_SHORT]}")

    def passed_over(self) -> Counter[str]:
        """Return how many of each kind were no picture, in folders' files and in archives."""
        found: Counter[str] = Counter()
        for text in self._of(_COMPANY):
            found[text.partition(" ")[2]] += 1
        for text in self._of(_MEMBERS):
            _, number, kind = text.split(" ", 2)
            found[f"{kind} in archives"] += int(number)
        return found

    def unused_keys(self) -> str:
        """Say which names in the ``.json`` files of archives were not used."""
        names = sorted(self._of(_KEYS))
        if not names:
            return ""
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        return f"the .json files in archives have names that are not used: {shown}"

    def warnings(self) -> list[str]:
        """Return what is doubtful about the groups, a sentence each."""
        said = []
        if nobodies := len(self._of(_NOBODIES)):
            said.append(
                "the patient's id is a placeholder (such as ANONYMOUS or 0): these files are "
                f"grouped by study instead ({nobodies} "
                f"{'study' if nobodies == 1 else 'studies'}), so images of one patient may be in "
                "several groups"
            )
        owners: dict[str, set[str]] = {}
        for text in self._of(_STUDIES):
            study, _, group = text.partition(" ")
            owners.setdefault(study, set()).add(group)
        if shared := sum(len(groups) > 1 for groups in owners.values()):
            said.append(
                f"{shared} {'study has' if shared == 1 else 'studies have'} images under two or "
                "more patient ids: they are in separate groups although they may show one patient"
            )
        return said


def describe_counts(counts: Mapping[str, int]) -> str:
    """Say what was passed over, the most frequent first; empty where nothing was."""
    ordered = sorted((-number, kind) for kind, number in counts.items() if number)
    return ", ".join(f"{-number} {kind}" for number, kind in ordered)
