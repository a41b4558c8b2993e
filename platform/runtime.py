"""Connecting to Ray.

A local Ray whose own processes die takes its driver along without a word, or lets it wait. They are
watched: the run ends with a message instead.
"""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Any

from echostill.platform.computing.memory import use_huge_pages
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.preflight.clusters import check_ray
from echostill.platform.processes import Process, all_processes, find_process
from echostill.platform.progress import console

LOCAL = "local"  # the address of a Ray that this process starts
ESSENTIAL = ("raylet", "gcs_server")  # Ray's own processes, without which nothing goes on
# Messages of Ray's, as regexes: training starts more processes than CPUs, and most only wait;
MANY_WORKERS = r"worker processes have been started on node: .* the maximum expected startup"
# and of a lost node Ray prints the end of its log, where cluster/members.py says it in a sentence.
LOST_NODE = (
    r"Raylet is terminated\. Termination is unexpected|The node with node id: .*marked dead"
    r"|so the task will be retried\. Error: The actor is temporarily unavailable"
)
PAUSES = (10.0, 30.0, 60.0)  # seconds between attempts to start a local Ray
LAST_WORDS_SECONDS = 10.0  # for a driver to end by itself once one of them is dead


def set_environment() -> None:
    """Set what Ray and its workers read when they start; what the user has set stays.

    Medical data never phones home: usage statistics are off.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    use_huge_pages()
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Each report of a worker waits for the controller's next look; its two seconds are long here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", f"{MANY_WORKERS}|{LOST_NODE}")


def is_alone(address: str | None = None) -> bool:
    """Return whether this process and this machine are all that there is, now or once connected.

    False where a cluster is named, where the connected one has other nodes, and in Ray's actors.
    """
    if (address or os.environ.get("RAY_ADDRESS") or LOCAL) != LOCAL:
        return False
    set_environment()
    import ray

    if not ray.is_initialized():
        return True
    nodes = sum(node["Alive"] for node in ray.nodes())
    return nodes == 1 and ray.get_runtime_context().get_actor_id() is None


def connect_ray(address: str | None = None) -> None:
    """Connect to the given Ray, the one in RAY_ADDRESS, or start a local one; idempotent.

    Raises:
        UsageError: There is no such cluster, or it wants a token; see :func:`check_ray`.
        EchostillError: A local Ray did not start.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        return
    check_ray(address)
    target = address or os.environ.get("RAY_ADDRESS") or LOCAL
    ended_by = signal.getsignal(signal.SIGTERM)
    options: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if target == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _object_store_bytes()}
    try:
        start = _start_local if target == LOCAL else partial(ray.init, address=target)
        _dashboard[:] = [str(start(**options).dashboard_url or "")]
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot reach Ray at '{target}': {error}. Start one (`ray start --head`), correct "
            "--address or RAY_ADDRESS, or leave both out for a local Ray."
        ) from None
    if callable(ended_by) and threading.current_thread() is threading.main_thread():
        # Ray's core takes the signal over, and answers it with its stack.
        signal.signal(signal.SIGTERM, ended_by)
    if target == LOCAL:
        _started.append(target)
        _watch_processes()
    _spend_warning()
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _start_local(**options: Any) -> Any:
    """Start a Ray of this process's own, again where its processes were too slow for it.

    Ray waits thirty seconds for them, has no setting for that, and then raises a bare Exception.
    The next attempt finds their files in memory, and perhaps a machine that is less busy.
    """
    import ray

    for attempt, pause in enumerate((*PAUSES, None), start=1):
        before = {process.number for process in _children()}
        try:
            return ray.init(address=LOCAL, **options)
        except Exception as error:
            slow = type(error) is Exception or isinstance(error, RuntimeError | ConnectionError)
            for process in _children():
                if process.number not in before:  # what Ray had started already
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.number, signal.SIGKILL)
            if pause is None or not slow:
                raise EchostillError(
                    f"Ray did not start: {error} The machine may be busy or out of memory: try "
                    "again."
                ) from None
        console.print(
            f"Ray did not start in time: this machine is busy. Next attempt in {pause:g} s "
            f"({attempt} of {len(PAUSES) + 1} made)."
        )
        time.sleep(pause)
    raise AssertionError  # the last attempt returns or raises


