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


@pytest.fixture(scope="session")
def make_pool(tmp_path_factory):
    """Read files as ingest does, without Ray: ``make_pool(store, {name: bytes}, groups)``."""
    import pyarrow as pa

    from echostill.curation.sources import IngestSettings, list_sources, read_source
    from echostill.platform.schemas import POOL_SCHEMA
    from echostill.platform.tables import Table, write_table

    def make(store, files, groups=None, rows_per_part=7):
        folder = tmp_path_factory.mktemp("files")
        lines = ["file,group"]
        for name, data in files.items():
            (folder / name).write_bytes(data)
            lines.append(f"{name},{(groups or {}).get(name, '')}")
        (folder / "list.csv").write_text("\n".join(lines) + "\n")
        settings = IngestSettings(source=str(folder / "list.csv"))
        rows = [row for source in list_sources(settings) for row in read_source(source, settings)]
        table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
        counted = {"rows_in": table.num_rows, "quarantined": 0}
        write_table(store.pool(), table, stage="ingest", fingerprint={"digest": ""},
                    rows_per_part=rows_per_part, extra=counted)  # fmt: skip
        return Table.open(store.pool(), "ingest")

    return make
