"""Every selection method on real pools: coverage, groups, near-copies and junk, beside random.

    python benchmarks/selection_methods.py --real STORE [STORE ...]

A store holds a pool and its scores (`echostill ingest`, `score`); `planted_pool.py` beside this
makes pools with planted junk (label `junk`) and cines. Every choice is made by `echostill select`
and stays in the store as the coreset `real-METHOD-PERCENT`, so that students can be trained on it.

- coverage: mean 1 - cosine of centred features between an image that is not junk and the nearest
  chosen one;
- groups: groups of which an image was chosen, junk aside;
- near-copies: chosen images whose centred features have a cosine above 0.98 with another chosen
  one;
- junk: share of the chosen.
"""

import numpy as np

from echostill.curation.selection.features import TableFeatures, matrix_of
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.stage import SelectConfig, select
from echostill.platform.tables.ids import pool_rows
from echostill.platform.tables.store import Store

NEAR = 0.98
DRAWS = 50
NAMES = ("coverage", "groups", "near_copies", "junk")


class RealPool:
    """A scored pool and what is measured of a choice from it."""

    def __init__(self, store: Store) -> None:
        scores, pool = store.open_scores(), store.open_pool()
        self.ids = scores.read(["image_id"])["image_id"].to_pylist()
        features = TableFeatures(scores)
        moved = matrix_of(features, np.arange(scores.rows)).astype(np.float64)
        moved -= moved.mean(axis=0)
        self.unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        columns = pool.read(["image_id", "group_id", "label"])
        row = pool_rows(scores.read(["image_id"])["image_id"], columns["image_id"])
        self.group = np.array(columns["group_id"].to_pylist())[row]
        self.junk = np.array(columns["label"].to_pylist())[row] == "junk"

    def measure(self, chosen: np.ndarray) -> dict[str, float]:
        """Measure a choice, (k,) row numbers."""
        real = ~self.junk
        nearest = (self.unit[real] @ self.unit[chosen].T).max(axis=1)
        among = self.unit[chosen] @ self.unit[chosen].T
        np.fill_diagonal(among, -1.0)
        return {
            "coverage": float(1.0 - nearest.mean()),
            "groups": len(np.unique(self.group[chosen][real[chosen]])),
            "near_copies": int((among.max(axis=1) > NEAR).sum()),
            "junk": float(self.junk[chosen].mean()),
        }

    def random(self, budget: int, seed: int) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over random choices."""
        rng = np.random.default_rng(seed)
        draws = [
            self.measure(rng.choice(len(self.ids), budget, replace=False)) for _ in range(DRAWS)
        ]
        columns = {name: np.array([draw[name] for draw in draws]) for name in NAMES}
        return {name: (float(c.mean()), float(c.std(ddof=1))) for name, c in columns.items()}


def choose(root: str, method: str, share: float, seed: int) -> list[str]:
    """Select by a method, as a coreset of the store, and return its ids."""
    name = f"real-{method}-{round(100 * share)}"
    # Copies that `duplicates` found are left out in no method: the pool is the same for all.
    config = SelectConfig(
        store=root, name=name, method=method, budget=share, seed=seed, exclude_duplicates=False
    )
    select(config, overwrite=True)
    table = Store(root).open_coreset(name).read(["image_id", "selected"])
    ids: list[str] = table.filter(table["selected"])["image_id"].to_pylist()
    return ids


def measure_stores(
    roots: list[str], methods: list[str] | None, budgets: list[float], seed: int
) -> list[dict[str, object]]:
    """Measure methods on stores and print a table for each store and budget."""
    results = []
    for root in roots:
        pool = RealPool(Store(root))
        place = {image_id: row for row, image_id in enumerate(pool.ids)}
        for share in budgets:
            budget = len(choose(root, "random", share, seed))
            random = pool.random(budget, seed)
            print(f"{root}: {budget} of {len(pool.ids)} ({share:.0%}), {DRAWS} random draws")
            print(f"{'method':<20}{'coverage':>18}{'groups':>16}{'near-copies':>16}{'junk':>16}")
            lines: dict[str, dict[str, float]] = {}
            print(_line("random, mean +- SD", [f"{m:.4g} +- {s:.2g}" for m, s in random.values()]))
            for method in methods or [name for name in METHODS if name != "random"]:
                ids = choose(root, method, share, seed)
                lines[method] = pool.measure(np.array([place[image_id] for image_id in ids]))
                print(_line(method, [f"{lines[method][name]:.4g}" for name in NAMES]), flush=True)
            results.append({"store": root, "budget": budget, "random": random, "methods": lines})
    return results


def _line(name: str, values: list[str]) -> str:
    first, *others = values
    return f"{name:<20}{first:>18}" + "".join(f"{value:>16}" for value in others)
