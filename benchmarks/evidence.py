"""The evidence for the claims: students with and without a teacher, coresets against whole pools.

evidence_plan.yaml says what is trained, tested and compared, and was written before anything ran.
An arm with a seed is a row, kept in --out when it is done: the same command continues, and does
nothing that is there. Students of one teacher and seed share its pass.

    python benchmarks/evidence.py --data DATA --teacher usfm=CLEAN.safetensors --out runs/evidence
    python benchmarks/evidence.py --data DATA --quick --out runs/evidence-quick
    python benchmarks/evidence.py --data DATA --out runs/evidence --report

DATA is a folder of the sets, as examples/quickstart/make_sample.py reads them. The first lines say
how many hours the missing rows take; --dry-run ends there. A teacher without weights is left out
(examples/teachers converts two), but usfm, which is then the quickstart's own: it has seen images
of two of the tasks, which a conclusion must say. evidence.json and figures are written at the end.
"""

import argparse
import json
import sys
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import yaml
from distill_common import ROOT, TEACHER, pool_images, shared_pass, train_group, trained_teacher
from evidence_data import load_tasks, make_store, out_of_fold, thumbnail, write_pool
from evidence_report import write_report
from evidence_rows import Row, Rows, Unit, complete, digest, estimate, measure_paces
from machine import describe_machine

from echostill.curation.copies.semantic import mean_feature, semantic_pairs
from echostill.curation.selection.features import TableFeatures
from echostill.curation.selection.stage import SelectConfig, select
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.eval.probes import pooled_features
from echostill.platform.config import result_relevant
from echostill.platform.models import create_encoder, load_weights
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store, selected_ids
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import stage_images

PLAN = Path(__file__).with_name("evidence_plan.yaml")
EXPERIMENTS = ("distillation", "coreset", "coreset with junk")
ALONE = ObjectiveSettings(preset="mim-only")


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
        values = {**self.plan["training"], **changes}
        return TrainingSettings(**({**values, "steps": steps} if steps else values))

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


