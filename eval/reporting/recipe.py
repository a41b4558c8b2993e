"""How to make everything again: one configuration file, and the stages in their order.

Each stage keeps its resolved configuration beside its result. The recipe puts them together, in the
order of the table of stages, with every key written out, so that it does not depend on today's
defaults. What a stage reads and no stage writes (pins, and the leaks that a check found) is copied.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from echostill.platform.config import SHARED_KEYS
from echostill.platform.stages import STAGES
from echostill.platform.tables.store import Store, read_manifest
from echostill.platform.tables.table_folder import RECORDS

FILE = "recipe.yaml"
NEW_STORE = "runs/reproduced"
_HASHED = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Recipe:
    """The configuration of all stages, and the commands.

    Attributes:
        files: Configuration files by name; the first is :data:`FILE`.
        commands: To run one after the other where ``$STORE`` is this store, from the folder that
            relative paths refer to.
        notes: What has to be done by hand.
    """

    files: dict[str, str]
    commands: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def make_recipe(
    store: Store,
    name: str,
    configurations: dict[str, dict[str, Any]],
    runs: Sequence[tuple[str, dict[str, Any]]],
    report: dict[str, Any],
) -> Recipe:
    """Put the recipe of a report together.

    Args:
        store: The store.
        name: Name of the evaluation and its report.
        configurations: Resolved configuration of each stage but distill, by the stage's name.
        runs: Name and resolved configuration of each student run on the report's coreset.
        report: Resolved configuration of the report.
    """
    sections = {**configurations, "report": report}
    trainings = _trainings([configuration for _, configuration in runs])
    if trainings:
        sections["distill"] = trainings[0]
    written = {stage: sections[stage] for stage in STAGES if sections.get(stage)}
    files = {FILE: _document(written)}
    folder = f"$STORE/reports/{name}"
    commands = []
    made: set[str] = set()
    for stage in written:
        for table in STAGES[stage].reads:
            if table not in made and _is_copied(store, table):
                commands += [
                    f"cp -R $STORE/{part} {NEW_STORE}/{part}" for part in _parts(store, table)
                ]
                made.add(table)
        commands.append(f"echostill {stage} --config {folder}/{FILE}")
        if stage == "distill":
            for number, training in enumerate(trainings[1:], 2):
                file = f"recipe-distill-{number}.yaml"
                files[file] = _document({"distill": training})
                commands.append(f"echostill distill --config {folder}/{file}")
    return Recipe(files, tuple(commands), tuple(_notes(written)))


def _parts(store: Store, table: str) -> list[str]:
    """Folders of the store that make up a table."""
    return [name for name in (table, f"{RECORDS}/{table}") if store.storage.exists(name)]


def _is_copied(store: Store, table: str) -> bool:
    """Whether a table is there that no stage writes."""
    if any(info.writes == table for info in STAGES.values()):
        return False
    return read_manifest(store.table(table)) is not None


def _trainings(configurations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put runs that differ in student and seed alone back into one configuration each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for configuration in configurations:
        rest = {key: configuration[key] for key in configuration if key not in _OF_A_RUN}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(configuration)
    trainings = []
    for shared, members in groups.items():
        students = _distinct(student for member in members for student in member["students"])
        seeds = _distinct(seed for member in members for seed in member["seeds"])
        if len(students) * len(seeds) == len(members):
            trainings.append({**json.loads(shared), "students": students, "seeds": seeds})
        else:
            trainings += members
    return trainings


_OF_A_RUN = ("students", "seeds", "seed")


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _document(sections: dict[str, dict[str, Any]]) -> str:
    """Write a configuration file; keys that are the same in all sections stand outside of them."""
    shared: dict[str, Any] = {"store": NEW_STORE}
    for key in SHARED_KEYS:
        values = [section[key] for section in sections.values() if key in section]
        if values and all(value == values[0] for value in values):
            shared[key] = values[0]
    own = {
        stage: {key: value for key, value in section.items() if key not in shared}
        for stage, section in sections.items()
    }
    text = "# Every key of every stage, as it was resolved. `store` is a new place.\n"
    return text + yaml.safe_dump({**shared, **own}, sort_keys=False, allow_unicode=True)


def _notes(sections: dict[str, dict[str, Any]]) -> list[str]:
    source = sections.get("ingest", {}).get("source", "")
    names = [source] if isinstance(source, str) else source
    if any(_HASHED.search(str(name)) for name in names):
        return [
            "The store hides the names of its files: in section ingest, set source, exclude and "
            "key_file to what the first ingest had."
        ]
    return []
