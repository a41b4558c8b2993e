"""The marks are where they belong: without one, neither Ray nor a browser starts."""

import importlib
import subprocess
import sys

import pytest
import ray

from echostill.platform import runtime


@pytest.mark.parametrize(("fixture", "mark"), [("ray_cluster", "ray"), ("browser", "browser")])
def test_who_takes_the_fixture_has_the_mark(request, fixture, mark):
    for item in request.session.items:
        if fixture in item.fixturenames:
            assert item.get_closest_marker(mark), item.nodeid


def test_without_the_mark_ray_does_not_start():
    for start in (ray.init, runtime.connect_ray):
        with pytest.raises(pytest.fail.Exception, match=r"mark it with @pytest.mark.ray"):
            start(address="local")


def test_without_the_mark_a_child_process_starts_no_ray():
    code = "from echostill.platform import runtime; runtime.connect_ray()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Ray did not start" in done.stderr
    assert "this-test-is-not-marked-ray" in done.stderr


def test_without_the_mark_no_browser_starts():
    with pytest.raises(ImportError):
        importlib.import_module("playwright.sync_api")
