"""The documents: every command parses, every configuration is valid, every link leads somewhere."""

import json
import re
import shlex
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest
import typer
import yaml
from typer.testing import CliRunner

from echostill.jobs.cli import main as cli
from echostill.jobs.pipeline import resolve_stages
from echostill.jobs.stages import find_stage
from echostill.jobs.sweeps.sweep import SweepConfig, trials_of
from echostill.platform.config import apply_overrides, read_document, resolve
from echostill.platform.errors import UsageError
from echostill.platform.stages import STAGES
from echostill.platform.tables import schemas
from echostill.platform.tables.holdings import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "infra").glob("*.md")])
COMMAND = typer.main.get_command(cli.app)
# Made by the commands themselves, or the reader's own.
OUTPUTS = ("runs/", "infra/secrets/", ".venv/")


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page whose info string begins with the language."""
    fence = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [body for name, _, body in fence.findall(page.read_text()) if name == language]


def tagged_yaml(page: Path) -> list[tuple[str, str]]:
    """Return (stage or '', text) of the blocks tagged ``yaml config [STAGE]``."""
    fence = re.compile(r"^```yaml config ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return fence.findall(page.read_text())


def shell_commands(text: str) -> list[list[str]]:
    """Split a bash block into commands: continuation lines joined, comments and variables off."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    commands = []
    for command in words:
        while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
            command = command[1:]
        if command:
            commands.append(command)
    return commands


def inline_commands(text: str) -> list[list[str]]:
    """Return the commands written in running text, such as `echostill verify runs/quickstart`."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`(echostill [^`]+)`", prose)]
    return [shlex.split(span) for span in spans if "..." not in span]


DOCUMENTED = [
    pytest.param(page, command, id=f"{page.relative_to(ROOT)}: {' '.join(command)[:60]}")
    for page in PAGES
    for block in blocks(page, "bash")
    for command in shell_commands(block)
]


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_documented_command_is_valid(page: Path, command: list[str]) -> None:
    check_command(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    for _, name, *arguments in inline_commands(page.read_text()):
        assert name in COMMAND.commands, f"no command '{name}'"
        if arguments and name in STAGES:
            check_stage(name, arguments, complete=False)


def check_command(command: list[str]) -> None:
    program, *arguments = command
    check_paths(command)
    if program.endswith("echostill"):
        check_echostill(arguments)
    elif program == "make":
        check_make(arguments)
    elif program == "ray":
        check_ray(arguments)


def check_echostill(arguments: list[str]) -> None:
    name, *rest = arguments
    if name == "--help":
        return
    assert name in COMMAND.commands, f"no command '{name}'"
    if name == "submit":
        with click_errors(), COMMAND.commands[name].make_context(name, list(rest)) as context:
            stage, extra = context.params["stage"], list(context.args)
        if context.params["follow"] and stage is None:
            return
        assert stage in (*STAGES, "run")
        check_echostill([stage, *extra])
    elif name in STAGES:
        check_stage(name, rest, complete=True)
    elif isinstance(group := COMMAND.commands[name], click.Group | typer.core.TyperGroup):
        assert rest, f"{name} without a command"
        assert rest[0] in group.commands, f"{name} has no command '{rest[0]}'"
        with click_errors(), group.commands[rest[0]].make_context(rest[0], rest[1:]):
            pass
    else:
        params = parse(name, rest)
        if name == "run":
            resolve_stages(
                params["config"], params["overrides"] or [], from_scratch=params["from_scratch"]
            )


def check_stage(name: str, arguments: list[str], *, complete: bool) -> None:
    params = parse(name, arguments)
    document = apply_overrides(read_document(params["config"]), params["overrides"] or [], name)
    try:
        resolve(find_stage(name).config, name, document)
    except UsageError as error:
        if complete or "required and missing" not in str(error):
            raise


def parse(name: str, arguments: list[str]) -> dict[str, object]:
    with click_errors(), COMMAND.commands[name].make_context(name, list(arguments)) as context:
        return dict(context.params)


class click_errors:
    """Turns what click raises on a wrong option, whichever click Typer uses, into a failure."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and hasattr(error, "format_message"):
            pytest.fail(error.format_message())


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in arguments:
        assert target in targets, f"no make target '{target}'"


def check_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import cli as ray_command

    command: click.Command = ray_command
    rest, entrypoint = arguments, []
    if "--" in rest:
        cut = rest.index("--")
        rest, entrypoint = rest[:cut], rest[cut + 1 :]
    while isinstance(command, click.Group):
        assert rest, "ray without a command"
        assert rest[0] in command.commands, f"ray has no command '{rest[0]}'"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"ray {command.name} has no option {word}"
    if entrypoint[:1] == ["echostill"]:
        check_echostill(entrypoint[1:])
    elif entrypoint:
        assert entrypoint[0] == "python"
        script = ROOT / entrypoint[1]
        assert script.parent == ROOT / "jobs"
        check_echostill([script.stem, *entrypoint[2:]])


