"""The sets of weights that a file holds: found under containers and prefixes, told apart by name.

A training file often holds several: a student and its teacher, the weights and their moving
average (EMA). Each is a mapping of its own (`model_ema`), or shares a mapping with the others and
differs by the first words of its keys (`teacher.backbone.`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from echostill.platform.errors import UsageError, nearest

# What torch itself puts in front of a wrapped module's name, also in the middle of a key.
INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Words that the modules around a network put in front, taken off in any order and number.
WRAPPERS = ("_forward_module.", "module.", "model.", "encoder.", "backbone.", "net.", "network.")
# Words that tell several networks of one mapping apart; a file with one of them alone holds it.
STUDENTS = ("student", "student_backbone", "online_network", "online_encoder", "base_encoder")
TEACHERS = ("teacher", "teacher_backbone", "target_network", "target_encoder", "momentum_encoder")
AVERAGES = ("model_ema", "ema_model", "module_ema", "ema", "averaged_model")
ROLES = tuple(f"{name}." for name in (*STUDENTS, *TEACHERS, *AVERAGES, "encoder_q", "encoder_k"))

# Which set is taken where several fit: what is called the model itself, then DINO's teacher (its
# own choice for evaluation). The others are named beside it, and `key` takes any of them.
PREFERENCE = (
    *("model", "state_dict", "model_state_dict", "module", "network", "net", "weights"),
    *("backbone", "encoder", "", "teacher", "student"),
)
_DEPTH = 4  # containers inside containers
_LISTED = 10


@dataclass(frozen=True)
class WeightSet:
    """One set of weights of a file.

    Attributes:
        name: what `key` calls it: the containers it lies in and the word its keys begin with, such
            as `model.teacher`; empty for a file that holds one set at its top.
        tensors: by the key without wrappers.
        strange: keys beside them whose values are no tensors.
        twice: two keys of the file that give the same key without wrappers, where there are any.
    """

    name: str
    tensors: dict[str, Tensor]
    strange: tuple[str, ...] = ()
    twice: tuple[str, str] | None = None

    @property
    def rank(self) -> int:
        """Rank of the name among those that are preferred, the lowest first; its worst part counts.

        So `ema.model` ranks with `ema`, behind `model`.
        """
        ranks = {name: rank for rank, name in enumerate(PREFERENCE)}
        return max(ranks.get(part, len(PREFERENCE)) for part in self.name.split("."))


def find_sets(content: Any, expected: Iterable[str]) -> list[WeightSet]:
    """Find every set of tensors by name in what a file holds.

    Args:
        content: What was read: a mapping of tensors, or of such mappings.
        expected: Keys of the encoder; a key that is one of them has no wrapper.

    Returns:
        All sets with a tensor, those without any expected key among them.
    """
    known = frozenset(expected)
    found: list[WeightSet] = []
    seen: set[int] = set()

    def walk(values: Any, path: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping) or id(values) in seen or len(path) > _DEPTH:
            return
        seen.add(id(values))
        if any(isinstance(value, Tensor) for value in values.values()):
            found.extend(_split(values, path, known))
        for name, value in values.items():
            walk(value, (*path, str(name)))

    walk(content, ())
    return found


def find_named(content: Any, key: str, expected: Iterable[str]) -> WeightSet:
    """Find the set that a key names: a container, or the first words of a mapping's keys.

    Raises:
        UsageError: There is none, or several; lists what there is.
    """
    known = frozenset(expected)
    sets = find_sets(content, known)
    wanted = key.strip(".")
    exact = [each for each in sets if each.name == wanted]
    inside = [each for each in sets if f".{each.name}".endswith(f".{wanted}")]
    under = [each for each in sets if each.name.startswith(f"{wanted}.")]
    for matching in (exact, inside, under, _by_prefix(content, wanted, known)):
        if len(matching) == 1:
            return matching[0]
        if matching:
            several = ", ".join(f"'{each.name}'" for each in matching)
            raise UsageError(f"key '{key}' names {len(matching)} sets of weights: {several}.")
    names = sorted({each.name for each in sets if each.name})
    listed = f"It holds {', '.join(names[:_LISTED])}." if names else "It holds one set, at its top."
    raise UsageError(f"no weights under the key '{key}'.{nearest(wanted, names)} {listed}")


def choose_set(
    sets: list[WeightSet], fitting: list[WeightSet], expected: Iterable[str]
) -> WeightSet | None:
    """Choose the set to load: the one that fits, the preferred one of several.

    Returns:
        The set; None where several fit and none of their names says which is meant.
    """
    if not fitting:  # one of them is then refused, in detail: the likeliest one
        known = frozenset(expected)
        return min(sets, key=lambda each: (-len(known & each.tensors.keys()), each.rank))
    best = min(each.rank for each in fitting)
    first = [each for each in fitting if each.rank == best]
    return first[0] if len(first) == 1 else None


def _split(
    values: Mapping[Any, Any], path: tuple[str, ...], known: frozenset[str]
) -> list[WeightSet]:
    """Split a mapping of tensors by the roles that its keys begin with."""
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    strange = tuple(
        str(key) for key, value in values.items() if not isinstance(value, Tensor | Mapping)
    )
    cleaned = {key: _without_inner(key) for key in tensors}
    common = _common_words(cleaned.values(), known)
    by_role: dict[str, dict[str, str]] = {}  # role: {key without wrappers: key in the file}
    twice: dict[str, tuple[str, str]] = {}
    for key, clean in cleaned.items():
        role, name = _strip(clean[len(common) :], known)
        own = by_role.setdefault(role, {})
        if name in own:
            twice.setdefault(role, (own[name], key))
        own[name] = key
    shared = by_role.get("", {})
    # Beside networks with roles, what has none and is no network belongs to each of them: losses,
    # centres, counters.
    if len(by_role) > 1 and not known & shared.keys():
        by_role.pop("", None)
        by_role = {role: {**shared, **own} for role, own in by_role.items()}
    return [
        WeightSet(
            ".".join((*path, role) if role else path),
            {name: tensors[key] for name, key in own.items()},
            strange,
            twice.get(role),
        )
        for role, own in by_role.items()
    ]


def _common_words(keys: Iterable[str], known: frozenset[str]) -> str:
    """Return the words that all keys begin with and none of the encoder's does, with their dots.

    Whatever they are, they say nothing; only a role is left, as it names its set.
    """
    first_words = {key.partition(".")[0] for key in known}
    rest, common = list(keys), ""
    while True:
        words = {key.partition(".")[0] for key in rest if "." in key}
        if len(words) != 1 or not all("." in key for key in rest):
            return common
        word = f"{words.pop()}."
        if word[:-1] in first_words or word in ROLES:
            return common
        common += word
        rest = [key[len(word) :] for key in rest]


def _without_inner(key: str) -> str:
    """Take off what torch puts in front of a wrapped module's name, anywhere in a key."""
    for inner in INNER_WRAPPERS:
        key = key.replace(inner, "")
    return key


def _strip(key: str, known: frozenset[str]) -> tuple[str, str]:
    """Take the wrappers off a key; return the role among them and what is left."""
    role = ""
    while key not in known:
        first, dot, rest = key.partition(".")
        word = first + dot
        if not rest or (word not in WRAPPERS and word not in ROLES):
            break
        if word in ROLES:
            if role:  # a role inside a role is a part of that network
                break
            role = first
        key = rest
    return role, key


def _by_prefix(content: Any, prefix: str, known: frozenset[str]) -> list[WeightSet]:
    """Find the keys of any mapping that begin with a prefix, or with its containers and a rest."""
    found: list[WeightSet] = []
    seen: set[int] = set()

    def walk(values: Any, path: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping) or id(values) in seen or len(path) > _DEPTH:
            return
        seen.add(id(values))
        containers = "".join(f"{name}." for name in path)
        start = f"{prefix}.".removeprefix(containers)
        inside = {
            str(name)[len(start) :]: value
            for name, value in values.items()
            if isinstance(value, Tensor) and start and str(name).startswith(start)
        }
        if inside:
            found.extend(_split(inside, (prefix,), known))
        for name, value in values.items():
            walk(value, (*path, str(name)))

    walk(content, ())
    return found
