"""The check of a GPU in miniature on a CPU: all of it but the GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from echostill.platform.training.batches import make_batch
from echostill.platform.training.collective import TrainingWorker

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("gpu_check")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.slow  # trains small models
def test_in_miniature_all_agrees_and_the_full_form_fits_its_time(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu_check.py"), "--mini", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["passed"]
    assert found["estimated_seconds"] < 480
    assert {"matrix", "distillation"} <= found["rates"].keys()
    parts = {part["part"]: part for part in found["parts"]}
    assert {"views", "models", "steps", "coreset", "distillation", "k-means"} <= parts.keys()
    assert all(part["state"] == "done" for part in parts.values())
    assert sum(len(part["checks"]) for part in parts.values()) >= 12
    assert parts["distillation"]["values"]["hours for 200,000 images x 400 epochs"] > 0


def test_operations_of_a_step_are_those_that_torch_counts(benchmark):
    scale, training = benchmark.MINI, importlib.import_module("gpu_training")
    images = training.synthetic_images(2, scale.image_size)
    settings = training.settings_of(scale, 1, batch_size=2, crops_on="cpu")
    batch = make_batch(images, settings, 0, scale.image_size, 0, TrainingWorker())
    task = training.distillation(scale)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)[0].backward()
    counted = counter.get_total_flops() / 2
    # Adapters are left out, and a first layer has no gradient of its input to compute.
    assert benchmark.distillation_work(scale) == pytest.approx(counted, rel=0.1)


def test_exit_codes_say_what_happened(benchmark, tmp_path, monkeypatch, capsys):
    def wrong(*arguments):
        with pytest.raises(SystemExit) as caught:
            benchmark.main(list(arguments))
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "no such part: nothing" in wrong("--mini", "--only", "nothing")
    assert "there is no folder" in wrong("--mini", "--out", str(tmp_path / "absent" / "x.json"))
    assert "at least 1" in wrong("--mini", "--batch", "0")
    if not torch.cuda.is_available():
        assert "torch sees no GPU here" in wrong()

    def part(run):
        return [benchmark.Part("one", 0.02, lambda *_: 1.0, run)]

    def agrees(scale, report, rates):
        report.most("difference", 0.0, 1e-6)

    def differs(scale, report, rates):
        report.most("difference", float("nan"), 1e-6)

    def overruns(scale, report, rates):
        while True:
            sum(range(1000))

    def fails(scale, report, rates):
        raise ValueError("no such thing")

    out = tmp_path / "gpu.json"
    for run, code, state in (
        (agrees, 0, "done"),
        (differs, 1, "done"),
        (overruns, 1, "stopped after 0 s"),
        (fails, 1, "failed: ValueError: no such thing"),
    ):
        monkeypatch.setattr(benchmark, "parts", lambda run=run: part(run))
        assert benchmark.main(["--mini", "--out", str(out)]) == code
        assert json.loads(out.read_text())["parts"][0]["state"] == state
