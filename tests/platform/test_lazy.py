import gc
import sys
from types import ModuleType

import pytest

from echostill.platform.lazy import MANY, loading


@pytest.fixture
def freezes(monkeypatch):
    called = []
    monkeypatch.setattr(gc, "freeze", lambda: called.append(True))
    return called


def test_garbage_is_not_looked_for_while_libraries_load(freezes, monkeypatch):
    with loading():
        assert not gc.isenabled()
        for number in range(MANY + 1):
            monkeypatch.setitem(sys.modules, f"made_up_{number}", ModuleType("made_up"))
        assert not freezes
    assert gc.isenabled()
    assert freezes == [True]


def test_nothing_is_kept_for_good_where_little_was_loaded(freezes):
    with loading():
        pass
    assert not freezes


def test_a_failed_import_leaves_the_collector_as_it_was(freezes):
    with pytest.raises(ImportError), loading():
        raise ImportError("no such library")
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
