import csv
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from echostill.eval.candidates import Unit
from echostill.eval.datasets import LabelledDataset
from echostill.eval.evaluation import EvaluateConfig, evaluate_unit, plan_evaluate
from echostill.eval.finetune import FineTuneSettings
from echostill.eval.probing.candidates import Protocol
from echostill.eval.splits import dataset_folds
from echostill.platform.config import load
from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.store import Store

QUICKSTART = "examples/quickstart/config.yaml"


def test_a_seed_counts_once():
    with pytest.raises(UsageError, match="more than once"):
        load(EvaluateConfig, "evaluate", QUICKSTART, ["seeds=[1, 1]"])


def test_labels_of_trivial_candidates_are_taken():
    with pytest.raises(UsageError, match="'constant' is always evaluated"):
        load(EvaluateConfig, "evaluate", QUICKSTART, ["candidates=[{label: constant}]"])


def planned(folder, rows, kind="classification", config=None, **task):
    """Plan an evaluation of the untrained student on a manifest of these rows."""
    for index, row in enumerate(rows):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        row.setdefault("file", f"{index}.png")
    with open(folder / "task.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    task = {"name": "toy", "kind": kind, "manifest": str(folder / "task.csv"), **task}
    values = {
        "store": str(folder / "store"),
        "student": "tinyusfm-micro",
        "student_image_size": 32,
        "tasks": [task],
        "candidates": [{"label": "untrained student", "kind": "untrained"}],
        "comparisons": [{"first": "untrained", "second": "thumbnail"}],
        **(config or {}),
    }
    return plan_evaluate(EvaluateConfig.model_validate(values, strict=False))


def classified(labels="aabb", groups=None):
    groups = groups or [f"g{k}" for k in range(len(labels))]
    return [{"label": label, "group": group} for label, group in zip(labels, groups, strict=True)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": "a", "patient": "g"}], "no column 'group'"),
        ([{**classified()[0], "file": "gone.png"}, *classified()[1:]], "'gone.png' .* is missing"),
        ([{**row, "file": "0.png"} for row in classified()], "row 3 names '0.png' again"),
        (classified("aaaa"), "only the class 'a'"),
        (classified("aab"), r"class 'b' has 1 group"),
        (classified("aabb", list("xyzz")), r"class 'b' has 1 group"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        planned(tmp_path, rows)


def test_a_dry_run_reads_masks(tmp_path):
    rows = []
    for index in range(4):
        Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(tmp_path / f"m{index}.png")
        rows.append({"mask": f"m{index}.png", "group": f"g{index}"})
    Image.fromarray(np.full((9, 8), 255, dtype=np.uint8)).save(tmp_path / "m3.png")
    with pytest.raises(UsageError, match=r"mask 'm3.png' is 8 x 9 pixels, but its image 8 x 8"):
        planned(tmp_path, rows, kind="segmentation")


def test_an_evaluation_names_its_precision(tmp_path):
    rows = classified()
    for given, expected in (("auto", "float32"), ("bfloat16", "bfloat16")):
        lines = planned(tmp_path, rows, config={"precision": given}).describe().splitlines()
        assert ["precision", expected] in [line.split() for line in lines]
    begun = Fingerprint({"precision": "bfloat16"}, "1", {}, {})
    storage = Store(str(tmp_path / "store")).report("default")
    storage.write("fingerprint.json", json.dumps({**begun.as_dict(), "stage": "evaluate"}).encode())
    with pytest.raises(UsageError, match=r"precision bfloat16 -> unset"):
        planned(tmp_path, rows, config={"precision": "float32"})
    with pytest.raises(UsageError) as caught:  # refused for other keys: the precision is kept
        planned(tmp_path, rows)
    assert "precision" not in str(caught.value)


def test_a_dry_run_reads_the_official_split(tmp_path):
    sides = ["train", "train", "train", "test", "train", "train"]
    rows = [{**row, "split": side} for row, side in zip(classified("aabbab"), sides, strict=True)]
    with pytest.raises(UsageError, match="the test side has no image of class 'a'"):
        planned(tmp_path, rows)


def test_a_dry_run_warns_of_sets_with_few_groups(tmp_path):
    few = classified("aaaabbbb", list("pqrsxxyy"))
    told = planned(tmp_path, few).describe()
    assert (
        "toy: only 2 groups of class 'b' are tested: its intervals are very wide, and no "
        "difference can be told from chance, which takes at least 6 groups with the planned "
        "comparison."
    ) in " ".join(told.split())
    enough = planned(tmp_path, classified("ab" * 6)).describe()
    assert "warning" not in enough


def test_comparisons_that_cannot_be_made_are_told(tmp_path):
    pair = {"first": "untrained", "second": "thumbnail"}
    named = [pair, {"first": "distilled", "second": "constant"}]
    told = planned(tmp_path, classified("ab" * 6), config={"comparisons": named}).describe()
    assert "not compared, since one has no candidate: distilled and constant" in told
    for method, message in (("lineer probe", "Did you mean 'linear probe'"), ("fine-tuned", "{}")):
        wrong = {"comparisons": [{**pair, "method": method}]}
        with pytest.raises(ValidationError, match=message):
            planned(tmp_path, classified("ab" * 6), config=wrong)


def test_rows_of_a_fine_tuning_say_how_it_ended():
    """Two steps, so a single look: it may still improve."""
    groups = np.array([f"g{k:02d}" for k in range(16)])
    pixels = np.random.default_rng(0).integers(0, 255, (16, 3, 32, 32), dtype=np.uint8)
    data = LabelledDataset(
        "toy", "classification", tuple(groups), groups, pixels, np.arange(16) % 2, None,
        ("a", "b"), None, (),
    )  # fmt: skip
    unit = Unit("raw", "toy", 0, "", None, "tinyusfm-micro", image_size=32)
    protocol = Protocol(data, dataset_folds(data, 2, 0))
    tuned = FineTuneSettings(steps=2, batch_size=4, frozen=True, rates=(1.0,))
    rows = evaluate_unit(unit, data, protocol, tuned).to_pandas()
    own = rows[rows["method"] == "fine-tuned"]
    assert sorted(own["image"]) == list(groups)
    assert own["steps"].tolist() == [2] * 16
    assert own["converged"].tolist() == [False] * 16
    assert rows[rows["method"] != "fine-tuned"][["steps", "converged"]].isna().all(axis=None)
