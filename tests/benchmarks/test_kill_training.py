"""The benchmark of killed training at its smallest: a node goes, and another one comes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
def test_two_workers_then_one_then_two_end_as_one_that_was_left_alone():
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_training.py"), "--json"]
    command += ["--kills", "1", "--kinds", "node", "--steps", "40", "--seed", "21"]
    command += ["--pace", "0.8"]  # the other node has to come before the run ends
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == ["node"]
    assert result["workers"] == [2, 1, 2]
    assert result["first_steps"][0] == 0
    assert all(step >= 7 for step in result["first_steps"][1:])  # from a checkpoint
    assert result["stream_equal"]
    assert result["once_per_epoch"]
    assert result["loss_difference"] < 1e-4
    assert result["mlflow_runs"] == 1
