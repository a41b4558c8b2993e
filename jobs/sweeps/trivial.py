"""What needs no model, on the splits of a sweep's probes: below it a trial has shown nothing."""

import dataclasses

import numpy as np

from echostill.eval.datasets import LabelledDataset
from echostill.eval.probing.candidates import Protocol, trivial_rows
from echostill.eval.splits import dataset_folds, split_dataset
from echostill.eval.summary import PRIMARY, TaskInfo, summarise
from echostill.jobs.sweeps.settings import SweepConfig

FOLDS = 5  # inside the training side, to choose a penalty and a threshold on

Trivial = dict[str, dict[str, list[float]]]  # by candidate and method, a value per seed


def trivial_probes(config: SweepConfig, dataset: LabelledDataset) -> Trivial:
    """Test the constant and the thumbnail on the same test sides as the students."""
    found: Trivial = {}
    info = TaskInfo(dataset.name, dataset.kind, dataset.class_names)
    for seed in config.probe_seeds:
        split = split_dataset(dataset, seed, config.test_share)
        sides = np.full(len(dataset), "train")
        sides[split.test] = "test"
        divided = dataclasses.replace(dataset, official_split=sides)
        folds = dataset_folds(divided, FOLDS, seed)
        rows = trivial_rows(divided, Protocol(divided, folds, neighbours=config.neighbours))
        for row in summarise(rows, [info], [], seed)["results"]:
            values = found.setdefault(row["candidate"], {}).setdefault(row["method"], [])
            values.append(row["metrics"][PRIMARY[dataset.kind]])
    return found
