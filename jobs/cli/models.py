"""Commands for models: the zoo, export and features, the teacher cache, sweeps.

Each command imports what it needs when it runs.
"""

import json
from collections.abc import Callable
from typing import Annotated

import typer

from echostill.jobs.cli.options import (
    ConfigFile,
    CoresetOption,
    DryRun,
    JsonOption,
    Overrides,
    Overwrite,
    StoreOption,
    help_of,
)
from echostill.platform.errors import UsageError
from echostill.platform.stages import CACHE


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in COMMANDS.items():
        app.command(name)(command)
    app.command("cache", help=help_of(CACHE), short_help=CACHE.summary)(cache_command)


def models_command(as_json: JsonOption = False) -> None:
    """List the model zoo: parameters and GFLOPs, as the paper counts them and in full.

    \b
    Example:
      echostill models --json
    """
    from echostill.platform.models import describe_models

    rows = describe_models()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'name':<16}{'parameters':>12}{'GFLOPs (paper)':>16}{'GFLOPs (all)':>14}{'input':>7}")
    for row in rows:
        print(
            f"{row['name']:<16}{row['parameters']:>12,}{row['gflops_paper']:>16.2f}"
            f"{row['gflops']:>14.2f}{row['image_size']:>7}"
        )


def export_command(
    to: Annotated[str, typer.Option("--to", help="Folder to write the export into.")],
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--form", help="safetensors, tinyusfm, timm, onnx, onnx-int8, torch-export; repeatable."
        ),
    ] = None,
    store: StoreOption = "runs/default",
    run: Annotated[str | None, typer.Option("--run", help="A finished run of the store.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Instead of a run: a model of the zoo.")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Weights of --model.")] = None,
    coreset: CoresetOption = "default",
    images: Annotated[
        int, typer.Option("--images", min=2, help="Images for calibration, and for comparison.")
    ] = 64,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the timings; default all.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=0, help="Timed runs; 0 times nothing.")
    ] = 15,
    as_json: JsonOption = False,
) -> None:
    """Export a trained model: weights in other layouts, ONNX in float32 and int8, torch.export.

    \b
    Example:
      echostill export --store runs/quickstart --run distilled-0 --to out --form onnx
    """
    from echostill.distill.exporting.stage import check_forms, export
    from echostill.platform.models.trained import open_run, open_zoo
    from echostill.platform.tables.store import Store

    if (run is None) == (model is None) or (model is None) != (weights is None):
        raise UsageError("nothing to export: give --run NAME, or --model NAME with --weights FILE.")
    forms = check_forms(form or ["safetensors", "onnx"])
    opened = Store(store)
    source = open_run(opened, run) if run else open_zoo(model or "", weights or "")
    done = export(
        source,
        opened,
        to,
        forms,
        coreset=coreset,
        calibration_images=images,
        parity_images=images,
        threads=threads,
        repeats=repeats,
    )
    print(json.dumps({**done.manifest, "parity": done.parity}) if as_json else done.describe())


def embed_command(
    images: Annotated[
        list[str], typer.Argument(help="Folders, files, lists (.txt), manifests (.csv, .parquet).")
    ],
    model: Annotated[
        str, typer.Option("--model", help="An export (folder or file), a run, or a zoo model.")
    ],
    to: Annotated[str, typer.Option("--to", help="Parquet file to write.")] = "features.parquet",
    store: StoreOption = "runs/default",
    weights: Annotated[
        str | None, typer.Option("--weights", help="Weights of a zoo model.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--form", help="Which form of an export folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    frame_stride: Annotated[
        int, typer.Option("--frame-stride", min=1, help="Read every n-th frame of a cine.")
    ] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1)] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Input side of a zoo model.")
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option("--pooling", help="How a zoo model pools: mean, class-token or timm."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Which weights of the file, if it holds several.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="Of matrix products: float32, bfloat16, float16, or auto: bfloat16 on GPUs, "
            "float32 on CPUs.",
        ),
    ] = "auto",
) -> None:
    """Write a model's features of images: one Parquet row per image or frame.

    \b
    Example:
      echostill embed examples/quickstart/pool --model distilled-0 --store runs/quickstart
    """
    from echostill.curation.ingestion.settings import IngestSettings
    from echostill.curation.scoring.embedding import embed, find_model
    from echostill.platform.computing.precision import checked_precision
    from echostill.platform.imaging.frames import FrameSampling

    found = find_model(
        model,
        store=store,
        weights=weights,
        form=form,
        threads=threads,
        image_size=image_size,
        pooling=pooling,
        key=key,
        precision=checked_precision(precision),
    )
    done = embed(
        images,
        found,
        to,
        batch_size=batch_size,
        threads=threads,
        settings=IngestSettings(frames=FrameSampling(every=frame_stride)),
    )
    print(done.describe())


def cache_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute a sample and compare; builds nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build it even above cache_limit_gb.")
    ] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Cache the teacher's outputs."""
    from echostill.distill.cache.stage import STAGE, make_cache
    from echostill.distill.cache.verifying import verify_cache

    settings = STAGE.load(config, tuple(overrides or ()))
    if dry_run:
        print(STAGE.dry_run(settings, overwrite=overwrite))
    elif verify:
        print(f"cache: {verify_cache(settings)}")
    else:
        print(f"cache: {make_cache(settings, overwrite=overwrite, force=force)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "models": models_command,
    "export": export_command,
    "embed": embed_command,
}
