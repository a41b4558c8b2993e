"""The command line: one command per stage, and the questions people ask of a store.

This module and ``jobs`` are the only ones that know every folder; both import them when needed, so
that ``echostill --help`` does not wait for Ray and torch.
"""

import json
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from echostill.curation.commands import add_commands as add_service_commands
from echostill.platform.config import STAGES
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.progress import console

SUMMARIES = {
    "ingest": "Read images and DICOM cines into the pool: ids, groups, one decode, quarantine.",
    "pretrain": "Pretrain a teacher with the USFM recipe (block and band-stop mask on one input).",
    "score": "Train the proxy, then compute teacher features and gradient norms over the pool.",
    "duplicates": "Find exact, near and semantic copies in the pool, and which of them stay.",
    "select": "Pick the coreset: cluster, rank by distance and by gradient, fill the quotas.",
    "distill": "Distil the teacher into the student on a coreset (or train it without a teacher).",
    "evaluate": "Compare teacher and students on labelled benchmarks, split by group.",
    "report": "Write the self-contained HTML report.",
}
EXAMPLES = {
    "ingest": "echostill ingest store=runs/mine source=/data/ultrasound",
    "pretrain": "echostill pretrain --config config.yaml training.steps=20000",
    "score": "echostill score --config config.yaml workers=8",
    "duplicates": "echostill duplicates --config config.yaml near_distance=16",
    "select": "echostill select --config config.yaml budget=200000",
    "distill": "echostill distill --config config.yaml training.workers=4",
    "evaluate": "echostill evaluate --config config.yaml",
    "report": "echostill report --config config.yaml",
}

