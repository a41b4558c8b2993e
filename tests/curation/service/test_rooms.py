"""The rooms of the service import in one direction only."""

import ast
from pathlib import Path

import pytest

SERVICE = Path(__file__).resolve().parents[3] / "curation" / "service"
PACKAGE = "echostill.curation.service"
# Each may import those before it, and itself.
ORDER = ["problems", "children", "data", "sql", "jobs", "answers"]
ORDER += ["parameters", "protocol", "http", "serving", "on_ray"]


def room_of(module):
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            yield room_of(node.module)


@pytest.mark.parametrize(
    "path", sorted(SERVICE.rglob("*.py")), ids=lambda path: path.relative_to(SERVICE).as_posix()
)
def test_no_room_imports_a_later_one(path):
    own = path.relative_to(SERVICE).with_suffix("").parts[0]
    if own == "__init__":
        assert list(imported_rooms(path)) == []
        return
    allowed = ORDER[: ORDER.index(own) + 1]
    assert set(imported_rooms(path)) <= set(allowed)


def test_every_room_has_its_rank():
    rooms = {path.relative_to(SERVICE).with_suffix("").parts[0] for path in SERVICE.rglob("*.py")}
    assert rooms - {"__init__"} == set(ORDER)
