"""One Ray for the whole session: starting it costs ten seconds."""

import os
import tempfile

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    from echostill.platform import runtime

    if not ray.is_initialized():
        with tempfile.TemporaryDirectory(prefix="echo-") as folder:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                log_to_driver=False,
                _temp_dir=folder,
            )
            runtime.connect()
            yield
            ray.shutdown()
