"""Every number of a report's results, computed again from the table of predictions on disk.

The computation here shares no code with the product: pandas, numpy, scikit-learn's metrics, and its
own draws. It is what a reader does who trusts nothing but the predictions.
"""

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics

from echostill.eval.comparisons import DEFAULT, resolve
from echostill.eval.datasets import LabelledDataset
from echostill.eval.names import DISTILLED, UNTRAINED
from echostill.eval.predictions import PredictedBy, class_rows, few_shot_rows, mask_rows
from echostill.eval.probing.candidates import Protocol, trivial_rows
from echostill.eval.reporting.outcome import outcome
from echostill.eval.reporting.results import Results
from echostill.eval.splits import dataset_folds
from echostill.eval.summary import TaskInfo, summarise
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table

DRAWS = 4000
KEYS = ["task", "candidate", "method", "shots", "draw"]


# The computation: a frame of predictions in, numbers out.


def values_of(rows):
    """Images x classes: what the first metric is the mean of, NaN where a class has no say."""
    if rows["dice"].iloc[0] is not None:
        return np.stack(rows["dice"].to_numpy())
    classes = np.unique(rows["label"])
    hit = (rows["label"] == rows["predicted"]).to_numpy(float)
    return np.where(rows["label"].to_numpy()[:, None] == classes, hit[:, None], np.nan)


def first_metric(values):
    return float(np.nanmean(values, axis=0).mean())


def by_training(rows):
    ordered = [own.sort_values("image") for _, own in rows.groupby("training")]
    return ordered[0]["group_id"].to_numpy(), [values_of(own) for own in ordered]


def sums_of(groups, values):
    """Sums and counts of each group (G, C)."""
    own = groups[:, None] == np.unique(groups)
    return own.T @ np.nan_to_num(values), own.T @ (~np.isnan(values)).astype(float)


def spread_over_groups(groups, values, fewest):
    """The standard error of a mean over classes of (R, N, C) values, by draws of groups."""
    sums, counts = sums_of(groups, np.mean(values, axis=0))
    many = len(sums)
    drawn = np.random.default_rng(many).multinomial(many, np.full(many, 1 / many), DRAWS)
    with np.errstate(invalid="ignore"):
        means = np.nanmean((drawn @ sums) / (drawn @ counts), axis=1)
    return np.std(means) * np.sqrt(fewest / (fewest - 1))


def fewest_groups(groups, values):
    return min(len(set(groups[~np.isnan(own)])) for own in values.T)


def reach(parts, level=0.05):
    """Half an interval of independent parts (variance, degrees of freedom)."""
    total = sum(variance for variance, _ in parts)
    if total < 1e-20:
        return 0.0
    quantiles = [variance * stats.t.isf(level / 2, freedom) for variance, freedom in parts]
    return sum(quantiles) / total * np.sqrt(total)


def parts_of(groups, values, several):
    fewest = fewest_groups(groups, values[0])
    parts = [(spread_over_groups(groups, values, fewest) ** 2, fewest - 1)]
    return parts + [(np.var(own, ddof=1) / len(own), len(own) - 1) for own in several]


def difference_of(first, second):
    """Difference, its parts, and the share of swaps of whole groups that are as far from 0."""
    groups, one = by_training(first)
    other_groups, two = by_training(second)
    assert (groups == other_groups).all()
    apart = np.mean(one, axis=0) - np.mean(two, axis=0)
    a, b = ([first_metric(own) for own in values] for values in (one, two))
    several = [np.subtract(a, b)] if len(a) == len(b) else [a, b]
    several = [own for own in several if len(own) > 1]
    sums, counts = sums_of(groups, apart)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (DRAWS, len(sums)))
    signs[0] = 1.0
    rows = counts.sum(0)
    by_class = signs @ sums / rows
    influence = (signs[..., None] * sums - by_class[:, None] * counts) / rows
    error = np.sqrt((influence.mean(2) ** 2).sum(1))
    ratios = np.abs(by_class.mean(1)) / np.maximum(error, 1e-12)
    share = np.mean(ratios >= ratios[0] * (1 - 1e-6))
    return first_metric(apart), parts_of(groups, [apart], several), share


def p_value(value, parts, share):
    levels = np.geomspace(1e-9, 1, 400)
    inside = [level for level in levels if reach(parts, level) <= abs(value)]
    return max(min(inside, default=1.0) if value else 1.0, share)


