"""The walls of the house: who may import whom, and that `platform` stays Python's own."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from echostill.platform.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("platform", "curation", "distill", "eval", "jobs")
ALLOWED = {
    "platform": {"platform"},
    "curation": {"curation", "platform"},
    "distill": {"distill", "platform"},
    "eval": {"eval", "platform"},
    "jobs": set(FOLDERS),
}


def dotted(path):
    return ["echostill", *path.relative_to(ROOT).with_suffix("").parts]


def imported_folders(path):
    """Folders a module names: by import of any form, and as text given to an importer."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = dotted(path)[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += [node.value] if node.value.startswith("echostill.") else []
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "echostill" and part[1:]} & set(FOLDERS)


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_floors(path):
    name = path.relative_to(ROOT).as_posix()
    assert imported_folders(path) <= ALLOWED[name.split("/")[0]]


def test_the_floors_see_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "platform" / "models" / "module.py"
    module.parent.mkdir(parents=True)
    for text, folders in {
        "import echostill.curation.ingestion.sources": {"curation"},
        "from echostill.eval import heads": {"eval"},
        "from echostill import distill": {"distill"},
        "from ...jobs import stages": {"jobs"},
        "from ..errors import UsageError": {"platform"},
        "def f():\n    from echostill.curation import why": {"curation"},
        "import_module('echostill.eval.heads')": {"eval"},
        "import platform, torch": set(),
    }.items():
        module.write_text(text)
        assert imported_folders(module) == folders, text


def test_every_folder_with_modules_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in modules()}
    expected = {f"echostill.{folder.replace('/', '.')}": folder for folder in folders}
    assert setuptools["package-dir"] == expected
    assert sorted(setuptools["packages"]) == sorted(expected)
    assert not (ROOT / "__init__.py").exists()  # a namespace, for editable and wheel installs alike


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


def test_every_stage_has_its_script():
    scripts = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    for stage in (*STAGES, "run"):
        assert f'main(["{stage}", *sys.argv[1:]])' in scripts[stage]
        assert scripts[stage].index("sys.path.pop(0)") < scripts[stage].index("import main")


@pytest.mark.parametrize("stage", ["select", "run"])
def test_job_scripts_start_from_the_root(stage):
    """jobs/select.py lies beside them and must not hide Python's select module."""
    done = run(f"jobs/{stage}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert f"echostill {stage}" in done.stdout
