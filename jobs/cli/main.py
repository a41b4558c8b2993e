"""The command line: one command per stage, and the questions people ask of a store.

Commands import the other folders when they run, so that ``echostill --help`` does not wait for Ray
and torch.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from echostill.jobs.cli.bench import add_commands as add_bench_commands
from echostill.jobs.cli.curation import add_commands as add_curation_commands
from echostill.jobs.cli.datasets import add_commands as add_dataset_commands
from echostill.jobs.cli.housekeeping import add_commands as add_housekeeping_commands
from echostill.jobs.cli.merging import add_commands as add_merge_command
from echostill.jobs.cli.models import add_commands as add_model_commands
from echostill.jobs.cli.options import (
    ConfigFile,
    DryRun,
    JsonOption,
    Overrides,
    Overwrite,
    help_of,
    with_called,
)
from echostill.jobs.cli.withdrawal import add_commands as add_withdrawal_command
from echostill.platform.computing.memory import use_huge_pages
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.lazy import spare_pandas
from echostill.platform.progress import console
from echostill.platform.stages import IN_RUN, STAGES, SWEEP, StageInfo

app = typer.Typer(
    name="echostill",
    help="Turn an ultrasound pool into a small coreset, and a large teacher into a tiny student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from echostill.platform.tables.fingerprint import code_version

        print(f"echostill {code_version()}")
        raise typer.Exit


INTERRUPTED = 130  # how Typer reports Ctrl-C


def _add_stage(info: StageInfo) -> None:
    def command(
        overrides: Overrides = None,
        config: ConfigFile = None,
        dry_run: DryRun = False,
        overwrite: Overwrite = False,
    ) -> None:
        from echostill.jobs.stages import run_stage

        print(run_stage(info.name, config, overrides or [], dry_run=dry_run, overwrite=overwrite))

    app.command(info.name, help=help_of(info), short_help=info.summary)(command)


for _info in STAGES.values():
    _add_stage(_info)


@app.command(
    "run",
    help=f"Run the whole pipeline: {', '.join(IN_RUN)}.\n\n\b\nExample:\n"
    "  echostill run --config examples/quickstart/config.yaml",
)
def run_command(
    overrides: Overrides = None,
    config: ConfigFile = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Pretrain a teacher instead of loading one.")
    ] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the main job."""
    from echostill.jobs.pipeline import run_pipeline

    run_pipeline(
        config, overrides or [], from_scratch=from_scratch, dry_run=dry_run, overwrite=overwrite
    )


@app.command("plan")
def plan_command(
    overrides: Overrides = None,
    images: Annotated[float, typer.Option(help="Images of the pool, such as 3e6.")] = 3e6,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of the cluster.")] = 0,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs of the cluster; default as many as keep the GPUs busy."),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A rate of your own, such as gpu=60000."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Estimate hours, disk, memory and the cost of a lost node, for a pool and a cluster.

    Starts nothing and reads no images. Every rate is printed with its source.

    \b
    Example:
      echostill plan --images 3e6 --gpus 8
    """
    from echostill.jobs.capacity import plan_pool

    print(plan_pool(images, gpus, cpus, rate or [], config, overrides or []))


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
    from echostill.platform.tables.verify import verify_store

    spare_pandas()
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
    """Retry the quarantined rows of a stage, after files were repaired or a decoder was installed.

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
        bool, typer.Option(help="Follow until the running stages have ended.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the events as JSON lines.")
    ] = False,
) -> None:
    """Show the progress of a store's stages: shards, rate, quarantine, estimated end.

    \b
    Example:
      echostill watch runs/quickstart
    """
    from echostill.platform.shards.watch import watch

    watch(store, follow=follow, as_json=as_json)


