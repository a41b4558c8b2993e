"""The walls of the house: who may import whom, how large a room may be, and where its tests are."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from scipy.sparse.csgraph import connected_components

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


LINES, MODULES = 400, 16  # at most, in a file and in a folder


def modules():
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path):
    return path.relative_to(ROOT).as_posix()


def dotted(path):
    return ["echostill", *path.relative_to(ROOT).with_suffix("").parts]


def imported(path, other_processes=True):
    """Names a module imports in any form, anywhere in it, or gives to an importer as text.

    ``other_processes=False`` leaves out what it starts with ``python -m``.
    """
    tree, names = ast.parse(path.read_text()), []
    lists = [node.elts for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)]
    pairs = [pair for found in lists for pair in pairwise(found)]
    started = [name for flag, name in pairs if getattr(flag, "value", None) == "-m"]
    for node in ast.walk(tree):
        if node in started and not other_processes:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = dotted(path)[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += [node.value] if re.fullmatch(r"echostill\.[\w.:]+", node.value) else []
    return [name.replace(":", ".") for name in names if name.startswith("echostill.")]


def imported_folders(path):
    return {name.split(".")[1] for name in imported(path)} & set(FOLDERS)


def imports(paths):
    """Which of the modules each of them imports: the longest name that is one, or a package."""
    by_name = {".".join(dotted(path)).removesuffix(".__init__"): path for path in paths}
    found = {}
    for path in paths:
        found[path] = set()
        for name in imported(path, other_processes=False):
            while name and name not in by_name:
                name = name.rpartition(".")[0]
            if name:
                found[path].add(by_name[name])
    return found


def circles(paths):
    """Groups of modules of which each imports, through others or itself, all of the group."""
    found = imports(paths)
    places = {path: place for place, path in enumerate(paths)}
    arrows = np.zeros((len(paths), len(paths)), bool)
    for path, targets in found.items():
        arrows[places[path], [places[target] for target in targets - {path}]] = True
    _, labels = connected_components(arrows, directed=True, connection="strong")
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted([relative(paths[place]) for place in group] for group in groups if len(group) > 1)


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_floors(path):
    assert imported_folders(path) <= ALLOWED[relative(path).split("/")[0]]


def test_no_circle_of_imports():
    """Imports inside functions and for types alone count: a circle is two modules that are one."""
    found = circles(modules())
    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


FORMS = {
    "import echostill.curation.ingestion.sources": {"curation"},
    "from echostill.eval import heads": {"eval"},
    "from echostill import distill": {"distill"},
    "from ...jobs import stages": {"jobs"},
    "from ..errors import UsageError": {"platform"},
    "def f():\n    from echostill.curation import why": {"curation"},
    "if TYPE_CHECKING:\n    from echostill.eval import heads": {"eval"},
    "import_module('echostill.eval.heads')": {"eval"},
    "stage = 'echostill.jobs.stages:REGISTRY'": {"jobs"},
    "run(['python', '-m', 'echostill.jobs.cli.main'])": {"jobs"},
    "import platform, torch": set(),
    "'echostill. A sentence that ends with the name.'": set(),
}


@pytest.mark.parametrize("text", FORMS)
def test_the_floors_see_every_form_of_import(text, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    module = tmp_path / "platform" / "models" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(text)
    assert imported_folders(module) == FORMS[text]


@pytest.mark.parametrize(
    ("back", "files"),
    {
        "from echostill.eval.b import f": {"eval/a.py", "eval/b.py"},
        "from echostill.eval import b": {"eval/a.py", "eval/b.py"},
        "from . import b": {"eval/a.py", "eval/b.py"},
        "import echostill.eval.b as other": {"eval/a.py", "eval/b.py"},
        "def f():\n    from .b import g": {"eval/a.py", "eval/b.py"},
        "if TYPE_CHECKING:\n    from .b import g": {"eval/a.py", "eval/b.py"},
        "import_module('echostill.eval.b')": {"eval/a.py", "eval/b.py"},
        "TABLE = 'echostill.eval.b:f'": {"eval/a.py", "eval/b.py"},
        "run(['python', '-m', 'echostill.eval.b'])": set(),
        "from echostill.eval import f": {"eval/__init__.py", "eval/a.py", "eval/b.py"},
        "from .c import f": {"eval/a.py", "eval/b.py", "eval/c.py"},
        "from echostill.eval.d import f": set(),
    }.items(),
)
def test_a_circle_is_found(back, files, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "eval").mkdir()
    texts = {
        "__init__": "from .b import f",
        "a": back,
        "b": "from echostill.eval.a import g\nfrom .d import h",
        "c": "from .b import f",
        "d": "import numpy",
    }
    for name, text in texts.items():
        (tmp_path / "eval" / f"{name}.py").write_text(text)
    assert circles(modules()) == ([sorted(files)] if files else [])


def test_no_file_is_longer_than_one_story():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_no_room_is_crowded():
    names = [relative(path.parent) for path in modules() if path.name != "__init__.py"]
    assert {name: names.count(name) for name in names if names.count(name) > MODULES} == {}


# A model of a response has the name of the thing that it describes, as OpenAPI and the explorer do.
MODELS = "curation/service/http/models/"


def definitions(kinds):
    """Where each name is defined at the top of a module; nobody imports routes and commands."""
    found = {}
    for path in modules():
        if relative(path).startswith(MODELS):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, kinds) and not any(
                isinstance(decorator, ast.Call)
                and ast.unparse(decorator.func).startswith(("app.", "router."))
                for decorator in node.decorator_list
            ):
                found.setdefault(node.name, []).append(relative(path))
    return found


def promised():
    """Names that an ``__all__`` or a document's import offers."""
    names = set()
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= set(ast.literal_eval(node.value))
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in re.findall(
            r"^from echostill[\w.]* import (.+)$", path.read_text(), re.MULTILINE
        ):
            names |= {name.split()[0] for name in line.strip("()").split(",") if name.strip()}
    return names


