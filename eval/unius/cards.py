"""A card per set: what it is, what it allows, where it is, what to expect of it, how to read it.

A card is a YAML file. Those of the published sets are in the folder ``sets``; a card of one's own
is given by its path. Facts carry a label: [C] confirmed by a public source, [M] from memory of the
set or its paper and not checked, [I] inferred.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from echostill.eval.datasets import TaskSettings
from echostill.eval.unius.layouts import DownloadLayout
from echostill.platform.config import Config, read_document, validate
from echostill.platform.errors import UsageError, nearest
from echostill.platform.names import Name

FOLDER = Path(__file__).parent / "sets"
FactLabel = Literal["C", "M", "I"]
FACT_LABELS: dict[FactLabel, str] = {
    "C": "confirmed by a public source",
    "M": "from memory of the set or its paper, not checked",
    "I": "inferred by us",
}


class CardFact(Config):
    """Something that is said of a set, with what it stands on."""

    label: FactLabel = Field(description="Confirmed, from memory, or inferred.")
    text: str = Field(description="What is said.")


class CardTask(Config):
    """A task that a set serves."""

    kind: Literal["classification", "segmentation"] = Field(description="What is predicted.")
    label: FactLabel = Field(description="What it stands on that this is a task of the set.")
    classes: tuple[str, ...] = Field((), description="Labels, in order; of classification.")
    structures: dict[str, int] = Field({}, description="Values in the mask; of segmentation.")
    benchmark: bool = Field(True, description="Whether it is one of UniUS-Bench's tasks.")
    reason: str = Field("", description="Why it is one, and with these classes.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "CardTask":
        if (self.kind == "classification") != bool(self.classes) or bool(self.classes) == bool(
            self.structures
        ):
            raise ValueError("classification has classes, segmentation has structures")
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The classes or structures, in order."""
        return self.classes or tuple(self.structures)


class CardLicence(Config):
    """What a set may be used for."""

    name: str = Field(description="Of the licence.")
    allows: str = Field(description="In one sentence.")
    label: FactLabel = Field(description="Confirmed, from memory, or inferred.")


class Expected(Config):
    """What a complete download holds."""

    images: int | None = Field(None, ge=1, description="Rows before anything is dropped.")
    labels: dict[str, int] = Field({}, description="Images of each class.")
    checksums: dict[str, str] = Field(
        {}, description="SHA-256 of files of the download, by a pattern of their path."
    )


class Card(Config):
    """A set."""

    name: Name = Field(description="What the set is called in commands.")
    title: str = Field(description="What it is called elsewhere.")
    published: int | None = Field(
        None,
        description="Images that UniUS-Bench's table states; none for another set.",
    )
    organs: tuple[str, ...] = Field(min_length=1, description="One or more.")
    tasks: tuple[CardTask, ...] = Field(min_length=1, description="At most one of each kind.")
    citation: str = Field(description="What to cite.")
    licence: CardLicence = Field(description="What it may be used for.")
    page: str = Field(description="Where a user gets the set.")
    expected: Expected = Field(Expected(), description="What a complete download holds.")
    groups: CardFact = Field(description="What a group is.")
    official_split: CardFact = Field(description="The official split or folds, or that none is.")
    facts: tuple[CardFact, ...] = Field((), description="What else to know.")
    small: bool = Field(False, description="Whether grouped folds are written beside the split.")
    layouts: tuple[DownloadLayout, ...] = Field(
        min_length=1,
        description="Ways in which it is distributed; the one that fits most files is read.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Card":
        kinds = [task.kind for task in self.tasks]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"there are two tasks of the kind {max(kinds, key=kinds.count)}")
        classes = {name for task in self.tasks for name in task.classes}
        values = {value for task in self.tasks for value in task.structures.values()}
        for layout in self.layouts:
            for name in {*layout.labels.values(), *self.expected.labels} - {""} - classes:
                raise ValueError(f"'{name}' is none of the classes ({', '.join(sorted(classes))})")
            for layer in layout.masks:
                painted = any(files.rule != "values" for files in layer.files)
                if painted and layer.value not in values:
                    raise ValueError(f"the layer '{layer.name}' has a value that is no structure's")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels that rows may have; all that occur if there are none."""
        return next((task.classes for task in self.tasks if task.classes), ())

    @property
    def structures(self) -> dict[str, int]:
        """Values that masks may have, by name."""
        return next((task.structures for task in self.tasks if task.structures), {})

    def evaluation_tasks(self, manifest: str) -> list[TaskSettings]:
        """Return what the evaluation takes, one for each task.

        Args:
            manifest: Path or URI of the prepared set's ``labels.csv``.
        """
        several = len(self.tasks) > 1
        return [
            TaskSettings(
                name=f"{self.name}-{task.kind}" if several else self.name,
                kind=task.kind,
                manifest=manifest,
                classes=task.classes,
                mask_classes=dict(task.structures) if task.structures else 1,
            )
            for task in self.tasks
        ]


@lru_cache(maxsize=1)
def published_cards() -> dict[str, Card]:
    """Return the cards of UniUS-Bench's sets by name, in the order of its table."""
    cards = [read_card(str(path)) for path in sorted(FOLDER.glob("*.yaml"))]
    return {card.name: card for card in cards}


def read_card(path: str) -> Card:
    """Read a card file.

    Raises:
        UsageError: It is missing, is not YAML, or says something that a card does not.
    """
    document = read_document(path)
    try:
        return validate(Card, document)
    except UsageError as error:
        raise UsageError(f"card '{path}': {error}") from None


def find_card(name: str) -> Card:
    """Return a card by the name of a published set, or by the path of a card file.

    Raises:
        UsageError: There is none.
    """
    if name.lower().endswith((".yaml", ".yml")):
        return read_card(name)
    known = published_cards()
    plain = {_plain(key): key for key in known}
    if _plain(name) in plain:
        return known[plain[_plain(name)]]
    raise UsageError(
        f"no set '{name}'.{nearest(name.lower(), known)} There are: {', '.join(known)}; a set of "
        "your own is named by the path of its card (.yaml)."
    )


def read_folder(folder: str) -> list[Card]:
    """Read the cards of a folder of one's own, sorted by file name.

    Raises:
        UsageError: There is no card in it, or one cannot be read.
    """
    paths = sorted(Path(folder).glob("*.yaml")) if Path(folder).is_dir() else []
    if not paths:
        raise UsageError(f"'{folder}' has no card: expected .yaml files.")
    return [read_card(str(path)) for path in paths]


def organs_of(cards: Iterable[Card]) -> tuple[str, ...]:
    """Return the organs of some sets, each once, sorted."""
    return tuple(sorted({organ for card in cards for organ in card.organs}))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