def holm(p_values):
    order, adjusted, highest = np.argsort(p_values), np.empty(len(p_values)), 0.0
    for place, number in enumerate(order):
        highest = max(highest, min(1.0, p_values[number] * (len(p_values) - place)))
        adjusted[number] = highest
    return adjusted


def all_metrics(rows, classes, constant):
    if rows["dice"].iloc[0] is not None:
        found = {name: np.stack(rows[name].to_numpy()).mean() for name in ("dice", "iou", "hd95")}
        return {**found, "dice_gain": found["dice"] - constant}
    label, said = rows["label"], rows["predicted"]
    found = {"balanced_accuracy": metrics.balanced_accuracy_score(label, said)}
    for name in classes:
        found[f"recall {name}"] = (said[label == name] == name).mean()
    if rows["scores"].iloc[0] is not None:
        scores = np.stack(rows["scores"].to_numpy())
        assert (np.array(classes)[scores.argmax(1)] == said).all()
        areas = [metrics.roc_auc_score(label == n, scores[:, k]) for k, n in enumerate(classes)]
        found["auc"] = np.mean(areas) if len(classes) > 2 else areas[1]
        found["macro_f1"] = metrics.f1_score(label, said, average="macro", zero_division=0)
        found["accuracy"] = (label == said).mean()
    return found


def check(frame, evaluation):
    """Compare all numbers of an evaluation with those of the frame."""
    classes = {task["name"]: task["classes"] for task in evaluation["tasks"]}
    cells = {key: rows.sort_values("image") for key, rows in frame.groupby(KEYS)}
    whole = {key[:3]: rows for key, rows in cells.items() if key[3] == 0}

    def of(task, candidate, method):
        trivial = {"constant": "constant", "thumbnail": "linear probe"}.get(candidate, method)
        return whole.get((task, candidate, method), whole.get((task, candidate, trivial)))

    def masks(task):
        rows = of(task, "constant", "constant")
        return rows["dice"].iloc[0] is not None, rows

    count = 0
    for row in evaluation["results"]:
        name, _, shots = row["method"].partition("few-shot ")
        key = (row["task"], row["candidate"], name or "few-shot", int(shots or 0), row["draw"])
        own = cells[key][cells[key]["training"] == row["training"]]
        outlined, constant = masks(row["task"])
        level = np.stack(constant["dice"].to_numpy()).mean() if outlined else 0.0
        wanted = all_metrics(own, classes[row["task"]], level)
        got = {name: row["metrics"][name] for name in wanted}
        assert got == pytest.approx(wanted, abs=1e-9)
        assert len(classes[row["task"]]) > 1 or set(row["metrics"]) == set(wanted)
        count += 1
    assert count == len(frame.groupby([*KEYS, "training"]))
    for task, level in evaluation["chance"].items():
        outlined, constant = masks(task)
        wanted = first_metric(values_of(constant))
        assert level == pytest.approx(wanted, abs=1e-9)
    for row in evaluation["estimates"]:
        groups, values = by_training(of(row["task"], row["candidate"], row["method"]))
        each = [first_metric(own) for own in values]
        half = reach(parts_of(groups, values, [each] if len(each) > 1 else []))
        assert row["value"] == pytest.approx(np.mean(each), abs=1e-9)
        close(row, max(row["value"] - half, 0.0), min(row["value"] + half, 1.0))
    for row in evaluation["flags"]:
        trivial = {name: of(row["task"], name, row["method"]) for name in ("constant", "thumbnail")}
        levels = {name: first_metric(values_of(rows)) for name, rows in trivial.items()}
        assert levels[row["against"]] == pytest.approx(max(levels.values()))
        own = of(row["task"], row["candidate"], row["method"])
        value, parts, share = difference_of(own, trivial[row["against"]])
        half = max(reach(parts), abs(value) if share > 0.05 else 0.0)
        assert row["value"] == pytest.approx(value, abs=1e-9)
        close(row, value - half, value + half)
        assert row["ahead"] == (row["low"] > 0)
    check_few_shot(cells, evaluation)
    found = [
        difference_of(*(of(row["task"], row[side], row["method"]) for side in ("first", "second")))
        for row in evaluation["comparisons"]
    ]
    adjusted = holm([p_value(*own) for own in found])
    for row, (value, parts, share), own in zip(
        evaluation["comparisons"], found, adjusted, strict=True
    ):
        half = max(reach(parts), abs(value) if share > 0.05 else 0.0)
        assert row["value"] == pytest.approx(value, abs=1e-9)
        close(row, value - half, value + half)
        assert row["adjusted"] == pytest.approx(own, rel=0.4, abs=0.01)
        better = row["first"] if value > 0 else row["second"]
        level = of(row["task"], "constant", "constant")
        ahead, parts, share = difference_of(of(row["task"], better, row["method"]), level)
        near = ahead - reach(parts) <= 0 or share > 0.05
        assert row["near_chance"] == near
        word = "ahead" if value > 0 else "behind"
        assert row["word"] == (word if own <= 0.05 and not near else "not distinguished")