@app.command("review")
def review_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    approve: Annotated[
        list[str] | None,
        typer.Option("--approve", help="Image id (or the beginning of one), or a file of ids."),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option("--reject", help="Frames that stay held back and no longer wait."),
    ] = None,
    undo: Annotated[
        list[str] | None, typer.Option("--undo", help="Frames that shall wait again.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why you decide so.")] = "",
    by: Annotated[
        str | None, typer.Option("--by", help="Who decides; default this machine's user.")
    ] = None,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Write a page with the pictures, to decide on them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the frames that de-identification held back, or decide on some of them.

    \b
    Example:
      echostill review runs/mine
      echostill review runs/mine --sheet
      echostill review runs/mine --approve ids.txt --reason "scale marks, no text"
    """
    from echostill.curation.deidentification import review
    from echostill.curation.deidentification.sheet import write_sheet

    if sheet:
        print(f"Open {write_sheet(store)} in a browser. Its pictures are identifiable.")
        return
    if approve:
        count = review.decide(store, "approve", approve, reason=reason, by=by)
        print(f"{count} frame(s) approved: the next `echostill ingest` adds them to the pool.")
    if reject:
        count = review.decide(store, "reject", reject, reason=reason, by=by)
        print(f"{count} frame(s) rejected: they stay held back.")
    if undo:
        count = review.decide(store, "undo", undo, reason=reason, by=by)
        print(f"{count} frame(s) wait again.")
    if approve or reject or undo:
        return
    rows = review.waiting(store)
    print(json.dumps(rows, indent=1) if as_json else review.describe(store, rows))


@app.command("quarantine")
def quarantine_command(
    store: Annotated[str, typer.Argument(help="Folder or URI of the store.")],
    config: ConfigFile = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also frames held back for review, reports and masks.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the files and frames that could not be read, with their names and the reasons.

    If names are hashed, --config gives the ingest's configuration, to look them up with the key.

    \b
    Example:
      echostill quarantine runs/mine
      echostill quarantine runs/mine --config config.yaml
    """
    from echostill.jobs.cli.damaged import damaged_files, describe

    spare_pandas()
    rows = damaged_files(store, config, everything=everything)
    print(json.dumps(rows, indent=1) if as_json else describe(rows))


@app.command("names")
def names_command(
    hashes: Annotated[list[str], typer.Argument(help="Hashed names, as in the column `source`.")],
    config: ConfigFile = None,
) -> None:
    """Look up the files behind hashed names; needs the key and the files of the ingest.

    \b
    Example:
      echostill names 5b1d0c3e9a7f42168c0d5e6f7a8b9c0d --config config.yaml
    """
    from echostill.curation.ingestion.keys import reveal
    from echostill.curation.ingestion.stage import IngestConfig
    from echostill.platform.config import load
    from echostill.platform.tables.store import Store

    settings = load(IngestConfig, "ingest", config)
    found = reveal(settings, Store(settings.store).pool(), hashes)
    for name in hashes:
        print(f"{name}  {found.get(name, 'not among the sources, or hashed with another key')}")


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    stage: Annotated[
        str | None, typer.Argument(help="A stage's name, or run; then its arguments.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Address of the Ray dashboard.")
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(
            "--working-dir",
            help="Folder or URI the job runs in; default this one where the configuration names "
            "files in it, else only the configuration.",
        ),
    ] = None,
    runtime_env: Annotated[
        str | None, typer.Option("--runtime-env", help="YAML file of a Ray runtime environment.")
    ] = None,
    runtime_env_json: Annotated[
        str | None, typer.Option("--runtime-env-json", help="The same as JSON.")
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option("--submission-id", help="Id of the job; generated by default.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
    follow: Annotated[
        str | None,
        typer.Option("--follow", metavar="ID", help="Follow a job that was submitted before."),
    ] = None,
) -> None:
    """Submit a stage to a Ray cluster, follow its log and return its exit code.

    \b
    Example:
      echostill submit select --address http://127.0.0.1:8265 --config config.yaml budget=20000
      echostill submit --follow raysubmit_4LamXRuQpYdSMg7J
    """
    from echostill.jobs.submission import submit

    if follow is not None:
        if stage is not None or context.args:
            raise UsageError("--follow takes no stage: the job is there already.")
        raise typer.Exit(submit.follow(follow, address=address))
    if stage is None:
        raise UsageError(f"no stage to submit: give one of {', '.join(submit.COMMANDS)}.")
    request = submit.JobRequest(
        stage,
        context.args,
        working_dir=working_dir,
        runtime_env=submit.environment(runtime_env, runtime_env_json),
        submission_id=submission_id,
    )
    raise typer.Exit(submit.submit(request, address=address, wait=not no_wait))


add_curation_commands(app)
add_dataset_commands(app)
add_housekeeping_commands(app)
add_merge_command(app)
add_withdrawal_command(app)
add_model_commands(app)
add_bench_commands(app)
_add_stage(SWEEP)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage."""
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` then ends a run like Ctrl-C
    use_huge_pages()
    code: int | str | None = 0
    try:
        given = list(arguments or sys.argv[1:])
        with_called(app, given)(args=given)
    except SystemExit as end:
        code = _interrupted() if end.code == INTERRUPTED else end.code
    except EchostillError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
    except Exception as error:
        from echostill.jobs.cli.foreign import TRACEBACK, in_words

        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        found = in_words(error)
        console.print(f"error: {found}", markup=False, soft_wrap=True)
        code = found.exit_code
    sys.exit(code)


def _interrupted() -> int:
    from echostill.platform.runtime import describe_loss, lost_process

    died = lost_process()
    if died is not None:
        console.print(f"error: {describe_loss(died)}", markup=False, soft_wrap=True)
        return 1
    console.print("interrupted: finished work is kept; the same command continues from there.")
    return 1


if __name__ == "__main__":
    main()
