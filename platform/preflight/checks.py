"""What a stage is about to use, checked in one place: cluster, record of runs, store.

Whoever runs a stage, by command, job, pipeline or Python call, and whoever plans one, passes here
before anything is read, started or written.
"""

from echostill.platform.config import StageConfig
from echostill.platform.errors import UsageError
from echostill.platform.preflight.clusters import check_ray
from echostill.platform.preflight.folders import unwritable
from echostill.platform.preflight.tracking import check_tracking
from echostill.platform.stages import StageInfo
from echostill.platform.tables.store import Store


def check_stage(info: StageInfo, config: StageConfig) -> None:
    """Check that what a stage reaches outside of this process answers; each within seconds.

    Opening a store in a bucket checks the bucket.

    Raises:
        UsageError: Something is not there, or not allowed; names it and what to do.
    """
    store = Store(config.store)
    if info.on_ray:
        check_ray(config.address)
    if info.tracked:
        check_tracking(config.tracking, store.root)


def check_writable(store: Store, folder: str = "") -> None:
    """Check that a store can be written; a bucket says so with the first write.

    Args:
        store: The store.
        folder: Folder of it that will be written.

    Raises:
        UsageError: It cannot; names the folder.
    """
    problem = read_only(store, folder)
    if problem:
        raise UsageError(problem)


def read_only(store: Store, folder: str = "") -> str | None:
    """Say in a sentence why a store cannot be written; None where it can."""
    if not store.storage.is_local:
        return None
    problem = unwritable(store.storage.local_path()) or unwritable(store.storage.local_path(folder))
    if problem is None:
        return None
    return (
        f"the store '{store.root}' cannot be written: {problem}. Expected a folder that can be "
        "written: give another store, or change its permissions."
    )