def few_shot_parts(draws, other=None):
    """Value and parts of a mean over draws, or of a difference of two: lists of frames."""
    names = sorted(set().union(*(own["group_id"] for own in draws)))
    by_draw = [by_training(own) for own in draws]
    values = [np.mean(own, axis=0) for _, own in by_draw]
    if other is not None:
        values = [
            v - np.mean(by_training(o)[1], axis=0) for v, o in zip(values, other, strict=True)
        ]
    each = [first_metric(own) for own in values]
    several = [[first_metric(own[1][r]) for own in by_draw] for r in range(len(by_draw[0][1]))]
    # Groups: each draw's metric anew from drawn groups, with the same ones in all draws.
    random, many = np.random.default_rng(0), len(names)
    drawn = random.multinomial(many, np.full(many, 1 / many), DRAWS)
    again, left_of, noise_of, tested = [], [], [], np.zeros((len(draws), many, values[0].shape[1]))
    totals = [sums_at(names, own[0], value) for own, value in zip(by_draw, values, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        usual = sum(t[0] for t in totals) / sum(t[1] for t in totals)
        for number, (sums, counts) in enumerate(totals):
            again.append(np.nanmean((drawn @ sums) / (drawn @ counts), axis=1))
            tested[number] = counts > 0
            apart = np.nan_to_num(sums - counts * usual)
            by_class = apart.sum(0) / counts.sum(0)
            left_of.append(by_class.mean())
            own = ((apart - counts * by_class) / counts.sum(0)).mean(1)
            noise_of.append((own**2).sum())
    shared = max(1 - tested.sum(1).mean(0) / tested.any(0).sum(0))
    training = np.var(left_of, ddof=1) - np.mean(noise_of)
    training /= 1 - 1 / (len(draws) * (1 - shared))
    variance = np.var(each, ddof=1) / len(each) + max(training, 0) * shared / (1 - shared)
    fewest = min(tested.any(0).sum(0))
    groups = np.var(np.mean(again, axis=0)) * fewest / (fewest - 1)
    parts = [(groups, fewest - 1), (variance, len(each) - 1)]
    return np.mean(each), parts, np.mean(several, axis=1)


def sums_at(names, groups, values):
    own = groups == np.array(names)[:, None]
    return own @ np.nan_to_num(values), own @ (~np.isnan(values)).astype(float)


def trainings_part(values):
    return [(np.var(values, ddof=1) / len(values), len(values) - 1)] if len(values) > 1 else []


def check_few_shot(cells, evaluation):
    """The means over draws, their intervals, and those of the paired differences."""

    def draws(task, candidate, method):
        shots = int(method.removeprefix("few-shot"))
        key = (task, candidate, "few-shot", shots)
        return [own for name, own in sorted(cells.items()) if name[:4] == key]

    few = evaluation["few_shot"]
    assert {row["candidate"] for row in few["estimates"]} == {"ours", "raw", "thumbnail"}
    for row in few["estimates"]:
        own = draws(row["task"], row["candidate"], row["method"])
        value, parts, several = few_shot_parts(own)
        assert row["value"] == pytest.approx(value, abs=1e-9)
        half = reach([parts[0], *trainings_part(several), parts[1]])
        close(row, max(value - half, 0.0), min(value + half, 1.0))
        assert (row["draws"], row["trainings"]) == (len(own), len(several))
    assert len(few["comparisons"]) == 2  # ours against raw and the thumbnail
    for row in few["comparisons"]:
        first, second = (draws(row["task"], row[side], row["method"])
                         for side in ("first", "second"))  # fmt: skip
        value, parts, several = few_shot_parts(first, second)
        others = few_shot_parts(second)[2]
        paired = len(several) == len(others)
        several = [several - others] if paired else [several, others]
        between = [part for own in several for part in trainings_part(own)]
        half = reach([parts[0], *between, parts[1]])
        assert row["value"] == pytest.approx(value, abs=1e-9)
        assert row["high"] - row["value"] >= half * 0.96  # or as far as 0, by the signs of groups
        assert row["high"] - row["value"] <= max(half * 1.04, abs(value) + 1e-9)
        assert row["word"] in ("ahead", "behind", "not distinguished")
        assert (
            row["word"] == "not distinguished" or row["corrected_low"] * row["corrected_high"] > 0
        )


def close(row, low, high):
    """The draws are others: ends agree to some per cent of the width."""
    slack = 0.04 * (high - low) + 1e-9
    assert (row["low"], row["high"]) == (
        pytest.approx(low, abs=slack), pytest.approx(high, abs=slack),
    )  # fmt: skip


# An evaluation to try it on, which the product makes: two sets, two students, the trivial ones.

ROLES = {"ours": DISTILLED, "raw": UNTRAINED}


def liver():
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(30), random.integers(1, 5, 30))
    labels = group % 3
    pixels = random.integers(0, 120, (len(group), 3, 16, 16), dtype=np.uint8)
    pixels[labels == 1, :, :, :8] += 60
    names = np.array([f"p{k:02d}" for k in group])
    files = tuple(f"{k:03d}.png" for k in range(len(group)))
    classes = ("benign", "malignant", "normal")
    return LabelledDataset("liver", "classification", files, names, pixels, labels, None, classes,
                           None, ())  # fmt: skip


def lesion():
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (24, 3, 16, 16), dtype=np.uint8)
    masks = np.zeros((24, 16, 16), dtype=np.uint8)
    for number, mask in enumerate(masks):
        top = 3 + number % 4
        mask[top : top + 7, 4:12] = 1
    names = np.array([f"q{k // 2:02d}" for k in range(24)])
    files = tuple(f"{k:03d}.png" for k in range(24))
    return LabelledDataset("lesion", "segmentation", files, names, pixels, None, masks, ("mass",),
                           None, ())  # fmt: skip


