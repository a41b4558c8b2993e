"""Three kills at random moments, of the driver, an actor and the raylet; and a node that is lost.

The harness is benchmarks/kill_stages.py, which does twenty of every kind.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[3] / "benchmarks" / "kill_stages.py"


@pytest.mark.ray
def test_after_kills_the_tables_are_those_of_an_undisturbed_run(tmp_path):
    arguments = ["--kills", "3", "--kinds", "driver,actor,raylet", "--images", "48", "--node"]
    done = subprocess.run(
        [sys.executable, str(HARNESS), *arguments, "--per-shard", "8", "--seed", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == {"actor": 1, "driver": 1, "raylet": 1}
    assert result["files_differing"] == []
    assert result["files_compared"] > 20
    assert result["silent_ends"] == []
    assert result["node_files_differing"] == []
    assert result["node_shards_repeated"] <= 2
    (told,) = result["node_lost"]
    assert "1 node of 1 CPU" in told.partition("the cluster has")[2]
    assert result["resumed"] == 2
    assert result["shards_repeated"] <= result["shards_repeated_allowed"] == 5
    assert done.returncode == 0