def _children() -> list[Process]:
    return [process for process in all_processes() if process.parent == os.getpid()]


class _NeverStarted:
    def __init__(self, argument: object) -> None:
        """Take an argument."""


def _spend_warning() -> None:
    """Use up a warning that Ray prints once per process, while nobody reads it.

    It says that an actor that can be restarted has constructor arguments in the object store, where
    they may get lost. Ray Data creates all its actors this way and holds the arguments as long as
    they run, so they cannot. Ray's core writes the warning to standard error and has no setting
    for it. The actor created here belongs on a node that does not exist, so no process starts.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nowhere = NodeAffinitySchedulingStrategy("1" * 56, soft=False)
    kind: Any = ray.remote(num_cpus=0, max_restarts=1, scheduling_strategy=nowhere)(_NeverStarted)
    argument = ray.put(None)
    sys.stderr.flush()
    kept, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        actor = kind.remote(argument)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)
    ray.kill(actor)


_started: list[str] = []
_dashboard: list[str] = []  # of the Ray that this process has connected to


def dashboard_url() -> str:
    """Return the address of the connected Ray's dashboard; empty where it has none."""
    return _dashboard[0] if _dashboard else ""


def is_local() -> bool:
    """Return whether this process has started its Ray: one node, to which none is added."""
    return bool(_started)


def disconnect() -> None:
    """Leave Ray; a local one ends with its workers."""
    import ray

    _watch.clear()
    _started.clear()
    if ray.is_initialized():
        ray.shutdown()


_watch: dict[int, str] = {}  # the processes looked after: name by process id
_lost: list[str] = []
_asked = threading.Event()  # whether the run has noticed, and says it itself


def lost_process() -> str | None:
    """Return the name of the Ray process that died under this run, None where none did."""
    if _lost:
        _asked.set()
    return _lost[0] if _lost else None


def describe_loss(name: str) -> str:
    """Say what became of a run whose Ray died."""
    return (
        f"Ray's own process '{name}' on this machine died (killed, or out of memory?). What was "
        "finished is kept: the same command continues."
    )


def _watch_processes() -> None:
    """Look after the processes of the local Ray that this process has started."""
    for process in _children():
        if process.name in ESSENTIAL:
            _watch[process.number] = process.name
    if _watch:
        atexit.register(_watch.clear)  # before Ray's own, which ends its processes
        threading.Thread(target=_look_after, daemon=True, name="echostill-watch").start()


def _lives(number: int, name: str) -> bool:
    process = find_process(number)
    return process is not None and process.name == name


def _look_after() -> None:
    while _watch:
        time.sleep(0.25)
        dead = [name for number, name in list(_watch.items()) if not _lives(number, name)]
        if dead and _watch:
            _watch.clear()
            _lost.append(dead[0])
            # A signal, so that a main thread waiting for Ray wakes up: as Ctrl-C would do it.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(LAST_WORDS_SECONDS)
            if not _asked.is_set():
                print(f"error: {describe_loss(dead[0])}", file=sys.stderr, flush=True)
            os._exit(1)


def _object_store_bytes() -> int:
    """A tenth of memory, between 256 MB and 8 GB: tables pass by name, not through Ray."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min(max(total // 10, 256 * 2**20), 8 * 2**30))


def process_usage() -> dict[str, float]:
    """Return what this process has used: CPU seconds, and the peak of memory in megabytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    usage = {
        "process_cpu_seconds": used.ru_utime + used.ru_stime,
        "process_peak_memory_megabytes": used.ru_maxrss / 1024,
    }
    import torch

    if torch.cuda.is_available():
        usage["gpu_peak_memory_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    return usage
