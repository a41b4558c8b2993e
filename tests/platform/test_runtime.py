"""Connecting to Ray: what it must not say, and what must not be imported before."""

import os
import subprocess
import sys

import pytest

MODULES = (
    "curation.ingestion.stage",
    "curation.scoring.stage",
    "curation.copies.stage",
    "curation.selection.stage",
    "distill.pretraining",
    "distill.cache.stage",
    "distill.distillation",
    "eval.evaluation",
    "jobs.cli.main",
    "jobs.pipeline",
    "jobs.sweeps.sweep",
)
QUIET = """
import sys, time
from echostill.platform import runtime
runtime.connect_ray()
import logging, ray.data
logging.getLogger("ray.data").setLevel(logging.ERROR)

class Same:
    def __call__(self, batch):
        return batch

pool = ray.data.ActorPoolStrategy(size=2)
rows = ray.data.from_items([{"a": 1}] * 4).map_batches(Same, compute=pool, num_cpus=0.1)
print(sum(row["a"] for row in rows.iter_rows()))

@ray.remote(num_cpus=0.01)
class Actor:
    def call(self):
        return 1

actors = [Actor.remote() for _ in range(4 * len(__import__("os").sched_getaffinity(0)) + 2)]
print(sum(ray.get([actor.call.remote() for actor in actors])) == len(actors))
time.sleep(3)  # what the node says of its workers comes with its next look
print("to the end", file=sys.stderr)
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_no_stage_imports_ray_before_it_connects():
    """Ray reads its environment, which `connect_ray` sets, when it is imported."""
    code = "import sys\n" + "\n".join(f"import echostill.{name}" for name in MODULES)
    done = run(f"{code}\nprint([name for name in sys.modules if name.split('.')[0] == 'ray'])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.ray
def test_ray_says_nothing_of_what_is_planned_so():
    """Neither of actors' arguments in its object store nor of more workers than CPUs."""
    done = run(QUIET)
    assert (done.stdout, done.stderr) == ("4\nTrue\n", "to the end\n")


START = """
import subprocess
from types import SimpleNamespace
import ray
from echostill.platform import runtime

def attempts(started, kind):
    children, pauses = [], []

    def slow(**options):
        assert options["address"] == "local"
        children.append(subprocess.Popen(["sleep", "100"]))
        if len(children) < started:
            raise kind("its processes were too slow.")
        return SimpleNamespace(dashboard_url="")

    ray.init, runtime.time = slow, SimpleNamespace(sleep=pauses.append)
    try:
        runtime.connect_ray()
        living = children.pop()
        print("connected", living.poll())
        living.kill()
    except Exception as error:
        print(type(error).__name__, str(error)[:21])
    print(pauses, [child.wait(timeout=20) for child in children])

runtime._spend_warning = lambda: None
attempts(9, Exception)
attempts(9, OSError)  # another attempt would end as this one
attempts(3, Exception)
"""


@pytest.mark.slow
def test_a_local_ray_that_starts_too_slowly_is_started_again():
    """What a failed attempt had started is ended before the next one."""
    done = run(START, RAY_ADDRESS="")
    assert done.stdout.splitlines() == [
        *("EchostillError Ray did not start: it", "[10.0, 30.0, 60.0] [-9, -9, -9, -9]"),
        *("EchostillError Ray did not start: it", "[] [-9]"),
        *("connected None", "[10.0, 30.0] [-9, -9]"),
    ]
    assert done.stderr.count("Next attempt in") == 5
