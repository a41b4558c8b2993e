"""The command that takes a coreset elsewhere."""

from typing import Annotated

import typer

from echostill.jobs.cli.curation import (
    DEFAULT_STORE,
    SelectedOption,
    StoreNotUrlOption,
    TokenFileOption,
    UrlOption,
    check_selected,
    open_questions,
)
from echostill.jobs.cli.options import Overwrite
from echostill.platform.errors import UsageError

FORM_HELP = (
    "With pictures, as folder, webdataset, hf (Hugging Face), parquet or csv; or originals: the "
    "files that they were read from."
)


def add_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export-coreset")(export_coreset_command)


def export_coreset_command(
    name: Annotated[str, typer.Argument(help="Name of the coreset.")],
    to: Annotated[
        str, typer.Argument(help="File: .parquet, .csv or .jsonl. With --as: a folder or URI.")
    ],
    store: StoreNotUrlOption = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    selected: SelectedOption = "true",
    form: Annotated[str | None, typer.Option("--as", help=FORM_HELP)] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split", help="Split and share, such as train=0.8; repeatable. Groups stay whole."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--class", help="Column that is the class: label, organ, device or modality."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the splits.")] = 0,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence of the images, for the dataset card.")
    ] = "",
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Where the originals are now, if elsewhere; repeatable."),
    ] = None,
    may_identify: Annotated[
        bool,
        typer.Option(
            "--may-identify", help="Write originals of a de-identified pool: they may show names."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a coreset: its rows to one file, or (--as) its images as a dataset.

    \b
    Example:
      echostill export-coreset default chosen.csv --store runs/quickstart
      echostill export-coreset default runs/chosen --store runs/quickstart --as webdataset
    """
    check_selected(selected)
    if form is None:
        if split or classes or licence or overwrite or source or may_identify:
            raise UsageError(
                "these options go with --as: only --store, --url and --selected do not."
            )
        with open_questions(store, url, token_file) as questions:
            size = questions.export(name, to, selected=selected)
        print(f"{to}: {size} bytes")
        return
    if url is not None or selected != "true":
        raise UsageError("--as writes the chosen images of a store: leave out --url, --selected.")
    from echostill.curation.datasets import export_dataset
    from echostill.curation.datasets.splits import read_shares

    print(
        export_dataset(
            store or DEFAULT_STORE,
            name,
            to,
            form,
            shares=read_shares(split or []),
            classes=classes,
            seed=seed,
            licence=licence,
            overwrite=overwrite,
            sources=source or [],
            may_identify=may_identify,
        )
    )
