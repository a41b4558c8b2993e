"""Students that are trained together, on Ray: each has its own folder, record and result."""

import json

import numpy as np
import pyarrow as pa
import torch

from echostill.distill import DistillConfig, distill
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.settings import StudentSettings
from echostill.platform.config import TeacherSettings
from echostill.platform.imaging.images import encode_png
from echostill.platform.models import create_encoder, load_weights, save_weights
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.training.loop import TrainingSettings


def filled(folder):
    """A store with a pool of six images, all selected, and a teacher's weights."""
    store = Store(str(folder / "store"))
    random = np.random.default_rng(0)
    rows = [
        {
            "image_id": f"{n:032x}",
            "organ": "liver" if n % 2 else "lung",
            "device": "",
            "image": encode_png(random.integers(0, 255, (40, 40), dtype=np.uint8)),
            "colour": False,
        }
        for n in range(6)
    ]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(store.pool(), pool, stage="ingest", fingerprint={})
    chosen = [{"image_id": row["image_id"], "selected": True} for row in rows]
    coreset = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    write_table(store.coreset("default"), coreset, stage="select", fingerprint={})
    torch.manual_seed(1)
    save_weights(create_encoder("usfm-micro"), str(folder / "teacher.safetensors"), {})
    return store


def test_students_trained_together_end_as_runs_of_their_own(ray_cluster, tmp_path, capfd):
    store = filled(tmp_path)
    students = (
        StudentSettings(objective=ObjectiveSettings(preset="tinyusfm")),
        StudentSettings(name="plain", objective=ObjectiveSettings(centring=False)),
    )

    def config(**change):
        return DistillConfig(
            store=store.root,
            teacher=TeacherSettings(
                model="usfm-micro", weights=str(tmp_path / "teacher.safetensors")
            ),
            student="tinyusfm-micro",
            students=students,
            training=TrainingSettings(steps=3, batch_size=4, checkpoints=1, threads=1),
            progress=False,
            **change,
        )

    told = str(distill(config()))
    assert "distilled-0: loss" in told
    assert "plain-0: loss" in told
    warned = capfd.readouterr().err
    assert "warning: plain-0: inert weight" in warned
    assert "distilled-0: inert" not in warned
    for name in ("distilled-0", "plain-0"):
        run = store.run(name)
        assert set(run.list()) >= {"model.safetensors", "metrics.jsonl", "reconstructions.png"}
        assert not run.exists("train")
        last = json.loads(run.read("metrics.jsonl").decode().splitlines()[-1])
        assert {"loss", "weight_std", "gradient_norm", "weight_by_organ/lung"} <= set(last)
        assert not [key for key in last if "/" in key and not key.startswith("weight_by_")]
        load_weights(create_encoder("tinyusfm-micro"), run.local_path("model.safetensors"))
        manifest = json.loads(run.read("manifest.json"))
        names = [s["name"] for s in manifest["fingerprint"]["configuration"]["students"]]
        assert names == [name.removesuffix("-0")]
    assert str(distill(config())).count("already done") == 2

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store.storage.local_path('mlflow.db')}")
    experiment = client.get_experiment_by_name("echostill")
    records = client.search_runs([experiment.experiment_id])
    assert sorted(record.info.run_name for record in records) == ["distilled-0", "plain-0"]
    for record in records:
        assert "weight_by_organ/lung" in record.data.metrics
        assert not [key for key in record.data.metrics if key.startswith(("distilled", "plain"))]
        paths = {artifact.path for artifact in client.list_artifacts(record.info.run_id)}
        assert paths >= {"model.safetensors", "model", "metrics.jsonl"}
        (used,) = record.inputs.dataset_inputs
        coreset, pool = store.open_coreset("default"), store.open_pool()
        assert used.dataset.name == "coreset default"
        facts = json.loads(used.dataset.profile)
        assert facts["sha256"] == coreset.digest
        assert (facts["rows"], facts["pool_rows"], facts["pool_sha256"]) == (6, 6, pool.digest)
        assert json.loads(used.dataset.source) == {"uri": coreset.storage.root}
        name = f"echostill-{record.info.run_name}"
        (version,) = client.search_model_versions(f"name='{name}'")
        assert client.get_model_version(name, version.version).tags == {
            "made from coreset default": used.dataset.digest
        }
