"""The students of evidence.py: behind several teachers, alone, and what they are compared with."""

import json
import time
from functools import cached_property, partial

import torch
from distill_common import ROOT, pool_images, shared_pass, train_group
from evidence_data import out_of_fold, thumbnail
from evidence_rows import Row, Unit, digest

from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.config import result_relevant
from echostill.platform.models import create_encoder

ALONE = ObjectiveSettings(preset="mim-only")


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
                steps, own = self._steps(settings), settings.get("training", {})
                depends = {arm: {**common, "steps": steps, **({"own": own} if own else {})}}
                train = partial(self._alone, arm, own, seed)
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
                "MIM": partial(self._alone, "MIM", {}, 0, probe=False),
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

    def _alone(self, arm, own, seed, steps, *, probe=True):
        training = self.evidence.training(steps, **own)
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
