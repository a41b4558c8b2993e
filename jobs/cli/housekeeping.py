"""Commands that list, delete and rename what a store holds, and free its disk."""

import json
from typing import Annotated

import typer

from echostill.jobs.cli.options import JsonOption
from echostill.platform.lazy import spare_pandas

StoreArgument = Annotated[str, typer.Argument(help="Folder or URI of the store.")]
PlaceArgument = Annotated[str, typer.Argument(help="What, such as coresets/default.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for kind in ("coresets", "runs", "reports"):
        _add_list(app, kind)
    app.command("delete")(delete_command)
    app.command("rename")(rename_command)
    app.command("gc")(gc_command)


def _add_list(app: typer.Typer, kind: str) -> None:
    def command(store: StoreArgument, as_json: JsonOption = False) -> None:
        from echostill.platform.tables.holdings import holdings
        from echostill.platform.tables.store import Store

        spare_pandas()
        found = holdings(Store(store), kind)
        if as_json:
            print(json.dumps([holding.as_dict() for holding in found], indent=1))
            return
        for holding in found or ():
            print(holding.describe())
        if not found:
            print(f"{store}: no {kind}.")

    app.command(
        kind,
        help=f"List the {kind} of a store: date, size, what each was made from, what uses it.\n\n"
        f"\b\nExample:\n  echostill {kind} runs/quickstart",
        short_help=f"List the {kind} of a store.",
    )(command)


def delete_command(
    store: StoreArgument,
    places: Annotated[list[str], typer.Argument(help="What, such as coresets/half.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what other results were made from; they stay.")
    ] = False,
) -> None:
    """Delete coresets, runs, reports, teacher caches or sweeps of a store.

    Records in MLflow stay.

    \b
    Example:
      echostill delete runs/quickstart coresets/half
    """
    from echostill.platform.tables.housekeeping import delete_results, find_deletable
    from echostill.platform.tables.store import Store

    call, said = (find_deletable, "would delete") if dry_run else (delete_results, "deleted")
    for holding in call(Store(store), places, force=force):
        print(f"{said} {holding.describe()}")


def rename_command(
    store: StoreArgument,
    place: PlaceArgument,
    name: Annotated[str, typer.Argument(help="The new name.")],
) -> None:
    """Rename a coreset, report or teacher cache. What was made from it is known by content.

    \b
    Example:
      echostill rename runs/quickstart coresets/half coreset-2026
    """
    from echostill.platform.tables.housekeeping import rename_result
    from echostill.platform.tables.store import Store

    print(f"{place} is now {rename_result(Store(store), place, name)}")


def gc_command(
    store: StoreArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it; otherwise it is listed.")] = False,
) -> None:
    """List, or delete, what a store does not need: staged images, unfinished, outdated results.

    \b
    Example:
      echostill gc runs/quickstart
    """
    from echostill.platform.tables.housekeeping import collect_waste, find_waste
    from echostill.platform.tables.store import Store

    opened = Store(store)
    found = find_waste(opened)
    for waste in found:
        print(waste.describe())
    if yes:
        print(f"deleted {len(found)}, {collect_waste(opened, found) / 2**20:.1f} MiB")
    elif found:
        size = sum(waste.size for waste in found) / 2**20
        print(f"--yes deletes these {len(found)}, {size:.1f} MiB")
    else:
        print(f"{store}: nothing to delete.")
