import gc
import sys
import tomllib
from pathlib import Path

import pytest

from echostill.jobs.cli.start import main


def test_the_command_begins_here_and_searches_for_garbage_once_it_is_loaded(monkeypatch, capsys):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["echostill"] == f"{main.__module__}:main"
    monkeypatch.setattr(sys, "argv", ["echostill", "--version"])
    try:
        with pytest.raises(SystemExit) as end:
            main()
        assert gc.isenabled()
    finally:
        gc.unfreeze()
    assert not end.value.code
    assert capsys.readouterr().out.startswith("echostill ")
