import threading
import time

import pytest

from echostill.platform.errors import UsageError
from echostill.platform.ray_tasks import Crew


def double(number):
    if number == 13:
        raise UsageError("thirteen is refused")
    return 2 * number


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_argument_once(threads):
    found = dict(Crew(threads=threads).map(double, range(12)))
    assert found == {number: 2 * number for number in range(12)}
    assert dict(Crew(threads=threads).map(double, [])) == {}


def test_what_a_task_refuses_is_passed_on_and_the_rest_is_not_started():
    started = []

    def task(number):
        started.append(number)
        return double(number + 13)

    with pytest.raises(UsageError, match="thirteen"):
        list(Crew(threads=1).map(task, range(1000)))
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

    for _ in Crew(threads=2).map(task, range(200)):
        with lock:
            waiting -= 1
        time.sleep(0.0005)
    assert most <= 8


def test_over_ray(ray_cluster):
    found = dict(Crew(workers=2).map(double, range(5)))
    assert found == {number: 2 * number for number in range(5)}
    with pytest.raises(UsageError, match="thirteen"):
        list(Crew(workers=2).map(double, [13]))
