"""The documented Python: names that exist, imports no deeper than a sub-package, the notebook."""

import ast
import importlib
import os
import re
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
STORE = (
    ROOT / "tests" / "curation" / "store-format-1.tar.xz"
)  # small, with pool, scores and coresets
NOTEBOOK = ROOT / "examples" / "coreset.ipynb"
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


def forms(book):
    """What each cell gives, without what goes to the error output: the media types."""
    found = [
        [output for output in cell.outputs if output.get("name") != "stderr"]
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    return [[sorted(one.get("data", {one.output_type: 0})) for one in cell] for cell in found]


@pytest.mark.ray
def test_the_notebook_runs(tmp_path, monkeypatch):
    """From a copy of the examples, as the reader's own store is made beside them."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", commands)
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    kept, book = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=place).execute()
    assert forms(book) == forms(kept)


def test_the_notebook_is_kept_small_and_tells_nothing_of_the_machine():
    text = NOTEBOOK.read_text()
    book = nbformat.reads(text, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(text) < 500_000
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.findall(r"/(?:home|root|tmp|Users)/|[A-Z]:\\\\|site-packages", text)
