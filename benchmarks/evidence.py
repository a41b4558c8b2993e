"""The evidence for the claims: students with and without a teacher, coresets against whole pools.

evidence_plan.yaml says what is trained, tested and compared, and was written before anything ran.
An arm with a seed is a row, kept in --out when it is done: the same command continues, and does
nothing that is there. Students of one teacher and seed share its pass.

    python benchmarks/evidence.py --data DATA --teacher usfm=CLEAN.safetensors --out runs/evidence
    python benchmarks/evidence.py --data DATA --quick --out runs/evidence-quick
    python benchmarks/evidence.py --data DATA --out runs/evidence --report

DATA is a folder of the sets, as examples/quickstart/make_sample.py reads them. The first lines say
how many hours the missing rows take; --dry-run ends there. A teacher without weights is left out
(examples/teachers converts two), but usfm, which is then the quickstart's own. evidence.json,
figures and the predictions of all rows are written at the end.
"""

import argparse
import json
import sys
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import yaml
from distill_common import ROOT, TEACHER, trained_teacher
from evidence_coresets import Coresets
from evidence_data import load_tasks, out_of_fold
from evidence_report import write_report
from evidence_rows import Row, Rows, complete, estimate, measure_paces
from evidence_students import Distillation
from machine import describe_machine

from echostill.eval.probes import pooled_features
from echostill.platform.models import create_encoder, load_weights
from echostill.platform.tables.storage import sha256
from echostill.platform.training.settings import TrainingSettings

PLAN = Path(__file__).with_name("evidence_plan.yaml")
EXPERIMENTS = {
    "distillation": Distillation,
    "coreset": partial(Coresets, junk=False),
    "coreset with junk": partial(Coresets, junk=True),
}


def shortened(plan):
    """Shrink a plan to minutes: it shows that everything runs, and nothing else."""
    own, coreset = plan["distillation"], plan["coreset"]
    plan["training"]["steps"] = 6
    own |= {"seeds": 2, "seeds_of": {}, "images": 48}
    for settings in (*own["students"].values(), *own["alone"].values()):
        settings.get("training", settings).pop("steps", None)
    coreset |= {"seeds": 2, "images": 160}
    coreset["proxy"] = {
        "snapshots": 3,
        "training": {"steps": 6, "batch_size": 8, "learning_rate": 0.016},
    }
    for arm in coreset["arms"].values():
        arm |= {key: min(arm[key], 2) for key in ("draws", "seeds") if key in arm}
    return {**plan, "limit": 120, "folds": 3}


class Evidence:
    """What the units of all experiments share."""

    def __init__(self, plan, options):
        self.plan, self.options, self.out = plan, options, options.out
        self.rows = Rows(self.out / "rows")
        self.paces = {}
        self.weights = {"usfm": TEACHER}
        for text in options.teacher or ():
            name, _, path = text.partition("=")
            self.weights[name] = Path(path)
        own = plan["distillation"]
        self.teachers = {
            name: own["teachers"][name] for name in own["teachers"] if name in self.weights
        }
        self.student = own["student"]
        # What every row depends on, but for what is its arm's own.
        self.common = {
            key: plan.get(key) for key in ("tasks", "folds", "training", "image_size", "limit")
        }

    @cached_property
    def tasks(self):
        """The tasks at the students' size."""
        return self.tasks_at(self.plan["image_size"])

    def tasks_at(self, image_size):
        """The tasks at an input size."""
        limit = self.plan.get("limit")
        return load_tasks(self.plan, self.options.data, self.out, image_size, limit)

    def teacher(self, name):
        """Load a teacher, frozen."""
        settings = self.teachers[name]
        if settings["model"].startswith("timm:litemedsam"):
            sys.path.insert(0, str(ROOT / "examples" / "teachers"))
            __import__("convert")  # registers it with timm
        if "image_size" not in settings:
            return trained_teacher(settings["model"], self.weights[name])
        encoder = create_encoder(settings["model"], image_size=settings["image_size"])
        load_weights(encoder, str(self.weights[name]))
        # Depthwise convolutions take 0.6 of the time with the channels of a pixel side by side, and
        # compiled 0.6 of that.
        encoder.to(memory_format=torch.channels_last).compile()
        return encoder.eval().requires_grad_(False)

    def teacher_identity(self, name):
        """What a row of a teacher depends on."""
        return {**self.teachers[name], "weights": sha256(self.weights[name].read_bytes())}

    def training(self, steps=None, **changes):
        """Settings of a training."""
        values = {**self.plan["training"], **changes, **({"steps": steps} if steps else {})}
        return TrainingSettings.model_validate_json(json.dumps(values))

    def test(self, encoder, **facts):
        """Predict all tasks out of fold from a frozen encoder."""
        same = encoder.image_size == self.plan["image_size"]
        tasks = self.tasks if same else self.tasks_at(encoder.image_size)
        encoder.eval()
        return Row(
            {
                task.name: out_of_fold(
                    pooled_features(encoder, task.pixels), task, self.plan["folds"]
                )
                for task in tasks
            },
            facts,
        )

    def tested(self, trained):
        """Rows of trained students, with how clipping and the weight went."""
        found = {}
        for name, (encoder, history) in trained.items():
            facts = {"loss": history[-1]["loss"]}
            for key in ("weight_std", "clipped_share"):
                values = [row[key] for row in history if key in row]
                if values:
                    facts[key] = float(np.mean(values))
            found[name] = self.test(encoder, **facts)
        return found


def asked(units, options):
    """Return the units that the command names: a part of the plan, run first."""
    return [
        unit
        for unit in units
        if unit.seed < options.seeds and (not options.arm or set(options.arm) & set(unit.depends))
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and results")
    parser.add_argument("--teacher", action="append", help="NAME=WEIGHTS; repeatable")
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="default all")
    parser.add_argument("--arm", action="append", help="only units that have it; repeatable")
    parser.add_argument("--seeds", type=int, default=10**6, help="only units of the first seeds")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    parser.add_argument("--report", action="store_true", help="only report the rows there are")
    parser.add_argument("--held", type=Path, help="evidence.json of rows that are gone")
    options = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text())
    evidence = Evidence(shortened(plan) if options.quick else plan, options)
    options.out.mkdir(parents=True, exist_ok=True)
    print(describe_machine())
    units = {name: EXPERIMENTS[name](evidence).units() for name in options.only or EXPERIMENTS}
    for name, own in units.items():
        todo = evidence.rows.missing(asked(own, options))
        told = f"{name}: {len(todo)} of {len(own)} units to do"
        if not (options.report or options.quick):
            measure_paces(todo, evidence.paces)
            told += f", about {estimate(todo, evidence.paces) / 3600:.1f} hours"
        print(told, flush=True)
    if options.dry_run:
        return
    for own in units.values():
        if not options.report:
            complete(evidence.rows, asked(own, options), say=partial(print, flush=True))
    write_report(evidence, units, options.held)


if __name__ == "__main__":
    main()
