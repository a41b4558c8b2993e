"""The documented Python: names that exist, and imports that reach no deeper than a sub-package."""

import ast
import importlib
import re
import shlex
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
STORE = (
    ROOT / "tests" / "curation" / "store-format-1.tar.xz"
)  # small, with pool, scores and coresets
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OFFERED = ("curation", "distill", "eval", "jobs", "platform.tables", "platform.training")


def snippets():
    for page in PAGES:
        for block in re.findall(r"^```python.*?\n(.*?)^```$", page.read_text(), re.M | re.S):
            yield page, ast.parse(block)


def imports():
    for page, tree in snippets():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "echostill":
                for alias in node.names:
                    yield pytest.param(node.module, alias.name, id=f"{page.name}: {alias.name}")


@pytest.mark.parametrize(("module", "name"), imports())
def test_documented_imports_exist_and_are_not_deep(module, name):
    assert len(module.split(".")) <= 3
    assert callable(getattr(importlib.import_module(module), name))


def listed():
    """Names of the page's tables, by the package that they are imported from."""
    found = {}
    for line in (ROOT / "docs" / "python.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 4 and cells[1].startswith("`echostill."):
            found.setdefault(cells[1].strip("`"), set()).update(re.findall(r"`(\w+)`", cells[2]))
    return found


@pytest.mark.parametrize("package", OFFERED)
def test_the_page_names_what_a_package_offers(package):
    module = importlib.import_module(f"echostill.{package}")
    assert listed()[f"echostill.{package}"] == set(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_listed_name_exists():
    for package, names in listed().items():
        module = importlib.import_module(package)
        for name in names:
            assert hasattr(module, name), f"{package}.{name}"


@pytest.mark.slow
def test_the_examples_of_answers_as_files_run(tmp_path, monkeypatch):
    """In order, as a reader would: the commands first, then Python, Polars and pandas."""
    from echostill.jobs.cli.main import app

    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    (tmp_path / "runs" / "store").rename(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tables.md").read_text()
    section = text.split("## Answers as files")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S)
    for language, block in blocks:
        if language == "bash":
            for line in block.splitlines():
                done = CliRunner().invoke(app, shlex.split(line)[1:])
                assert done.exit_code == 0, done.output
        else:
            exec(block, {})
    assert [language for language, _ in blocks] == ["bash", *["python"] * 3]