app = typer.Typer(
    name="echostill",
    help="Turn an ultrasound pool into a small coreset, and a large teacher into a tiny student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130  # how Typer reports Ctrl-C

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Set configuration keys.")
]
ConfigFile = Annotated[str | None, typer.Option("--config", "-c", help="YAML configuration.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show plan, resources, sizes and what is already done.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a result that was made from something else.")
]
StoreOption = Annotated[str, typer.Option("--store", "-s", help="The store.")]
CoresetOption = Annotated[str, typer.Option("--coreset", help="Name of the coreset.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _add_stage(name: str) -> None:
    def command(
        overrides: Overrides = None,
        config: ConfigFile = None,
        dry_run: DryRun = False,
        overwrite: Overwrite = False,
    ) -> None:
        from echostill.jobs.stages import run_stage

        print(run_stage(name, config, overrides or [], dry_run=dry_run, overwrite=overwrite))

    text = f"{SUMMARIES[name]}\n\n\b\nExample:\n  {EXAMPLES[name]}"
    app.command(name, help=text, short_help=SUMMARIES[name])(command)


for _stage in STAGES:
    _add_stage(_stage)


@app.command("run")
def run_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Pretrain a teacher instead of loading one.")
    ] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the main job: ingest, score, duplicates, select, distill, evaluate, report.

    \b
    Example:
      echostill run --config examples/quickstart/config.yaml
    """
    from echostill.jobs.pipeline import run_pipeline

    run_pipeline(
        config, overrides or [], from_scratch=from_scratch, dry_run=dry_run, overwrite=overwrite
    )


@app.command("why")
def why_command(
    image: Annotated[str, typer.Argument(help="Image id, a unique prefix of one, or its source.")],
    store: StoreOption = "runs/default",
    coreset: CoresetOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Say why an image is, or is not, in the coreset.

    \b
    Example:
      echostill why 3f9a --store runs/quickstart
    """
    from echostill.curation import why

    answer = why(store, coreset, image)
    print(json.dumps(answer.as_dict(), indent=1) if as_json else answer.text)


@app.command("leakcheck")
def leakcheck_command(
    store: Annotated[str, typer.Argument(help="The store with the pool.")],
    benchmarks: Annotated[
        list[str], typer.Argument(help="Manifests (CSV, Parquet), image folders, or stores.")
    ],
    record: Annotated[
        bool, typer.Option("--record", help="Exit 0 though there are leaks: they are recorded.")
    ] = False,
    near_distance: Annotated[
        int | None,
        typer.Option(
            "--near-distance", min=0, max=64, help="Bits of 256 that two copies may differ in."
        ),
    ] = None,
    semantic_epsilon: Annotated[
        float | None,
        typer.Option("--semantic-epsilon", min=1e-6, max=1, help="Largest 1 - cosine of features."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for benchmark images in a pool; a selection leaves out what is found. Exit 1 on leaks.

    \b
    Example:
      echostill leakcheck runs/quickstart examples/quickstart/benchmark/liver.csv
    """
    from echostill.curation import LeakSettings, check_leaks

    given = {"near_distance": near_distance, "semantic_epsilon": semantic_epsilon}
    settings = LeakSettings().model_copy(update={k: v for k, v in given.items() if v is not None})
    report = check_leaks(store, benchmarks, settings)
    print(json.dumps(report.as_dict()) if as_json else report.describe())
    if not report.clean and not record:
        raise typer.Exit(1)


@app.command("models")
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


@app.command("verify")
def verify_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    as_json: JsonOption = False,
) -> None:
    """Re-read every manifest and table of a store: checksums, row accounting, fingerprints.

    \b
    Example:
      echostill verify runs/quickstart
    """
    from echostill.platform.verify import verify_store

    result = verify_store(store)
    print(json.dumps(result.as_dict(), indent=1) if as_json else result.describe())
    if not result.sound:
        raise typer.Exit(1)


@app.command("retry-failed")
def retry_failed_command(
    stage: Annotated[str, typer.Argument(help="ingest or score.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
) -> None:
    """Try the quarantined rows of a stage again, after files were mended or a decoder installed.

    \b
    Example:
      echostill retry-failed ingest --config config.yaml
    """
    from echostill.jobs.stages import retry_stage

    print(retry_stage(stage, config, overrides or []))


@app.command("watch")
def watch_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    follow: Annotated[
        bool, typer.Option(help="Go on until the stages that run have ended.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the events as JSON lines.")
    ] = False,
) -> None:
    """Show what the stages of a store do: shards, pace, quarantine, estimated end.

    \b
    Example:
      echostill watch runs/quickstart
    """
    from echostill.platform.watch import watch

    watch(store, follow=follow, as_json=as_json)


@app.command("export")
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
        int, typer.Option("--images", min=2, help="Images to calibrate on, and to compare on.")
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
    from echostill.distill.export import check_forms, export
    from echostill.platform.store import Store
    from echostill.platform.trained import open_run, open_zoo

    if (run is None) == (model is None) or (model is None) != (weights is None):
        raise UsageError("name what to export: --run NAME, or --model NAME with --weights FILE.")
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


@app.command("embed")
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
) -> None:
    """Write the features that a model gives of images: one Parquet row per image or frame.

    \b
    Example:
      echostill embed examples/quickstart/pool --model distilled-0 --store runs/quickstart
    """
    from echostill.curation.embedding import embed, find_model
    from echostill.curation.sources import IngestSettings
    from echostill.platform.frames import FrameSampling

    found = find_model(model, store=store, weights=weights, form=form, threads=threads)
    done = embed(
        images,
        found,
        to,
        batch_size=batch_size,
        threads=threads,
        settings=IngestSettings(frames=FrameSampling(every=frame_stride)),
    )
    print(done.describe())


@app.command("review")
def review_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    approve: Annotated[
        list[str] | None,
        typer.Option("--approve", help="Image id (or the beginning of one), or a file of ids."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why the frames are harmless.")] = "",
    by: Annotated[
        str | None, typer.Option("--by", help="Who approves; default this machine's user.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the frames that de-identification held back, or approve some of them.

    \b
    Example:
      echostill review runs/mine
      echostill review runs/mine --approve ids.txt --reason "scale marks, no text"
    """
    from echostill.curation import review

    if approve:
        count = review.approve(store, approve, reason=reason, by=by)
        print(f"{count} frame(s) approved: the next `echostill ingest` takes them in.")
        return
    rows = review.waiting(store)
    print(json.dumps(rows, indent=1) if as_json else review.describe(store, rows))


@app.command("names")
def names_command(
    hashes: Annotated[list[str], typer.Argument(help="Hashed names, as `source` has them.")],
    config: ConfigFile = None,
) -> None:
    """Say which files stand behind hashed names; needs the key and the files of the ingest.

    \b
    Example:
      echostill names 5b1d0c3e9a7f42168c0d5e6f7a8b9c0d --config config.yaml
    """
    from echostill.curation.ingestion import IngestConfig
    from echostill.curation.veiling import reveal
    from echostill.platform.config import load
    from echostill.platform.store import Store

    settings = load(IngestConfig, "ingest", config)
    found = reveal(settings, Store(settings.store).pool(), hashes)
    for name in hashes:
        print(f"{name}  {found.get(name, 'not among the sources, or hashed with another key')}")


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="A stage's name, or run.")],
    address: Annotated[
        str | None, typer.Option("--address", help="Address of the Ray dashboard.")
    ] = None,
    working_dir: Annotated[
        str, typer.Option("--working-dir", help="Folder the job runs in.")
    ] = ".",
    submission_id: Annotated[
        str | None, typer.Option("--submission-id", help="Id of the job; made when left out.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the logs.")] = False,
) -> None:
    """Submit a stage to a Ray cluster, stream its logs and exit as it exits.

    \b
    Example:
      echostill submit select --address http://127.0.0.1:8265 --config config.yaml budget=20000
    """
    from echostill.platform.submit import submit

    code = submit(
        stage,
        context.args,
        address=address,
        working_dir=working_dir,
        submission_id=submission_id,
        wait=not no_wait,
    )
    raise typer.Exit(code)


add_service_commands(app)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` ends a run as Ctrl-C does
    code: int | str | None = 0
    try:
        app(args=list(arguments or sys.argv[1:]))
    except SystemExit as end:
        code = _interrupted() if end.code == INTERRUPTED else end.code
    except EchostillError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
    sys.exit(code)


def _interrupted() -> int:
    from echostill.platform.runtime import describe_loss, lost_process

    died = lost_process()
    if died is not None:
        console.print(f"error: {describe_loss(died)}", markup=False, soft_wrap=True)
        return 1
    console.print("interrupted: what was finished is kept; the same command continues from there.")
    return 1


if __name__ == "__main__":
    main()
