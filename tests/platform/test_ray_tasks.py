import os
import sys
import threading
import time
from pathlib import Path

import pytest

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.ray_tasks import TaskPool

# Ray's workers cannot import a test: what they need of it travels with them.
pytest.importorskip("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])


def double(number):
    if number == 13:
        raise UsageError("thirteen is refused")
    if number == 14:
        raise KeyError(14)
    return 2 * number


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_once(threads):
    found = dict(TaskPool(threads=threads).map(double, range(12)))
    assert found == {number: 2 * number for number in range(12)}
    assert dict(TaskPool(threads=threads).map(double, [])) == {}


def test_what_a_task_refuses_is_passed_on_and_the_rest_is_not_started():
    started = []

    def task(number):
        started.append(number)
        return double(number + 13)

    with pytest.raises(UsageError, match="thirteen"):
        list(TaskPool(threads=1).map(task, range(1000)))
    assert len(started) < 1000


def test_results_do_not_pile_up():
    waiting, most = 0, 0
    lock = threading.Lock()

    def task(number):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        return number

    for _ in TaskPool(threads=2).map(task, range(200)):
        with lock:
            waiting -= 1
        time.sleep(0.0005)
    assert most <= 8


def test_a_task_is_made_once_in_each_thread():
    made = []

    def make():
        made.append(threading.get_ident())
        return str

    found = dict(TaskPool(threads=3).map_made(make, range(50)))
    assert found == {number: str(number) for number in range(50)}
    assert len(made) == len(set(made)) <= 3


def test_over_ray(ray_cluster):
    found = dict(TaskPool(workers=2).map(double, range(5)))
    assert found == {number: 2 * number for number in range(5)}
    assert dict(TaskPool(workers=2).map(double, [])) == {}
    assert dict(TaskPool(workers=2).map_made(lambda: double, [])) == {}


@pytest.mark.parametrize("made", [False, True])
def test_errors_of_workers_are_in_words(ray_cluster, made):
    pool = TaskPool(workers=2, cpus=0.5, kept="The rest is kept.")

    def run(item, describe=None):
        mapped = (
            pool.map_made(lambda: double, [1, item], describe=describe)
            if made
            else pool.map(double, [1, item], describe=describe)
        )
        return list(mapped)

    with pytest.raises(UsageError, match=r"^thirteen is refused The rest is kept\.$"):
        run(13)
    with pytest.raises(
        EchostillError, match=r"^doubling 14: a worker failed: KeyError: 14\. The rest is kept\.$"
    ):
        run(14, lambda item: f"doubling {item}")


def test_actors_make_their_task_once_and_end_with_the_iteration(ray_cluster, tmp_path):
    def make():
        (tmp_path / f"made-{os.getpid()}-{time.time_ns()}").touch()
        return lambda number: (os.getpid(), number)

    found = dict(TaskPool(workers=2, cpus=0.5).map_made(make, range(20)))
    workers = {process for process, _ in found.values()}
    assert {number: value for number, (_, value) in found.items()} == dict(enumerate(range(20)))
    assert len(list(tmp_path.iterdir())) == len(workers) <= 2

    begun = TaskPool(workers=2, cpus=0.5).map_made(make, range(1000))
    workers.add(next(begun)[1][0])
    begun.close()
    deadline = time.monotonic() + 60
    while living := {process for process in workers if Path(f"/proc/{process}").exists()}:
        assert time.monotonic() < deadline, f"workers are left: {living}"
        time.sleep(0.1)


@pytest.mark.parametrize("made", [False, True])
def test_an_item_whose_worker_was_lost_is_done_again(ray_cluster, tmp_path, made):
    def task(number):
        mark = tmp_path / f"{number}"
        if number in (3, 7) and not mark.exists():
            mark.touch()
            os._exit(1)
        return 2 * number

    pool = TaskPool(workers=2, cpus=0.5)
    found = dict(pool.map_made(lambda: task, range(10)) if made else pool.map(task, range(10)))
    assert found == {number: 2 * number for number in range(10)}


@pytest.mark.parametrize("made", [False, True])
def test_no_more_are_on_their_way_than_there_are_workers(ray_cluster, tmp_path, made):
    def task(number):
        (tmp_path / f"{number}").touch()
        return number

    pool = TaskPool(workers=2, cpus=0.5)
    mapped = pool.map_made(lambda: task, range(40)) if made else pool.map(task, range(40))
    for seen, _ in enumerate(mapped, 1):
        assert len(list(tmp_path.iterdir())) <= seen + 2
