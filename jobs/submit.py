"""Submitting a stage to a Ray cluster: the same command there as here."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.preflight.clusters import check_dashboard
from echostill.platform.progress import console
from echostill.platform.stages import BENCH, BESIDE, STAGES
from echostill.platform.tables.storage import local_folder

COMMANDS = (*STAGES, "run", *BESIDE, BENCH.name)
EXCLUDED = [".git", ".venv", "runs", "build", "dist", "tests", ".mypy_cache", ".hypothesis"]


def entrypoint(stage: str, arguments: Sequence[str]) -> str:
    """Return the job's command: the stage with its arguments, the store made absolute.

    A relative store would lie in the job's own folder, which Ray throws away.
    """
    made = [
        f"store={local_folder(text.removeprefix('store='))}"
        if text.startswith("store=") and "://" not in text
        else text
        for text in arguments
    ]
    if not any(text.startswith("store=") for text in made):
        made.append(f"store={_store_of(arguments)}")
    return shlex.join(["python", "-m", "echostill.jobs.cli.main", stage, *made])


def _store_of(arguments: Sequence[str]) -> str:
    from echostill.platform.config import StageConfig, read_document

    file = None
    for index, text in enumerate(arguments):
        if text in ("--config", "-c") and index + 1 < len(arguments):
            file = arguments[index + 1]
        elif text.startswith("--config="):
            file = text.removeprefix("--config=")
    store = str(read_document(file).get("store", StageConfig.model_fields["store"].default))
    return store if "://" in store else local_folder(store)


def submit(
    stage: str,
    arguments: Sequence[str],
    *,
    address: str | None,
    working_dir: str,
    submission_id: str | None,
    wait: bool,
) -> int:
    """Submit a stage as a Ray job, follow its logs, and return its exit code.

    Ctrl-C stops following; the job goes on.

    Raises:
        UsageError: Unknown stage, no such folder, or a wrong address or token.
        EchostillError: The cluster refused the job.
    """
    if stage not in COMMANDS:
        raise UsageError(
            f"no stage '{stage}'.{nearest(stage, COMMANDS)} There are: {', '.join(COMMANDS)}."
        )
    if not Path(working_dir).is_dir():
        raise UsageError(f"no folder '{working_dir}' to run the job in.")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    target = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    check_dashboard(target)
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(target)
        name = client.submit_job(
            entrypoint=entrypoint(stage, arguments),
            submission_id=submission_id,
            runtime_env={
                "working_dir": working_dir,
                "excludes": EXCLUDED,
                "env_vars": {"PYTHONUNBUFFERED": "1"},
            },
            metadata={"echostill": stage},
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise _explain(error, target) from None
    console.print(f"submitted {name} to {target}")
    if not wait:
        return 0
    shown = 0
    try:
        while True:
            status = client.get_job_status(name)
            logs = client.get_job_logs(name)
            sys.stdout.write(logs[shown:])
            sys.stdout.flush()
            shown = len(logs)
            if status.is_terminal():
                break
            time.sleep(1)
    except KeyboardInterrupt:
        console.print(f"no longer following; {name} goes on. Stop it: ray job stop {name}")
        raise
    if status == JobStatus.SUCCEEDED:
        return 0
    info = client.get_job_info(name)
    code = info.driver_exit_code
    console.print(f"{name} ended as {status.value} (exit code {code}).")
    return code if code in (1, 2) else 1


def _explain(error: Exception, target: str) -> EchostillError:
    text = " ".join(str(error).split())
    if "uthentication" in text or "401" in text or "oken" in text:
        return UsageError(
            f"the cluster at {target} wants its token: put it in RAY_AUTH_TOKEN, or its file in "
            "RAY_AUTH_TOKEN_PATH (on the head node: ~/.ray/auth_token)."
        )
    if "already" in text and "ubmission" in text:
        return UsageError(f"a job of that id exists; a submission id cannot be used twice: {text}")
    if "No available agent" in text:
        return EchostillError(f"the cluster at {target} is still starting: try again in a minute.")
    if isinstance(error, ConnectionError) or "connect" in text.lower():
        return UsageError(
            f"no Ray dashboard answers at {target}: start a cluster (`ray start --head`) or "
            f"correct --address. ({text[:200]})"
        )
    return EchostillError(f"the cluster at {target} refused the job: {text[:500]}")
