"""Submitting a stage to a Ray cluster: the same command there as here."""

import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echostill.jobs.submission.following import Follower, how_to_follow
from echostill.platform.config import StageConfig, read_document
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.preflight.answers import NoAnswerError, within
from echostill.platform.preflight.clusters import check_dashboard
from echostill.platform.processes import DASHBOARD
from echostill.platform.progress import console
from echostill.platform.stages import BENCH, BESIDE, STAGES
from echostill.platform.tables.storage import local_folder

COMMANDS = (*STAGES, "run", *BESIDE, BENCH.name)
EXCLUDED = [".git", ".venv", "runs", "build", "dist", "tests", ".mypy_cache", ".hypothesis"]
NODES_SECONDS = 8.0  # for the dashboard to say which nodes it has


@dataclass(frozen=True)
class JobRequest:
    """What a job is to be.

    Attributes:
        stage: A stage's name, or ``run``.
        arguments: Arguments of its command.
        working_dir: Folder or URI that the job runs in; None sends no more than is needed.
        runtime_env: Ray's runtime environment.
        submission_id: Id of the job; None lets Ray make one.
    """

    stage: str
    arguments: Sequence[str]
    working_dir: str | None = None
    runtime_env: dict[str, Any] | None = None
    submission_id: str | None = None


def entrypoint(stage: str, arguments: Sequence[str], store: str) -> str:
    """Return the job's command: the stage with its arguments, the store made absolute.

    A relative store would lie in the job's own folder, which Ray throws away.
    """
    made = [text for text in arguments if not text.startswith("store=")]
    return shlex.join(["python", "-m", "echostill.jobs.cli.main", stage, *made, f"store={store}"])


def store_of(arguments: Sequence[str], document: dict[str, Any]) -> str:
    """Return the store that a command works on, as an absolute path or a URI."""
    given = [text.removeprefix("store=") for text in arguments if text.startswith("store=")]
    default = document.get("store", StageConfig.model_fields["store"].default)
    store = given[-1] if given else str(default)
    return store if "://" in store else local_folder(store)


def find_configuration(arguments: Sequence[str]) -> tuple[int, str] | None:
    """Return the last configuration file of a command, and which argument names it."""
    found = None
    for index, text in enumerate(arguments):
        if text in ("--config", "-c") and index + 1 < len(arguments):
            found = index + 1, arguments[index + 1]
        elif text.startswith("--config="):
            found = index, text.removeprefix("--config=")
    return found


def named_files(values: Any) -> list[str]:
    """Return the relative paths in a configuration, or in arguments, that lead to something here.

    A plain word that happens to be a folder's name is none.
    """
    if isinstance(values, dict):
        return [name for key, one in values.items() if key != "store" for name in named_files(one)]
    if isinstance(values, (list, tuple)):
        return [name for one in values for name in named_files(one)]
    if not isinstance(values, str):
        return []
    text = values.partition("=")[2] if "=" in values else values
    if "://" in text or os.path.isabs(text) or not ("/" in text or Path(text).suffix):
        return []
    try:
        return [text] if Path(text).exists() else []
    except (OSError, ValueError):
        return []


