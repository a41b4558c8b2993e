"""Every family of timm, built without numbers: each use works, or is refused in words.

benchmarks/model_families.py does the same with numbers, which takes minutes.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import timm

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SLOW = {"sequencer"}  # its recurrent layers take seconds even without numbers


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))  # for what the benchmarks share
    try:
        spec = importlib.util.spec_from_file_location("families", FOLDER / "model_families.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.slow
def test_each_family_works_or_is_refused_in_words(benchmark):
    known = {
        family: name
        for family, name in benchmark.FAMILIES.items()
        if timm.is_model(name) and family not in SLOW
    }
    assert len(known) >= 60
    wrong, working = {}, dict.fromkeys(benchmark.USES, 0)
    for family, name in known.items():
        for use, words in benchmark.try_family(name, build=True).items():
            working[use] += words.startswith("works: ")
            if words.startswith("FAILED") or (
                words.startswith("refused: ") and f"'timm:{name}'" not in words
            ):
                wrong[f"{family}, {use}"] = words
    assert wrong == {}
    assert working["features"] >= 60
    assert working["teacher"] >= 60
    assert working["student"] >= 50
