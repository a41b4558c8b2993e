"""Runs and zoo models by name."""

import pytest
import torch

from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, save_weights, weights_digest
from echostill.platform.models.trained import open_run, open_zoo
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.store import Store, finish_run

MADE = Fingerprint({"a": 1}, "0", {}, {})


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "store"))
    torch.manual_seed(0)
    run = store.run("student-0")
    path = run.local_path("model.safetensors")
    save_weights(create_encoder("tinyusfm-micro", image_size=64), path, {})
    finish_run(run, stage="distill", files=["model.safetensors"], fingerprint=MADE)
    store.run("begun").write("fingerprint.json", b"{}")
    finish_run(store.run("proxy"), stage="proxy", files=[], fingerprint=MADE)
    return store


def test_a_run_gives_its_model_at_its_own_size(store):
    found = open_run(store, "student-0")
    path = store.run("student-0").local_path("model.safetensors")
    assert (found.encoder.name, found.encoder.image_size) == ("tinyusfm-micro", 64)
    assert (found.run, found.digest) == ("student-0", weights_digest(path))
    assert found.fingerprint == MADE.digest
    assert not found.encoder.training
    torch.manual_seed(0)
    own = create_encoder("tinyusfm-micro", image_size=64).backbone.state_dict()
    loaded = found.encoder.backbone.state_dict()
    assert all(torch.equal(own[key], loaded[key]) for key in own)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("studnet-0", "Did you mean 'student-0'.*There are: proxy, student-0"),
        ("begun", "run 'begun'.*is not finished"),
        ("proxy", r"made no model of its own \(proxy\)"),
    ],
)
def test_what_is_no_finished_run_is_named(store, name, words):
    with pytest.raises(UsageError, match=words):
        open_run(store, name)


def test_a_store_without_runs_says_so(tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        open_run(Store(str(tmp_path)), "any")


def test_a_zoo_model_takes_weights_that_fit(store, tmp_path):
    save_weights(create_encoder("tinyusfm-micro"), tmp_path / "w.safetensors", {})
    found = open_zoo("tinyusfm-micro", str(tmp_path / "w.safetensors"))
    assert (found.run, found.encoder.name) == ("", "tinyusfm-micro")
    with pytest.raises(UsageError, match="does not fit"):
        open_zoo("usfm-micro", str(tmp_path / "w.safetensors"))
