"""The walls of the house: who may import whom, and that `platform` stays Python's own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("platform", "curation", "distill", "eval", "jobs")
ALLOWED = {
    "platform": {"platform"},
    "curation": {"curation", "platform"},
    "distill": {"distill", "platform"},
    "eval": {"eval", "platform"},
    "jobs": set(FOLDERS),
}
# The command line is the front door: it knows all, and imports it when a command runs.
EXCEPTIONS = {"platform/cli.py": set(FOLDERS)}


def imported_folders(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("echostill.")}
    return found


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_floors(path):
    name = path.relative_to(ROOT).as_posix()
    allowed = EXCEPTIONS.get(name, ALLOWED[name.split("/")[0]])
    assert imported_folders(path) <= allowed


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_platform_is_pythons_own_from_the_root():
    assert not (ROOT / "platform" / "__init__.py").exists()
    code = "import sys; sys.path.insert(0, ''); import platform; print(platform.__file__)"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(ROOT))
    assert "usage" not in done.stderr


@pytest.mark.parametrize("stage", ["select", "run"])
def test_job_scripts_start_from_the_root(stage):
    """jobs/select.py lies beside them and must not hide Python's select module."""
    done = run(f"jobs/{stage}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert f"echostill {stage}" in done.stdout