def check_paths(command: list[str]) -> None:
    """Every relative path of a command exists, except what commands make."""
    for word in command:
        value = word.rpartition("=")[2]
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", value) is not None
        if not is_path or value.startswith(OUTPUTS):
            continue
        if value.startswith(tuple(f"{kind}/" for kind in KINDS)):  # inside of a store
            continue
        # A source's name is relative to its pool.
        places = (ROOT / value, ROOT / "examples" / "quickstart" / "pool" / value)
        assert any(place.exists() for place in places), f"'{value}' does not exist"


CONFIGURATIONS = [
    pytest.param(stage, text, id=f"{page.relative_to(ROOT)} {number}")
    for page in PAGES
    for number, (stage, text) in enumerate(tagged_yaml(page))
] + [
    pytest.param("", path.read_text(), id=str(path.relative_to(ROOT)))
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if path.parent.name != "cards"  # of benchmarks: tests/eval/unius/test_cards.py
]


@pytest.mark.parametrize(("stage", "text"), CONFIGURATIONS)
def test_configuration_is_valid(stage: str, text: str) -> None:
    document = yaml.safe_load(text)
    if stage == "sweep" or "grid" in document:
        trials_of(resolve(SweepConfig, "sweep", document))
        return
    sections = [stage] if stage else [name for name in STAGES if name in document]
    assert sections, "a configuration without sections says which stage it is for"
    for name in sections:
        resolve(find_stage(name).config, name, document)


def test_configurations_are_found() -> None:
    assert len(CONFIGURATIONS) >= 4
    assert len(DOCUMENTED) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file.read_text()), f"no heading for {target}"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def script(name: str) -> Any:
    """Load a script of docs/ as a module."""
    specification = util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = util.module_from_spec(specification)
    sys.path.insert(0, str(ROOT / "docs"))  # for what the scripts share
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def test_generated_pages_are_current() -> None:
    for name, render in script("make_configuration").PAGES.items():
        written = (ROOT / "docs" / name).read_text()
        assert written == render(), f"docs/{name} is old: python docs/make_configuration.py"


def test_numbers_of_the_pages_are_those_of_the_results() -> None:
    evidence = script("make_evidence")
    for page in evidence.BLOCKS:
        assert page.read_text() == evidence.render(page), "python docs/make_evidence.py"


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("pool", schemas.POOL_SCHEMA),
        ("scores", schemas.scores_schema(7, 3)),
        ("coresets", schemas.CORESET_SCHEMA),
        ("quarantine", schemas.QUARANTINE_SCHEMA),
    ],
)
def test_tables_page_has_the_columns(heading: str, schema: pa.Schema) -> None:
    text = (ROOT / "docs" / "tables.md").read_text()
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    documented = [(name, kind.replace("\\", "")) for name, kind in rows]
    assert documented == [(field.name, written(str(field.type))) for field in schema]


def written(kind: str) -> str:
    """Write Arrow's name of a type as the page does."""
    for arrow, page in (
        ("element: ", ""),
        ("halffloat", "float16"),
        ("[7]", "[D]"),
        ("[3]", "[C]"),
    ):
        kind = kind.replace(arrow, page)
    return kind


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_help_has_an_example_that_is_valid(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0
    example = shown.output.split("Example:")[1].strip().splitlines()[0].strip()
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("echostill", name)
    own = ["examples/quickstart/config.yaml" if w == "config.yaml" else w for w in arguments]
    check_echostill([command, *own])


@pytest.mark.slow
def test_models_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "echostill.jobs.cli.main", "models", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert {row["name"] for row in json.loads(done.stdout)} >= {"usfm", "tinyusfm"}


@pytest.mark.parametrize(
    "command",
    [
        "echostill selekt budget=1",
        "echostill select --bugdet 1",
        "echostill submit slect --config examples/quickstart/config.yaml",
        "make quickstrat",
        "ray start --hed",
        "ray job submit --working-dir . -- python jobs/selekt.py",
        "echostill ingest source=examples/quickstart/nothing",
    ],
)
def test_the_check_finds_a_wrong_command(command: str) -> None:
    with pytest.raises((AssertionError, UsageError, pytest.fail.Exception)):
        check_command(shlex.split(command))


def test_the_check_finds_a_wrong_key() -> None:
    with pytest.raises(UsageError, match="budget"):
        check_command(["echostill", "select", "budjet=10"])
