"""The command that merges stores."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from echostill.jobs.cli.options import ConfigFile, JsonOption
from echostill.platform.errors import UsageError


def add_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("merge")(merge_command)


def merge_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the merged store.")] = "",
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="NAME=STORE", help="A store, with a name; repeatable."),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN.OLD=NEW",
            help="New name of an organ or device, such as organ.Leber=liver; repeatable.",
        ),
    ] = None,
    licences: Annotated[
        list[str] | None,
        typer.Option("--licence", metavar="NAME=TEXT", help="Licence of a store's images."),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", help="The stores' key, if groups were withdrawn from them."),
    ] = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show rows, groups, duplicates and disk.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Merge several stores into a new one; they are only read.

    Under one key a patient of several stores becomes one group. If the command is interrupted, run
    it again. A configuration has the keys store, stores, map, licence and key_file.

    \b
    Example:
      echostill merge runs/all --from bonn=runs/bonn --from ulm=runs/ulm --map organ.Leber=liver
    """
    from echostill.curation.merging.merging import merge
    from echostill.curation.merging.settings import MergeConfig
    from echostill.platform.config import read_document, validate

    values: dict[str, Any] = read_document(config)
    values |= {"store": store} if store else {}
    values |= {"key_file": key_file} if key_file else {}
    for key, given in (("stores", sources), ("licence", licences)):
        if given:
            values[key] = {**values.get(key, {}), **_pairs(given, key)}
    for name, new in _pairs(names or [], "map").items():
        column, _, old = name.partition(".")
        if column not in ("organ", "device") or not old:
            raise UsageError(f"--map '{name}': expected organ.OLD=NEW or device.OLD=NEW.")
        section = values.setdefault("map", {}).setdefault(column, {})
        section[old] = new
    done = merge(validate(MergeConfig, values), dry_run=dry_run)
    print(json.dumps(vars(done), indent=1) if as_json else done.describe())


def _pairs(texts: Sequence[str], what: str) -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a mapping."""
    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise UsageError(f"{what}: '{text}' is not of the form NAME=VALUE.")
        if name in found:
            raise UsageError(f"{what}: '{name}' is given twice.")
        found[name] = value
    return found
