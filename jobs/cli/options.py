"""Arguments and options that several commands share."""

from collections.abc import Sequence
from copy import copy
from typing import Annotated

import typer

from echostill.platform.stages import StageInfo

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Set configuration keys.")
]
ConfigFile = Annotated[str | None, typer.Option("--config", "-c", help="YAML configuration.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show plan, resources, sizes and what is already done.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that has another fingerprint.")
]
StoreOption = Annotated[str, typer.Option("--store", "-s", help="The store.")]
CoresetOption = Annotated[str, typer.Option("--coreset", help="Name of the coreset.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def help_of(info: StageInfo) -> str:
    """Return the help text of a stage's command."""
    return f"{info.summary}\n\n\b\nExample:\n  {info.example}"


def with_called(app: typer.Typer, arguments: Sequence[str]) -> typer.Typer:
    """Return the command line with only the command that is called: making forty takes a while."""
    called = [info for info in app.registered_commands if info.name == next(iter(arguments), None)]
    if not called:
        return app
    small = copy(app)
    small.registered_commands = called
    return small
