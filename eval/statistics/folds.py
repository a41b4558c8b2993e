"""Cross-validation by group: no group is on both sides, and each fold has its share of each label.

Folds depend only on (seed, group names, labels), not on the order of the rows.
"""

import numpy as np

from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream


def group_folds(
    groups: np.ndarray,
    labels: np.ndarray,
    folds: int,
    seed: int,
    label_names: tuple[str, ...] | None = None,
) -> np.ndarray:
    """Put each group into one of the folds, with the labels spread evenly over them.

    Iterative stratification (Sechidis et al., "On the stratification of multi-label data", 2011),
    with groups for rows: the label that the fewest groups have goes first. Its groups, largest
    first, each go to the fold with the fewest rows of that label; of several to the one with the
    fewest rows, then to the first. With fewer groups than folds there are as many folds as groups.

    Args:
        groups: (N,) names.
        labels: (N,) integers.
        folds: Number of folds, at least 2.
        seed: Seed of the order of groups of one size.
        label_names: Names of the labels 0, 1, ... for messages.

    Returns:
        (N,) int64, the fold of each row. Outside of each fold every label occurs.

    Raises:
        UsageError: All rows of a label would be in one fold.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    values, label_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(values)), dtype=np.int64)
    np.add.at(counts, (group_of, label_of), 1)
    used = min(folds, len(names))
    order = stream(seed, "evaluation folds").permutation(len(names))
    filled = np.zeros((max(used, 1), len(values)), dtype=np.int64)
    fold_of = np.full(len(names), -1, dtype=np.int64)
    for label in np.argsort((counts > 0).sum(0), kind="stable"):
        mine = order[(counts[order, label] > 0) & (fold_of[order] < 0)]
        for group in mine[np.argsort(-counts[mine, label], kind="stable")]:
            fold = int(np.lexsort((filled.sum(1), filled[:, label]))[0])
            fold_of[group] = fold
            filled[fold] += counts[group]
    for label, folds_with in enumerate((filled > 0).sum(0)):
        if folds_with < 2:
            value = int(values[label])
            shown = label_names[value] if label_names else str(value)
            having = int((counts[:, label] > 0).sum())
            raise UsageError(
                f"all images of class '{shown}' ({having} group(s)) would be in one fold, so that "
                "none would be left to train on. Leave it out, or add groups."
            )
    result: np.ndarray = fold_of[group_of]
    return result