def twice(found):
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_no_public_class_is_defined_twice():
    classes = definitions(ast.ClassDef)
    assert {n: p for n, p in twice(classes).items() if not n.startswith("_")} == {}


def test_no_promised_name_is_defined_twice():
    names = promised()
    assert {"select", "select_rows", "connect", "Store", "replay"} <= names
    found = twice(definitions((ast.ClassDef, ast.FunctionDef)))
    assert {name: paths for name, paths in found.items() if name in names} == {}


def test_a_name_that_is_defined_twice_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "```python\nfrom echostill.eval import score, rank as r\n```"
    )
    (tmp_path / MODELS).mkdir(parents=True)
    texts = {
        "eval/a": "__all__ = ['page']\nclass Run: ...\ndef page(): ...\ndef score(): ...",
        "jobs/b": "class Run: ...\ndef page(): ...\ndef rank(): ...\ndef other(): ...",
        "jobs/c": "@router.get('/x')\ndef score(): ...\n@app.command()\ndef rank(): ...",
        f"{MODELS}d": "class Run: ...",
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert promised() == {"page", "score", "rank"}
    assert twice(definitions((ast.ClassDef, ast.FunctionDef))) == {
        "Run": ["eval/a.py", "jobs/b.py"],
        "page": ["eval/a.py", "jobs/b.py"],
    }


# Test files that are named after what they show, since it takes more than one module.
ACROSS = {
    "benchmarks/evidence": "a benchmark's rows and comparisons, without training",
    "benchmarks/gpu_check": "a benchmark, run in miniature",
    "benchmarks/kill_training": "a benchmark, run at its smallest",
    "benchmarks/model_families": "a benchmark, run without numbers",
    "curation/deidentification/planted_identifiers": "planted names, from file to every result",
    "curation/ingestion/bad_inputs": "seventy bad or odd files, through every reader",
    "curation/ingestion/buckets": "every kind of source, in a bucket",
    "curation/living_store": "random sequences of everything that changes a store",
    "curation/older_stores": "a store of an earlier release, through what reads and uses it",
    "curation/pool_page": "the commands of docs/pool.md, in their order",
    "curation/selection/methods/methods": "all methods, each against a brute force",
    "curation/service/client": "client and commands, with a service and without",
    "curation/service/questions": "one protocol, of a store and of a service",
    "curation/service/reading": "questions and commands on a read-only store, none of which writes",
    "curation/service/rooms": "which room of the service imports which",
    "curation/service/explorer": "the pages, in a browser",
    "curation/service/http/hostile": "harmful requests to all routes",
    "curation/service/http/routes": "that client and explorer know every route",
    "curation/service/http/schemathesis": "made-up requests to all routes",
    "eval/unius/protocols/real_sets": "real sets from download to probes, where they are at hand",
    "infra": "the manifests for Kubernetes",
    "containers": "image, compose file, scripts and cluster launcher",
    "monitoring": "the rules and the dashboard of the metrics",
    "jobs/cli/preflight": "every command, with what it depends on dead",
    "platform/imaging/volumes/volumes": "both kinds of volume, by the same hostile inputs",
    "platform/models/wrappings": "one set of weights in all the files that people have",
    "platform/shards/kills": "a benchmark, run at its smallest",
    "docs": "documents",
    "python_docs": "the documented Python",
    "house": "this file",
    "marks": "conftest.py",
}


def test_a_test_file_is_named_after_a_module_of_its_room():
    files = (ROOT / "tests").rglob("test_*.py")
    names = {
        file.relative_to(ROOT / "tests").as_posix().replace("test_", "")[:-3] for file in files
    }
    tested = {relative(path)[:-3] for path in modules()}
    assert names - tested - ACROSS.keys() == set(), "neither a module nor named in ACROSS"
    assert ACROSS.keys() - (names - tested) == set(), "named in ACROSS without need"


@pytest.mark.parametrize("floor", FOLDERS)
def test_every_module_is_reached_by_the_tests_of_its_floor(floor):
    paths, tests = modules(), sorted((ROOT / "tests" / floor).rglob("*.py"))
    found = imports([*paths, *tests])
    reached, waiting = set(), tests
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += found[path]
    own = [path for path in paths if relative(path).startswith(f"{floor}/")]
    unreached = [path for path in own if path not in reached and path.name != "__init__.py"]
    # Job scripts are run as files: see below.
    assert [relative(path) for path in unreached if "sys.path.pop(0)" not in path.read_text()] == []


def test_every_folder_with_modules_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in modules()}
    expected = {f"echostill.{folder.replace('/', '.')}": folder for folder in folders}
    assert setuptools["package-dir"] == expected
    assert sorted(setuptools["packages"]) == sorted(expected)
    assert not (ROOT / "__init__.py").exists()  # a namespace, for editable and wheel installs alike


def test_the_lowest_releases_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = {}
    for requirement in map(Requirement, project["dependencies"]):
        (bounds[requirement.name],) = (
            Version(bound.version) for bound in requirement.specifier if bound.operator == ">="
        )
    assert {name: Version(pin) for name, pin in pinned.items()} == bounds


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
