"""Which comparisons are made, named before anything is computed, and what they say together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import Field, field_validator

from echostill.eval.names import (
    DISTILLED,
    LINEAR,
    METHODS,
    MIM_ONLY,
    ROLES,
    TEACHER,
    THUMBNAIL,
    TRIVIAL,
    UNTRAINED,
)
from echostill.eval.statistics.bootstrap import Resampled
from echostill.eval.statistics.family import conclude
from echostill.platform.config import Config
from echostill.platform.errors import UsageError, nearest


class ComparisonSettings(Config):
    """Two candidates that are compared on every task, by the task's first metric."""

    first: str = Field(
        description="Label of a candidate, or a role: teacher, distilled, MIM-only, untrained, "
        "thumbnail, constant."
    )
    second: str = Field(description="As `first`.")
    method: str = Field(
        LINEAR,
        description="Method of both: k-NN, linear probe, grid probe, fine-tuned. The constant has "
        "one of its own, and the thumbnail its linear probe where it has no other.",
    )

    @field_validator("method")
    @classmethod
    def _method_exists(cls, method: str) -> str:
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"no method '{method}'.{nearest(method, METHODS)} There are: {known}")
        return method


DEFAULT = tuple(
    ComparisonSettings(first=DISTILLED, second=second)
    for second in (UNTRAINED, MIM_ONLY, TEACHER, THUMBNAIL)
)

Pair = tuple[str, str, str]  # labels of both candidates, method


def resolve(comparisons: Sequence[ComparisonSettings], roles: dict[str, str]) -> list[Pair]:
    """Return the pairs of candidates that are compared.

    A role stands for every candidate that has it; where no candidate does, there is nothing to
    compare.

    Args:
        comparisons: As configured.
        roles: Role of each candidate's label.

    Raises:
        UsageError: A name is neither a label nor a role.
    """

    def labels(name: str) -> list[str]:
        if name in roles or name in TRIVIAL:
            return [name]
        if name not in ROLES:
            known = [*roles, *ROLES, *TRIVIAL]
            raise UsageError(
                f"comparisons: '{name}' is no candidate and no role.{nearest(name, known)} "
                f"There are: {', '.join(dict.fromkeys(known))}."
            )
        return [label for label, role in roles.items() if role == name]

    pairs = [
        (first, second, item.method)
        for item in comparisons
        for first in labels(item.first)
        for second in labels(item.second)
        if first != second
    ]
    return list(dict.fromkeys(pairs))


def without_candidate(
    comparisons: Sequence[ComparisonSettings], roles: dict[str, str]
) -> list[ComparisonSettings]:
    """Return the comparisons that name a role which no candidate has."""
    known = {*roles, *roles.values(), *TRIVIAL}
    return [item for item in comparisons if not {item.first, item.second} <= known]


def within(interval: tuple[float, float], least: float, most: float = 1.0) -> tuple[float, float]:
    """Cut an interval to the values that there can be; with few groups it is far wider."""
    low, high = interval
    return max(low, least), min(high, most)


def judge(
    pairs: Iterable[tuple[str, str, str, str]],
    compared: Callable[[str, str, str, str], Resampled | None],
    near_chance: Callable[[str, str, str], bool],
    several_trainings: Callable[[str, str, str, str], bool],
) -> list[dict[str, Any]]:
    """Compare pairs as one family.

    Args:
        pairs: Task, both labels, method.
        compared: The difference of a pair; None where one of them has no predictions.
        near_chance: Whether a candidate, on a task and by a method, is not ahead of a constant
            answer: then nothing is called ahead or behind because of it.
        several_trainings: Whether both of a pair were trained more than once, where they are
            models.
    """
    listed = [(pair, found) for pair in pairs if (found := compared(*pair)) is not None]
    rows = []
    conclusions = conclude([found for _, found in listed])
    for ((task, first, second, method), found), said in zip(listed, conclusions, strict=True):
        better = first if said.value > 0 else second
        chance = near_chance(better, task, method)
        word = "not distinguished" if chance else said.word
        low, high = within((said.low, said.high), -1.0)
        corrected = within((said.corrected_low, said.corrected_high), -1.0)
        rows.append(
            {
                "task": task,
                "first": first,
                "second": second,
                "method": method,
                "value": said.value,
                "low": low,
                "high": high,
                "corrected_low": corrected[0],
                "corrected_high": corrected[1],
                "p_value": said.p_value,
                "adjusted": said.adjusted,
                "groups": found.groups,
                "several_trainings": several_trainings(task, first, second, method),
                "near_chance": chance,
                "word": word,
            }
        )
    return rows
