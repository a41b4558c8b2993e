"""Runs that are trained together: their students see the same views of the same images."""

import json

from echostill.distill.settings import StudentRun
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.training.run import GROUP, is_finished


def run_groups(
    runs: list[StudentRun], store: Store, *, share: bool = True
) -> list[list[StudentRun]]:
    """Group the runs of a configuration.

    A group that was started is continued unchanged, even if some of its runs are finished by now;
    the folder of each run names the group. Other finished runs are not grouped.

    Args:
        runs: All runs of the configuration.
        store: Where they are.
        share: Whether to put new groups together.
    """
    by_name = {run.name: run for run in runs}
    groups: list[list[StudentRun]] = []
    placed: set[str] = set()
    for run in runs:
        names = begun_group(store.run(run.name))
        if run.name in placed or is_finished(store.run(run.name)) or len(names) < 2:
            continue
        if all(name in by_name and name not in placed for name in names):
            groups.append([by_name[name] for name in names])
            placed.update(names)
    together: dict[tuple[object, ...], list[StudentRun]] = {}
    for run in runs:
        if run.name in placed:
            continue
        key = run.shares if share and not is_finished(store.run(run.name)) else None
        if key is None:
            groups.append([run])
        elif key in together:
            together[key].append(run)
        else:
            together[key] = [run]
            groups.append(together[key])
    return groups


def begun_group(storage: Storage) -> list[str]:
    """Return the names of the runs that a run was started together with, itself among them."""
    if not storage.exists(GROUP):
        return []
    names: list[str] = json.loads(storage.read(GROUP))
    return names