def predictions(task, protocol):
    """Rows of two students: one is often right, the other seldom."""
    random = np.random.default_rng(2)
    tested, fold = protocol.tested, protocol.fold
    for label, skill, trainings in (("ours", 3.0, 2), ("raw", 0.2, 3)):
        for training in range(trainings):
            origin = PredictedBy(label, f"{label}-{training}", training)
            if task.labels is None:
                noise = random.random((len(tested), 16, 16)) < 0.3 / (1 + skill)
                said = (task.masks[tested] ^ noise).astype(np.uint8)
                yield mask_rows(origin, task, "linear probe", tested, fold, said)
                continue
            scores = random.normal(size=(len(tested), 3)) + skill * np.eye(3)[task.labels[tested]]
            yield class_rows(origin, task, "linear probe", tested, fold, scores)
            for draw in protocol.draws:
                said = random.integers(0, 3, len(draw.test))
                yield few_shot_rows(origin, task, "few-shot", draw.test, said,
                                    shots=draw.shots, draw=draw.number)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of the predictions on disk, the evaluation, and both sets."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    parts, tasks = [], []
    for task in (liver(), lesion()):
        protocol = Protocol(task, dataset_folds(task, 3, 0), shots=(2,), draws=6)
        parts += [*predictions(task, protocol), trivial_rows(task, protocol)]
        about = {"images": len(task), "groups": len(set(task.groups)), "tested": len(task)}
        about |= {"name": task.name, "kind": task.kind, "classes": list(task.class_names)}
        tasks.append({**about, "protocol": "3 folds by group"})
    rows = pa.concat_tables(parts)
    write_table(store.predictions("default"), rows, stage="evaluate", fingerprint={})
    infos = [TaskInfo(t["name"], t["kind"], tuple(t["classes"])) for t in tasks]
    numbers = summarise(rows, infos, resolve(DEFAULT, ROLES), 0)
    candidates = [{"label": label, "role": role} for label, role in ROLES.items()]
    return store, {"tasks": tasks, "folds": 3, "candidates": candidates, **numbers}


@pytest.fixture(scope="module")
def frame(made):
    (part,) = [name for name in made[0].predictions("default").list() if name.endswith("parquet")]
    data = made[0].predictions("default").read(part)
    return pq.read_table(io.BytesIO(data)).to_pandas()


def test_every_number_of_an_evaluation_follows_from_its_predictions(made, frame):
    check(frame, made[1])
    words = {row["word"] for row in made[1]["comparisons"]}
    assert words > {"not distinguished"}  # there is something to find


