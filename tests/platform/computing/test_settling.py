"""What a result's precision is settled to, and how a fingerprint names it."""

import json

import pytest

from echostill.platform.cluster.nodes import Node
from echostill.platform.cluster.plans import NodesMissingError, WorkerPlan
from echostill.platform.computing import settling
from echostill.platform.computing.settling import (
    PrecisionConfig,
    precision_of,
    say_if_slow,
    settle,
    settled,
    with_precision,
)
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.storage import Storage

EMPTY = Fingerprint({"a": 1}, "1", {}, {})


@pytest.fixture
def machine(monkeypatch):
    """Say which GPUs there are: on this machine, and on the cluster that is asked for them."""

    def give(here, there, bfloat16=True):
        asked = []
        monkeypatch.setattr(settling.runtime, "is_alone", lambda address: address is None)
        monkeypatch.setattr(settling, "nodes_here", lambda: [Node(2.0, here)])
        monkeypatch.setattr(settling, "dry_nodes", lambda config: [Node(2.0, there)])
        monkeypatch.setattr(settling, "gpus_have_bfloat16", lambda: bfloat16)

        def plan(config, make):
            asked.append(config.address)
            return make([Node(2.0, there)])

        monkeypatch.setattr(settling, "plan_on_cluster", plan)
        return asked

    return give


def make(nodes):
    return WorkerPlan(1, 1.0, 1, nodes[0].gpus)


@pytest.mark.parametrize(
    ("begun", "given", "gpus", "expected"),
    [
        (None, "auto", 0.0, "float32"),
        (None, "auto", 1.0, "bfloat16"),
        (None, "float32", 1.0, "float32"),
        ({}, "auto", 1.0, "float32"),  # begun before there was a choice, or on CPUs
        ({"precision": "bfloat16"}, "auto", 0.0, "bfloat16"),
        ({"precision": "bfloat16"}, "float32", 0.0, "float32"),  # which the claim then refuses
    ],
)
@pytest.mark.parametrize("connect", [True, False])
def test_what_was_begun_keeps_its_precision(
    begun, given, gpus, expected, connect, machine, tmp_path
):
    machine(gpus, gpus)
    folder = Storage(str(tmp_path))
    if begun is not None:
        made_from = Fingerprint(begun, "1", {}, {})
        folder.write("fingerprint.json", json.dumps(made_from.as_dict()).encode())
    config = PrecisionConfig(precision=given)
    assert settle(config, folder, make, connect=connect).precision == expected
    anew = settle(config, folder, make, overwrite=True, connect=connect).precision
    assert anew == (given if given != "auto" else "bfloat16" if gpus else "float32")


@pytest.mark.parametrize("connect", [True, False])
@pytest.mark.parametrize(
    ("keys", "here", "there", "bfloat16", "expected"),
    [
        ({}, 0.0, 0.0, True, "float32"),
        ({}, 1.0, 1.0, False, "float16"),
        ({"compute_on": "cpu"}, 1.0, 1.0, True, "float32"),
        ({"address": "head:6379"}, 0.0, 1.0, True, "bfloat16"),
        ({"address": "head:6379"}, 1.0, 0.0, True, "float32"),
    ],
)
def test_a_new_result_follows_the_workers(
    keys, here, there, bfloat16, expected, connect, machine, tmp_path
):
    asked = machine(here, there, bfloat16)
    config = PrecisionConfig(**keys)
    folder = Storage(str(tmp_path))
    assert settled("auto", folder, config, make, connect=connect) == expected
    # Ray is not started to hear that a machine without GPUs has none.
    needed = keys.get("address") or (here and not keys.get("compute_on"))
    assert len(asked) == bool(connect and needed)


def test_a_dry_run_plans_for_gpus_that_are_to_come(machine, tmp_path):
    machine(0.0, 0.0)

    def missing(nodes):
        raise NodesMissingError("no node", 1, 1.0, 1.0)

    config = PrecisionConfig(address="head:6379")
    folder = Storage(str(tmp_path))
    assert settled("auto", folder, config, missing, connect=False) == "bfloat16"


def test_a_fingerprint_names_every_precision_but_float32():
    assert with_precision(EMPTY, "float32") is EMPTY
    assert precision_of(EMPTY.configuration) == "float32"
    for key in ("precision", "computed_in"):
        named = with_precision(EMPTY, "bfloat16", key)
        assert named.configuration == {"a": 1, key: "bfloat16"}
        assert precision_of(named.configuration, key) == "bfloat16"
        assert named.digest != EMPTY.digest


def test_slow_precisions_are_said(capsys):
    say_if_slow("score", "float32", WorkerPlan(1, 1.0, 1, 0.0))
    say_if_slow("score", "bfloat16", WorkerPlan(1, 1.0, 1, 1.0))
    assert not capsys.readouterr().err
    say_if_slow("score", "bfloat16", WorkerPlan(1, 1.0, 1, 0.0))
    assert "score: computes in bfloat16 on CPUs" in capsys.readouterr().err
