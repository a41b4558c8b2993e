"""The worker's own error out of everything that Ray wraps around it, raised by Ray itself."""

import os
import sys
import threading

import pytest

from echostill.platform import runtime
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.ray_errors import LENGTH, cause_of, worker_errors

# Ray's workers cannot import a test: what they need of it travels with them.
pytest.importorskip("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])


class NotSentError(Exception):
    """Cannot be pickled, so Ray sends its text alone."""

    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class NotReadError(Exception):
    """Cannot be made again from what is pickled."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def fail(kind):
    if kind == "refused":
        raise UsageError("budget 7 does not fit: ask for 5.")
    if kind == "ours":
        try:
            raise ValueError("root")
        except ValueError as error:
            raise EchostillError("the tokens are not finite. Do this.") from error
    if kind == "lines":
        raise ValueError("first line\n  second line")
    if kind == "key":
        raise KeyError("x")
    if kind == "silent":
        raise MemoryError
    if kind == "not sent":
        raise NotSentError
    if kind == "not read":
        raise NotReadError(1, 2)
    if kind == "dies":
        os._exit(7)
    return kind


# As a plain task and from where Ray leaves only text; and whether the kind of the error is known.
WORDS = {
    "refused": (UsageError, "budget 7 does not fit: ask for 5."),
    "ours": (EchostillError, "the tokens are not finite. Do this."),
    "lines": (EchostillError, "ValueError: first line second line."),
    "key": (EchostillError, "KeyError: 'x'."),
    "silent": (EchostillError, "MemoryError."),
    "not sent": (EchostillError, "NotSentError: holds a lock."),
    "not read": (EchostillError, "NotReadError: 1 and 2."),
}


def caught(call, *arguments):
    with pytest.raises(Exception) as info:
        call(*arguments)
    return info.value


def words(error):
    found = cause_of(error)
    return type(found), str(found)


@pytest.mark.parametrize("kind", WORDS)
def test_of_a_task(ray_cluster, kind):
    import ray

    task = ray.remote(max_retries=0)(fail)
    assert words(caught(ray.get, task.remote(kind))) == WORDS[kind]


def test_of_a_worker_that_died(ray_cluster):
    import ray

    task = ray.remote(max_retries=0)(fail)
    found = cause_of(caught(ray.get, task.remote("dies")))
    assert type(found) is EchostillError
    assert str(found).startswith("WorkerCrashedError: The worker died unexpectedly")
    assert str(found).endswith(".")


# As Ray words it for a task that its memory monitor ended.
LOW = (
    "1 worker(s) were killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.1, ID: 6f) was 15.23GB used / 16.00GB limit (0.951875)"
)


def test_of_a_worker_without_memory():
    """Neither the caller's fault nor a riddle: Ray's own exceptions, bare and as text alone."""
    from ray.exceptions import (
        ActorDiedError,
        NodeDiedError,
        OutOfMemoryError,
        RayTaskError,
        WorkerCrashedError,
    )

    text = f"Traceback ...\nray.exceptions.OutOfMemoryError: {LOW}"
    wrapped = RayTaskError("score", text, OutOfMemoryError(LOW))
    for error in (OutOfMemoryError(LOW), wrapped):
        found = cause_of(error)
        assert type(found) is EchostillError
        assert "ran out of memory (15.23GB of 16.00GB in use)" in str(found)
        assert "use fewer workers, a smaller batch" in str(found)
    for error in (WorkerCrashedError(), ActorDiedError(), NodeDiedError("its node died")):
        found = cause_of(error)
        assert type(found) is EchostillError
        assert "most often ended for lack of memory: use fewer workers" in str(found)
        assert len(str(found).splitlines()) == 1


class Actor:
    def __init__(self, kind=None):
        fail(kind)

    def call(self, kind):
        return fail(kind)


@pytest.mark.parametrize("kind", WORDS)
def test_of_an_actor_and_of_its_start(ray_cluster, kind):
    import ray

    actor = ray.remote(num_cpus=0.1)(Actor)
    assert words(caught(ray.get, actor.remote().call.remote(kind))) == WORDS[kind]
    found = words(caught(ray.get, actor.remote(kind).call.remote(None)))
    expected = WORDS[kind]
    if kind == "lines":  # of a traceback only the line that names the error is known
        expected = (EchostillError, "ValueError: first line.")
    assert found == expected


class Mapper:
    def __init__(self, kind, early):
        self.kind = kind
        if early:
            fail(kind)

    def __call__(self, batch):
        fail(self.kind)
        return batch


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", ["refused", "ours", "key"])
def test_of_ray_data(ray_cluster, kind, early):
    import ray.data

    data = ray.data.from_items([{"a": 1}]).map_batches(
        Mapper,
        fn_constructor_args=(kind, early),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,  # what is left of a failed pool must not keep CPUs from the tests that follow
    )
    assert words(caught(list, data.iter_batches(batch_size=None))) == WORDS[kind]


@pytest.mark.parametrize("kind", ["refused", "key"])
def test_of_ray_train(ray_cluster, tmp_path, kind):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        fail,
        train_loop_config=kind,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1}),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    assert words(caught(trainer.fit)) == WORDS[kind]


def test_of_ray_tune(ray_cluster, tmp_path, monkeypatch):
    from ray import tune

    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    kinds = ["ours", "key"]
    tuner = tune.Tuner(
        tune.with_resources(lambda choice: fail(choice["kind"]), {"cpu": 0.1}),
        param_space={"kind": tune.grid_search(kinds)},
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    found = {result.config["kind"]: words(result.error) for result in tuner.fit()}
    assert found == {kind: WORDS[kind] for kind in kinds}


def test_of_an_error_that_is_not_rays():
    assert words(ValueError("no")) == (EchostillError, "ValueError: no.")
    assert words(UsageError("no.")) == (UsageError, "no.")
    long = str(cause_of(ValueError("x" * 10_000)))
    assert len(long) < LENGTH + 30
    assert long.endswith("...")


def test_what_is_said_of_a_failure(ray_cluster):
    import ray

    task = ray.remote(max_retries=0)(fail)
    cases = {
        "refused": (UsageError, "score: budget 7 does not fit: ask for 5. Kept."),
        "key": (EchostillError, "score: a worker failed: KeyError: 'x'. Kept."),
    }
    for kind, (expected, text) in cases.items():
        with pytest.raises(EchostillError) as info, worker_errors("score", "Kept."):
            ray.get(task.remote(kind))
        assert type(info.value) is expected
        assert str(info.value) == text
    with (
        pytest.raises(EchostillError, match=r"^a worker failed: KeyError: 'x'\.$"),
        worker_errors(),
    ):
        ray.get(task.remote("key"))


def test_what_is_not_rays_passes():
    with pytest.raises(ValueError, match="mine"), worker_errors("score", "Kept."):
        raise ValueError("mine")


def test_an_interruption_is_one_unless_ray_died(monkeypatch):
    with pytest.raises(KeyboardInterrupt), worker_errors("score"):
        raise KeyboardInterrupt
    monkeypatch.setattr(runtime, "_lost", ["raylet"])
    with (
        pytest.raises(EchostillError, match=r"^score: Ray's own process 'raylet'.*is kept"),
        worker_errors("score", "Not said twice."),
    ):
        raise KeyboardInterrupt
    runtime._asked.clear()