def test_overlaps_on_disk_are_those_of_the_masks_on_disk(frame):
    truth = dict(zip(lesion().files, lesion().masks, strict=True))
    outlined = frame[frame["task"] == "lesion"]
    for row in outlined.itertuples():
        said, wanted = np.array(Image.open(io.BytesIO(row.mask))), truth[row.image]
        both = ((said == 1) & (wanted == 1)).sum()
        total = (said == 1).sum() + (wanted == 1).sum()
        assert row.dice == [pytest.approx(2 * both / total)]
        assert row.iou == [pytest.approx(both / (total - both))]


def test_each_tested_image_has_one_prediction_by_a_fold_without_its_group(frame):
    whole = frame[frame["shots"] == 0]
    for (task, *_), own in whole.groupby(["task", "candidate", "method", "training"]):
        wanted = liver() if task == "liver" else lesion()
        assert sorted(own["image"]) == sorted(wanted.files)
        assert (own.groupby("group_id")["fold"].nunique() == 1).all()
    few = frame[frame["shots"] > 0]
    sides = {key: set(own["group_id"]) for key, own in few.groupby(["candidate", "draw"])}
    for (candidate, draw), groups in sides.items():
        assert groups == sides["thumbnail", draw], candidate


def test_numbers_on_the_page_are_those_of_the_evaluation(made):
    """What is printed, rounded, against the numbers that were just computed again."""
    evaluation = made[1]

    class Material:
        pass

    material = Material()
    material.evaluation = evaluation
    page = outcome(material, Results(evaluation)).content.markup
    tables = [read_table(text) for text in re.findall(r"<table.*?</table>", page, re.DOTALL)]
    by_task = {table[0]: table[1:] for table in tables}
    results, shown = evaluation["results"], 0
    headings = {"Balanced accuracy": "balanced_accuracy", "Macro F1": "macro_f1", "AUC": "auc",
                "Dice": "dice", "Dice minus the constant mask's": "dice_gain",
                "HD95, pixels": "hd95"}  # fmt: skip
    for caption, (head, *rows) in by_task.items():
        task = caption.split(":")[0].split(",")[0]
        for row in rows if "Method" in head and "Flag" in head else []:
            label, method = row[0], "constant" if row[0] == "constant" else row[1]
            own = (task, label, method)
            mine = [r["metrics"] for r in results
                    if (r["task"], r["candidate"], r["method"]) == own]  # fmt: skip
            estimate = next(
                e for e in evaluation["estimates"]
                if (e["task"], e["candidate"], e["method"]) == own
            )  # fmt: skip
            for column, cell in zip(head[2:-1], row[2:-1], strict=True):
                name = column.rstrip(" ↑↓")
                key = headings.get(name, "recall " + name.removeprefix("Recall "))
                value, *ends = numbers_in(cell)
                rounding = 0.051 if key == "hd95" else 5.1e-4
                assert value == pytest.approx(np.mean([m[key] for m in mine]), abs=rounding)
                assert not ends or ends == pytest.approx(
                    [estimate["low"], estimate["high"]], abs=5.1e-4
                )
                shown += 1
        for row in rows if "few-shot:" in caption else []:
            drawn = [r["metrics"]["balanced_accuracy"] for r in results
                     if r["candidate"] == row[0] and r["method"] == "few-shot 2"]  # fmt: skip
            few = next(e for e in evaluation["few_shot"]["estimates"] if e["candidate"] == row[0])
            assert numbers_in(row[1]) == pytest.approx(
                [np.mean(drawn), np.std(drawn, ddof=1), few["low"], few["high"]], abs=5.1e-4
            )
            shown += 1
    planned, few = (table for caption, table in by_task.items() if "comparisons" in caption)
    wanted_rows = [*evaluation["comparisons"], *evaluation["few_shot"]["comparisons"]]
    for row, wanted in zip([*planned[1:], *few[1:]], wanted_rows, strict=True):
        assert numbers_in(" ".join(row[3:7])) == pytest.approx(
            [wanted[key] for key in
             ("value", "low", "high", "corrected_low", "corrected_high", "adjusted")], abs=5.1e-4
        )  # fmt: skip
        assert numbers_in(row[7]) == pytest.approx([evaluation["chance"][row[0]]], abs=5.1e-4)
        assert row[8].split(",")[0] == wanted["word"]
        shown += 1
    assert shown > 40


def read_table(markup):
    """Caption, then rows of cells."""
    caption = re.search(r"<caption>(.*?)</caption>", markup, re.DOTALL).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", markup, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [caption, *[[re.sub(r"<[^>]+>", "", c).replace("&#x27;", "'") for c in row]
                       for row in cells]]  # fmt: skip


def numbers_in(text):
    return [float(found) for found in re.findall(r"[+-]?\d+\.\d+", text.replace("−", "-"))]
