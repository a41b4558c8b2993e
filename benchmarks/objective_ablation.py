"""Presets and weightings of the distillation objective, compared on held-out groups.

Every variant is trained for the same number of steps from the same weights, on the same images in
the same order, with each of several seeds; those that see the same views share the teacher's pass.
The frozen students are then probed on each task: k-NN and a linear probe, balanced accuracy on
groups that the probe was not fitted on, the same split for all variants of a seed. The untrained
student and the teacher stand beside them.

    python benchmarks/objective_ablation.py --seeds 3 --steps 300 --json
    python benchmarks/objective_ablation.py --task liver=FILE.csv --pool POOL.csv
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from distill_common import (
    POOL,
    ROOT,
    TEACHER,
    pool_images,
    shared_pass,
    train_group,
    trained_teacher,
)
from machine import describe_machine

from echostill.distill.distillation import INERT_SPREAD, weight_spread
from echostill.distill.objective.settings import PRESETS, ObjectiveSettings
from echostill.eval.datasets import TaskSettings, load_dataset
from echostill.eval.probes import knn_probe, linear_probe, pooled_features
from echostill.eval.splits import split_dataset
from echostill.platform.models import create_encoder
from echostill.platform.training.settings import TrainingSettings

VARIANTS = {
    **{name: {"preset": name} for name in PRESETS},
    "raw cosine": {"centring": False},
    "relu": {"weighting": "relu"},
    "batch-normalised": {"weighting": "batch-normalised"},
    "softmax": {"weighting": "softmax"},
    "token level": {"level": "token"},
    "each layer": {"consistency": "each"},
    "balance": {"combination": "balance"},
    "relations": {"relation_weight": 1.0},
    "centre view": {"centre": "view"},
    "averaged": {"reduction": "mean"},
    "relative clip": {},
    "wide clip": {},
}
# Of the training itself, beside the objective.
TRAINING = {
    "relative clip": {"clipping": "relative", "gradient_clip": 2.0},
    "wide clip": {"gradient_clip": 10.0},
}
LIVER = ROOT / "examples" / "quickstart" / "benchmark" / "liver.csv"
METRIC = "balanced_accuracy"


def settings_of(name):
    return ObjectiveSettings.model_validate_json(json.dumps(VARIANTS[name]))


def grouped(variants):
    """Variants that see the same views and masks, and so share the teacher."""
    groups = {}
    for name, settings in variants.items():
        key = (shared_pass(settings), TRAINING.get(name)) if settings.distil else name
        groups.setdefault(str(key), {})[name] = settings
    return list(groups.values())


def probe(encoder, tasks, seed):
    """Balanced accuracy of k-NN and of a linear probe, by task."""
    found = {}
    for dataset in tasks:
        split = split_dataset(dataset, seed)
        features = pooled_features(encoder, dataset.pixels)
        for kind, result in (
            ("k-NN", knn_probe(features, dataset, split)),
            ("linear", linear_probe(features, dataset, split, seed)),
        ):
            found[f"{dataset.name}, {kind}"] = result.metrics[METRIC]
    return found


def compare(options):
    """Train and probe everything; returns scores and spreads by variant, lists over the seeds."""
    chosen = options.variants or list(VARIANTS)
    variants = {name: settings_of(name) for name in chosen}
    weights = None if options.weights == "none" else Path(options.weights)
    teacher = trained_teacher(options.teacher, weights)
    student_side = create_encoder(options.student).image_size
    images = pool_images(Path(options.pool), student_side, options.images)
    tasks = []
    for text in options.task or [f"liver={LIVER}"]:
        name, _, manifest = text.partition("=")
        settings = TaskSettings(name=name, kind="classification", manifest=manifest)
        tasks.append(load_dataset(settings, student_side))
    scores, spreads, seconds, clipped = {}, {}, {}, {}

    def note(name, found):
        for key, value in found.items():
            scores.setdefault(name, {}).setdefault(key, []).append(value)

    for seed in range(options.seeds):
        note("teacher", probe(teacher, tasks, seed))
        torch.manual_seed(seed)
        note("untrained", probe(create_encoder(options.student), tasks, seed))
        for group in grouped(variants):
            started = time.perf_counter()
            training = TrainingSettings(
                steps=options.steps,
                batch_size=options.batch,
                learning_rate=options.learning_rate,
                checkpoints=1,
                **TRAINING.get(next(iter(group)), {}),
            )
            trained = train_group(group, options.student, teacher, images, training, seed)
            share = (time.perf_counter() - started) / len(group)
            for name, (encoder, history) in trained.items():
                note(name, probe(encoder, tasks, seed))
                seconds.setdefault(name, []).append(share)
                spread = weight_spread(history)
                if spread is not None:
                    spreads.setdefault(name, []).append(spread)
                clipped.setdefault(name, []).append(
                    statistics.fmean(row["clipped_share"] for row in history)
                )
            print(f"seed {seed}: {', '.join(group)}", flush=True)
    return scores, spreads, seconds, clipped


def summary(values):
    return {
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": [round(value, 4) for value in values],
    }


def verdict(scores):
    """Whether the default is worse than mim-only beyond the spread of either, by task and probe."""
    if not {"tinyusfm", "mim-only"} <= scores.keys():
        return {}
    told = {}
    for key, own in scores["tinyusfm"].items():
        other = scores["mim-only"][key]
        spread = max(summary(own)["spread"], summary(other)["spread"])
        difference = statistics.fmean(own) - statistics.fmean(other)
        told[key] = {"difference": difference, "spread": spread, "worse": difference < -spread}
    return told


def draw(scores, path):
    """Draw every seed's value and the means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = list(next(iter(scores.values())))
    figure, axes = pyplot.subplots(
        1,
        len(keys),
        figsize=(4.2 * len(keys), 0.34 * len(scores) + 1.2),
        sharey=True,
        squeeze=False,
    )
    names = list(scores)
    for axis, key in zip(axes[0], keys, strict=True):
        for place, name in enumerate(names):
            values = scores[name][key]
            axis.plot(values, np.full(len(values), place), "o", color="0.65", markersize=4)
            axis.plot(statistics.fmean(values), place, "|", color="black", markersize=14)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(key, fontsize=10)
        axis.set_xlabel("balanced accuracy")
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="usfm-micro")
    parser.add_argument("--student", default="tinyusfm-micro")
    parser.add_argument("--weights", default=str(TEACHER), help="of the teacher, or 'none'")
    parser.add_argument("--pool", default=str(POOL), help="manifest of the training images")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--task", action="append", help="NAME=MANIFEST, classification; repeatable")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), help="default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.016)
    parser.add_argument("--output", type=Path, help="folder for table.json and plot.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    scores, spreads, seconds, clipped = compare(options)
    print(f"{METRIC}, mean ± spread over {options.seeds} seeds, {options.steps} steps each")
    for name, found in scores.items():
        told = [
            f"{key} {summary(v)['mean']:.3f} ± {summary(v)['spread']:.3f}"
            for key, v in found.items()
        ]
        if name in spreads:
            spread = statistics.fmean(spreads[name])
            fixed = settings_of(name).weighting == "fixed"
            inert = " (inert)" if spread <= INERT_SPREAD and not fixed else ""
            told.append("weight fixed" if fixed else f"weight spread {spread:.3f}{inert}")
        if name in seconds:
            told.append(f"{statistics.fmean(clipped[name]):.0%} of steps clipped")
            told.append(f"{statistics.fmean(seconds[name]):.0f} s")
        print(f"  {name:<18} {'; '.join(told)}")
    result = {
        "machine": describe_machine(),
        "steps": options.steps,
        "batch": options.batch,
        "seeds": options.seeds,
        "scores": {n: {k: summary(v) for k, v in f.items()} for n, f in scores.items()},
        "weight_spread": {name: summary(values) for name, values in spreads.items()},
        "clipped_share": {name: summary(values) for name, values in clipped.items()},
        "default_against_mim_only": verdict(scores),
    }
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "table.json").write_text(json.dumps(result, indent=1))
        draw(scores, options.output / "plot.png")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
