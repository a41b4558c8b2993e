"""The coresets of evidence.py: students on a tenth of a pool, chosen in several ways, or on all."""

import json
from functools import cached_property, partial

import numpy as np
from distill_common import train_group
from evidence_data import make_store, write_pool
from evidence_rows import Row, Unit
from evidence_students import Distillation

from echostill.curation.copies.semantic import mean_feature, semantic_pairs
from echostill.curation.selection.features import TableFeatures
from echostill.curation.selection.stage import SelectConfig, select
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.tables.store import Store, selected_ids
from echostill.platform.training.staging import stage_images


class Coresets:
    """Students on coresets of one pool, chosen in several ways, and on all of it."""

    def __init__(self, evidence, *, junk):
        self.evidence, self.plan = evidence, evidence.plan["coreset"]
        self.name = "coreset with junk" if junk else "coreset"
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
