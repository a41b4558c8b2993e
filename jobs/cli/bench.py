"""Commands of benchmarks: cards, prepared sets, runs of models on them.

Each command imports what it needs when it runs.
"""

import json
from typing import Annotated

import typer

from echostill.jobs.cli.options import (
    ConfigFile,
    DryRun,
    JsonOption,
    Overrides,
    Overwrite,
    StoreOption,
    help_of,
)
from echostill.platform.stages import BENCH

bench = typer.Typer(
    name="bench",
    help="UniUS-Bench: list its sets, prepare them from downloads, compare models on them.\n\n"
    "\b\nExample:\n  echostill bench list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
CardsOption = Annotated[
    str | None, typer.Option("--cards", help="Folder with cards of your own, listed too.")
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.add_typer(bench)


@bench.command("list")
def list_command(cards: CardsOption = None, as_json: JsonOption = False) -> None:
    """List the sets: tasks, organs, licences, sources.

    \b
    Example:
      echostill bench list
    """
    from echostill.eval.unius.cards import published_cards, read_folder
    from echostill.eval.unius.catalogue import card_as_dict, describe_cards

    published = list(published_cards().values())
    own = read_folder(cards) if cards else []
    if as_json:
        print(json.dumps([card_as_dict(card) for card in [*published, *own]], indent=1))
        return
    print(describe_cards(published))
    if own:
        print(f"\nfrom {cards}:\n{describe_cards(own)}")


@bench.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A set, or the path of a card (.yaml).")],
    as_json: JsonOption = False,
) -> None:
    """Show the card of a set: what it is, what it allows, what to expect, what is inferred.

    \b
    Example:
      echostill bench show busi
    """
    from echostill.eval.unius.cards import find_card
    from echostill.eval.unius.catalogue import card_as_dict, describe_card

    card = find_card(name)
    print(json.dumps(card_as_dict(card), indent=1) if as_json else describe_card(card))


@bench.command("prepare")
def prepare_command(
    name: Annotated[str, typer.Argument(help="A set, or the path of a card (.yaml).")],
    to: Annotated[str, typer.Option("--to", help="Folder or URI to write into.")],
    download: Annotated[
        str | None, typer.Option("--from", help="Folder or archive, as it was downloaded.")
    ] = None,
    accept_differences: Annotated[
        bool,
        typer.Option(
            "--accept-differences", help="Go on where counts or checksums differ from the card's."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare a set: one table, images, masks, groups and a split. Nothing is downloaded.

    \b
    Example:
      echostill bench prepare busi --from Dataset_BUSI_with_GT.zip --to runs/bench/busi
    """
    from echostill.jobs.benchmarks.preparation import prepare_bench

    done = prepare_bench(
        name, download, to, accept_differences=accept_differences, overwrite=overwrite
    )
    print(json.dumps(done.counts, indent=1) if as_json else done.describe())


@bench.command("verify")
def verify_command(
    folder: Annotated[str, typer.Argument(help="A prepared set.")], as_json: JsonOption = False
) -> None:
    """Re-read a prepared set: checksums of every file, rows, accounting. Exit 1 on problems.

    \b
    Example:
      echostill bench verify runs/bench/busi
    """
    from echostill.eval.unius.prepared import verify_prepared

    result = verify_prepared(folder)
    print(json.dumps(result.as_dict(), indent=1) if as_json else result.describe())
    if not result.sound:
        raise typer.Exit(1)


@bench.command("run", help=help_of(BENCH), short_help=BENCH.summary)
def run_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    sets: Annotated[
        str | None, typer.Option("--sets", help="Prepared sets, with commas; default all.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="With commas: teacher, students, untrained, a run or a family of runs, baselines, "
            "the name of one, unet, timm:NAME.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Seeds, with commas, such as 0,1,2.")
    ] = None,
    prepared: Annotated[
        str | None, typer.Option("--prepared", help="Folder of the prepared sets.")
    ] = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure models on prepared sets."""
    import time

    from echostill.eval.unius.running.run import BENCH_STAGE
    from echostill.eval.unius.running.settings import load_bench
    from echostill.jobs.stages import said

    lists = {"sets": sets, "models": models, "seeds": seeds}
    given = [f"{key}={_listed(key, text)}" for key, text in lists.items() if text is not None]
    given += [f"prepared={prepared}"] if prepared is not None else []
    settings = load_bench(config, [*(overrides or []), *given])
    if dry_run:
        print(BENCH_STAGE.dry_run(settings, overwrite=overwrite))
        return
    started = time.monotonic()
    print(said("bench", BENCH_STAGE.run(settings, overwrite=overwrite), started))


def _listed(key: str, text: str) -> str:
    """Return names with commas as a list in YAML."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return json.dumps([int(name) if key == "seeds" and name.isdigit() else name for name in names])


@bench.command("report")
def report_command(
    store: StoreOption = "runs/default",
    name: Annotated[str, typer.Option("--name", help="Name of the results.")] = "default",
) -> None:
    """Write the report on a run: one HTML file, from the rows that are there.

    \b
    Example:
      echostill bench report --store runs/mine
    """
    from echostill.eval.unius.summary.report import write_report

    print(f"report: {write_report(store, name)}")