class Distillation:
    """Students of several teachers, and without one."""

    name = "distillation"

    def __init__(self, evidence):
        self.evidence, self.plan = evidence, evidence.plan["distillation"]

    @cached_property
    def images(self):
        """The training images."""
        pool = ROOT / self.plan["pool"]
        return pool_images(pool, self.evidence.plan["image_size"], self.plan.get("images"))

    def units(self):
        """All units; the cheap ones first."""
        evidence, seeds = self.evidence, self.plan["seeds"]
        common = {**evidence.common, "student": evidence.student, "pool": self.plan["pool"]}
        found = [self._unit({"thumbnail": common}, 0, "thumbnail", 0, self._thumbnail)]
        for name in evidence.teachers:
            depends = {name: {**common, "teacher": evidence.teacher_identity(name)}}
            found.append(self._unit(depends, 0, name, 0, partial(self._teacher, name)))
        for seed in range(seeds):
            run = partial(self._untrained, seed)
            found.append(self._unit({"untrained": common}, seed, "untrained", 0, run))
            for arm, settings in self.plan["alone"].items():
                steps = self._steps(settings)
                depends = {arm: {**common, "steps": steps}}
                train = partial(self._alone, arm, seed)
                unit = self._unit(
                    depends, seed, "MIM", steps, partial(train, steps), partial(train, probe=False)
                )
                found.append(unit)
        most = max([seeds, *self.plan["seeds_of"].values()])
        for seed in range(most):  # all arms alike, wherever it stops
            for name in evidence.teachers:
                found += self._followers(name, seed, common)
        return found

    def _followers(self, teacher, seed, common):
        """Units of the students of a teacher with one seed, one for each shared pass."""
        match = self.evidence.teachers[teacher].get("match", {})
        groups = {}
        for name, settings in self.plan["students"].items():
            if seed >= self.plan["seeds_of"].get(name, self.plan["seeds"]):
                continue
            if teacher not in settings.get("only", [teacher]):
                continue
            given = json.dumps({**settings["objective"], **match})
            objective = ObjectiveSettings.model_validate_json(given)
            training = settings.get("training", {})
            key = digest([shared_pass(objective), training])
            groups.setdefault(key, {})[f"{teacher}/{name}"] = (objective, training)
        identity = self.evidence.teacher_identity(teacher)
        for group in groups.values():
            depends = {
                arm: {
                    **common,
                    "teacher": identity,
                    "objective": result_relevant(objective),
                    "own": training,
                }
                for arm, (objective, training) in group.items()
            }
            train = partial(self._train, group, teacher, seed)
            kind = f"{teacher}: {', '.join(group)}"
            steps = self._steps(next(training for _, training in group.values()))
            yield self._unit(depends, seed, kind, steps, train, partial(train, probe=False))

    def _unit(self, depends, seed, kind, steps, run, pace=None):
        return Unit(self.name, depends, seed, kind, steps, run, pace)

    def _steps(self, settings):
        """Steps of a student: of the plan, its own, or without a teacher as long as with one."""
        steps = settings.get("steps", self.evidence.plan["training"]["steps"])
        if not settings.get("equal_time"):
            return steps
        path = self.evidence.out / "equal_time.json"
        if not path.is_file():  # measured once, so that a restart has the same plan
            pair = {
                "MIM": partial(self._alone, "MIM", 0, probe=False),
                "fixed": self.single,
            }
            for train in pair.values():
                train(2)
            found = {}
            for kind, train in pair.items():
                started = time.process_time()  # others may share the machine
                train(8)
                found[kind] = time.process_time() - started
            path.write_text(json.dumps({"share": found["fixed"] / found["MIM"]}))
        return round(steps * json.loads(path.read_text())["share"])

    def single(self, steps):
        """Train one student behind the first teacher, to see how long that takes."""
        group = {"fixed": (ObjectiveSettings(preset="fixed-weight"), {})}
        self._train(group, "usfm", 0, steps, probe=False)

    def _thumbnail(self):
        folds = self.evidence.plan["folds"]
        tasks = self.evidence.tasks
        return {
            "thumbnail": Row(
                {task.name: out_of_fold(thumbnail(task), task, folds) for task in tasks}
            )
        }

    def _teacher(self, name):
        return {name: self.evidence.test(self.evidence.teacher(name))}

    def _untrained(self, seed):
        torch.manual_seed(seed)
        return {"untrained": self.evidence.test(create_encoder(self.evidence.student))}

    def _alone(self, arm, seed, steps, *, probe=True):
        training = self.evidence.training(steps)
        student = self.evidence.student
        trained = train_group({arm: ALONE}, student, None, self.images, training, seed)
        return self.evidence.tested(trained) if probe else None

    def _train(self, group, teacher, seed, steps=None, *, probe=True):
        variants = {arm: objective for arm, (objective, _) in group.items()}
        own = next(training for _, training in group.values())
        trained = train_group(
            variants,
            self.evidence.student,
            self.evidence.teacher(teacher),
            self.images,
            self.evidence.training(**{**own, "steps": steps or own.get("steps")}),
            seed,
        )
        return self.evidence.tested(trained) if probe else None