@contextmanager
def uploaded(request: JobRequest, document: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Give the folder to upload and the command's arguments as they are in there.

    Without a folder in the request it is the current one where the configuration names files in
    it. Otherwise it holds the configuration alone: whoever submits from a home folder sends nothing
    else of it.

    Args:
        request: The request.
        document: What its configuration says.
    """
    arguments, found = list(request.arguments), find_configuration(request.arguments)
    folder = request.working_dir
    others = [text for index, text in enumerate(arguments) if not found or index != found[0]]
    if folder is None and named_files([document, others]):
        folder = "."
    if folder is not None:
        if found is not None:
            inside = _inside(found[1], folder)
            arguments[found[0]] = arguments[found[0]].replace(found[1], inside)
        yield folder, arguments
        return
    with tempfile.TemporaryDirectory(prefix="echostill-job-") as made:
        name = "empty"  # Ray takes no folder without files
        if found is None:
            (Path(made) / name).touch()
        else:
            name = Path(found[1]).name
            shutil.copyfile(found[1], Path(made) / name)
            arguments[found[0]] = arguments[found[0]].replace(found[1], name)
        yield made, arguments


def read_configuration(request: JobRequest) -> dict[str, Any]:
    """Read the configuration of a command, from here or from the folder that is uploaded.

    Raises:
        UsageError: There is no such folder, or no such file in either.
    """
    folder = request.working_dir
    remote = folder is not None and ("://" in folder or folder.endswith(".zip"))
    if folder is not None and not remote and not Path(folder).is_dir():
        raise UsageError(f"no folder '{folder}' to run the job in.")
    found = find_configuration(request.arguments)
    if found is None:
        return {}
    file = found[1]
    if folder is not None and not Path(file).exists():
        if remote:  # it is in there, perhaps
            return {}
        file = os.path.join(folder, file)
    return read_document(file)


def _inside(file: str, folder: str) -> str:
    """Return a file's path relative to the folder that is uploaded, where it lies in there."""
    if "://" in folder or not Path(file).exists():
        return file
    path, root = Path(file).resolve(), Path(folder).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else file


def environment(file: str | None, text: str | None) -> dict[str, Any]:
    """Read a runtime environment: a YAML file, or JSON, as `ray job submit` takes them.

    Raises:
        UsageError: Both are given, or it is no mapping.
    """
    if file is not None and text is not None:
        raise UsageError("give --runtime-env or --runtime-env-json, not both.")
    if file is not None:
        if not Path(file).is_file():
            raise UsageError(f"no file '{file}' for --runtime-env.")
        text = Path(file).read_text()
    if text is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError as error:
        raise UsageError(f"the runtime environment is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError("a runtime environment is a mapping, such as {env_vars: {NAME: value}}.")
    return values


def dashboard(address: str | None) -> str:
    """Return the dashboard's address, once it has answered and taken the token.

    Raises:
        UsageError: It does not.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    target = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    check_dashboard(target)
    return target


def submit(request: JobRequest, *, address: str | None, wait: bool) -> int:
    """Submit a stage as a Ray job, follow its log, and return its exit code.

    Ctrl-C stops following; the job goes on.

    Raises:
        UsageError: Unknown stage, no such folder, or a wrong address or token.
        EchostillError: The cluster refused the job, or its dashboard is gone.
    """
    if request.stage not in COMMANDS:
        raise UsageError(
            f"no stage '{request.stage}'.{nearest(request.stage, COMMANDS)} There are: "
            f"{', '.join(COMMANDS)}."
        )
    given = request.runtime_env or {}
    if request.working_dir is None and "working_dir" in given:
        request = replace(request, working_dir=str(given["working_dir"]))
    document = read_configuration(request)
    store = store_of(request.arguments, document)
    with uploaded(request, document) as (folder, arguments):
        target = dashboard(address)
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        _quiet()
        settings = {
            "excludes": EXCLUDED,
            **given,
            "working_dir": folder,
            "env_vars": {"PYTHONUNBUFFERED": "1", **given.get("env_vars", {})},
        }
        try:
            client = JobSubmissionClient(target)
            name = client.submit_job(
                entrypoint=entrypoint(request.stage, arguments, store),
                submission_id=request.submission_id,
                runtime_env=settings,
                metadata={"echostill": request.stage, "store": store, DASHBOARD: target},
            )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise _explain(error, target, request.submission_id) from None
    _say(f"submitted {name} to {target}: {target.rstrip('/')}/#/jobs/{name}")
    _say(f"the cluster has {nodes(target)}")
    return _follow(client, name, target) if wait else 0


def follow(name: str, *, address: str | None) -> int:
    """Follow a job that was submitted before, from the beginning of its log.

    Returns:
        Its exit code.

    Raises:
        UsageError: No such job, or a wrong address or token.
        EchostillError: The dashboard is gone.
    """
    target = dashboard(address)
    from ray.job_submission import JobSubmissionClient

    _quiet()
    try:
        client = JobSubmissionClient(target)
    except (OSError, RuntimeError, ValueError) as error:
        raise _explain(error, target, None) from None
    return _follow(client, name, target)


def _follow(client: Any, name: str, target: str) -> int:
    from ray.job_submission import JobStatus

    try:
        info = Follower(client, name, target).follow()
    except KeyboardInterrupt:
        _say(
            f"no longer following; {name} goes on. To follow it again: "
            f"{how_to_follow(name, target)}. To stop it: `ray job stop {name} --address {target}`."
        )
        return 1
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        _say(f"{name} was stopped: finished work is kept, submitting the stage again continues.")
        return 1
    code = info.driver_exit_code
    why = "" if code is not None else f": {' '.join((info.message or '').split())[:500]}"
    _say(f"{name} ended as {info.status.value} (exit code {code}){why}.")
    return code if code in (1, 2) else 1


def nodes(target: str) -> str:
    """Say which nodes a cluster has."""
    from ray.util.state import list_nodes

    from echostill.platform.cluster.nodes import Node, describe

    try:
        found = within(lambda: list_nodes(address=target, timeout=5), NODES_SECONDS)
    except (NoAnswerError, OSError, RuntimeError, ValueError) as error:
        return f"nodes that it does not name ({' '.join(str(error).split())[:100]})"
    have = [node.resources_total or {} for node in found if node.state == "ALIVE"]
    return describe([Node(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in have])


def _explain(error: Exception, target: str, name: str | None) -> EchostillError:
    text = " ".join(str(error).split())
    if "uthentication" in text or "401" in text or "oken" in text:
        return UsageError(
            f"the cluster at {target} wants its token: put it in RAY_AUTH_TOKEN, or its file in "
            "RAY_AUTH_TOKEN_PATH (on the head node: ~/.ray/auth_token)."
        )
    if "already" in text and "ubmission" in text:
        return UsageError(
            f"there is a job '{name}' already, and an id cannot be used twice: follow it with "
            f"{how_to_follow(name or 'ID', target)}, or submit under another id. What it had "
            "finished is kept, whatever the id."
        )
    if "No available agent" in text:
        return EchostillError(f"the cluster at {target} is still starting: try again in a minute.")
    if isinstance(error, OSError) or "connect" in text.lower():
        return UsageError(
            f"no Ray dashboard answers at {target}: start a cluster (`ray start --head`) or "
            f"correct --address. ({text[:200]})"
        )
    if "size" in text and "exceeds" in text:
        return UsageError(
            f"the folder to upload is too large: {text[:200]} Give a smaller one with "
            "--working-dir, or absolute paths that the nodes see in the configuration."
        )
    return EchostillError(f"the cluster at {target} refused the job: {text[:500]}")


def _quiet() -> None:
    """Leave out what Ray's client logs of its own doing."""
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