class Coresets:
    """Students on coresets of one pool, chosen in several ways, and on all of it."""

    def __init__(self, evidence, junk):
        self.evidence, self.plan = evidence, evidence.plan["coreset"]
        self.name = EXPERIMENTS[2] if junk else EXPERIMENTS[1]
        self.junk = self.plan["junk"] if junk else 0.0
        self.folder = evidence.out / self.name.replace(" ", "-")
        self.teacher = self.plan["teacher"]
        self.alike = Distillation(evidence)  # a training of which takes as long

    @cached_property
    def store(self):
        """The ingested and scored pool."""
        data, limit = self.evidence.options.data, self.plan.get("images")
        manifest = write_pool(self.plan, data, self.folder, self.junk, limit)
        settings = self.evidence.teachers[self.teacher]
        weights = {"weights": str(self.evidence.weights[self.teacher].resolve())}
        teacher = {key: settings[key] for key in ("model", "image_size") if key in settings}
        make_store(self.folder, manifest, self.plan, {**teacher, **weights})
        return Store(str(self.folder / "store"))

    def units(self):
        """A unit for each arm and seed."""
        steps = self.evidence.plan["training"]["steps"]
        common = {
            **self.evidence.common,
            "teacher": self.evidence.teacher_identity(self.teacher),
            "pool": {key: self.plan.get(key) for key in ("sets", "images", "proxy", "budget")},
            "junk": self.junk,
            "student": self.plan["student"],
            "objective": self.plan["objective"],
        }
        found = []
        for arm, settings in self.plan["arms"].items():
            number = settings.get("seeds", settings.get("draws", self.plan["seeds"]))
            longer = round(1 / self.plan["budget"]) if settings.get("full") == "epochs" else 1
            for seed in range(number):
                train = partial(self._train, arm, settings, seed)
                found.append(
                    Unit(
                        self.name,
                        {arm: {**common, "arm": settings}},
                        seed,
                        "one student",
                        steps * longer,
                        partial(train, steps * longer),
                        self.alike.single,
                    )
                )
        # All arms alike, wherever it stops; the longest trainings last.
        return sorted(found, key=lambda unit: (unit.steps, unit.seed))

    def _chosen(self, arm, settings, seed):
        """Ids of an arm's images; arms that draw do so anew for each seed."""
        if settings.get("full"):
            return tuple(self.store.open_pool().read(["image_id"])["image_id"].to_pylist())
        draw = seed if "draws" in settings else 0
        name = f"{''.join(c if c.isalnum() else '-' for c in arm)}-{draw}"
        config = SelectConfig(
            store=self.store.root,
            name=name,
            seed=draw,
            budget=self.plan["budget"],
            workers=0,
            progress=False,
            **settings["select"],
        )
        excluded = self._copies(settings["semantic"]) if "semantic" in settings else None
        select(config, overwrite=True, excluded=excluded)
        return selected_ids(self.store.open_coreset(name))

    def _copies(self, epsilon):
        """Images that look like an earlier one to the teacher, as SemDeDup leaves them out."""
        import pyarrow as pa

        scores = self.store.open_scores()
        features = TableFeatures(scores)
        ids = scores.read(["image_id"])["image_id"].to_pylist()
        mean, places = mean_feature(features), np.arange(len(ids))
        _, later, _ = semantic_pairs(features, mean, places, epsilon, seed=0)
        copies = [ids[place] for place in np.unique(later)]
        return pa.table({"image_id": copies, "reason": ["semantic copy"] * len(copies)})

    def _train(self, arm, settings, seed, steps):
        ids = self._chosen(arm, settings, seed)
        pool = self.store.open_pool()
        side = self.evidence.plan["image_size"]
        images = stage_images(pool, self.store.root, side, ids)
        objective = ObjectiveSettings.model_validate_json(json.dumps(self.plan["objective"]))
        trained = train_group(
            {arm: objective},
            self.plan["student"],
            self.evidence.teacher(self.teacher),
            images,
            self.evidence.training(steps),
            seed,
        )
        (row,) = self.evidence.tested(trained).values()
        about = pool.read(["image_id", "group_id", "source"]).to_pylist()
        chosen, wanted = set(ids), [one for one in about if "junk_" in one["source"]]
        junk = sum(one["image_id"] in chosen for one in wanted)
        groups = {one["group_id"] for one in about if one["image_id"] in chosen}
        facts = {"images": len(ids), "groups": len(groups), "junk": junk / len(ids)}
        return {arm: Row(row.predictions, {**row.facts, **facts})}


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
    options = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text())
    evidence = Evidence(shortened(plan) if options.quick else plan, options)
    options.out.mkdir(parents=True, exist_ok=True)
    print(describe_machine())
    makers = {
        EXPERIMENTS[0]: partial(Distillation, evidence),
        EXPERIMENTS[1]: partial(Coresets, evidence, junk=False),
        EXPERIMENTS[2]: partial(Coresets, evidence, junk=True),
    }
    units = {name: makers[name]().units() for name in options.only or EXPERIMENTS}
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
    write_report(evidence, units)


if __name__ == "__main__":
    main()
