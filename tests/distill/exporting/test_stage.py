"""A whole export of a student: every form, its parity, its manifest."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch

from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import read_source
from echostill.distill.exporting import graph as export_graph
from echostill.distill.exporting.stage import check_forms, export
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.models import create_encoder, exported, save_weights, weights_digest
from echostill.platform.models.exported import FORMS, open_export, read_export
from echostill.platform.models.trained import open_run
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store, finish_run
from echostill.platform.tables.table import write_table

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "pool"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with 48 real images, half of them chosen, and one finished student."""
    store = Store(str(tmp_path_factory.mktemp("export") / "store"))
    plain = DeidentifySettings(pixels="off")
    settings = IngestSettings(source=str(SAMPLE / "manifest.csv"), deidentify=plain)
    rows = [read_source(source, settings)[0] for source in list_sources(settings)[::20][:48]]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    chosen = [{"image_id": row["image_id"], "selected": k % 2 == 0} for k, row in enumerate(rows)]
    write_table(store.pool(), pool, stage="ingest", fingerprint={})
    coreset = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    write_table(store.coreset("default"), coreset, stage="select", fingerprint={})
    torch.manual_seed(0)
    encoder = create_encoder("tinyusfm-micro")
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.mul_(1.5)
    run = store.run("student-0")
    save_weights(encoder, run.local_path("model.safetensors"), {})
    made = Fingerprint({}, "0", {}, {})
    finish_run(run, stage="distill", files=["model.safetensors"], fingerprint=made)
    return store


@pytest.fixture(scope="module")
def result(store):
    folder = store.storage.local_path("../out")
    return export(open_run(store, "student-0"), store, folder, FORMS, repeats=1, threads=1)


def test_every_form_keeps_its_bar(result):
    forms = {row["form"]: row for row in result.parity["forms"]}
    assert list(forms) == list(FORMS)
    for form, row in forms.items():
        assert row["cosine_min"] >= (0.98 if form == "onnx-int8" else 0.9999), form
    assert forms["onnx-int8"]["bytes"] <= forms["onnx"]["bytes"] / 3
    assert forms["onnx-int8"]["cosine_min"] < forms["onnx"]["cosine_min"]
    assert set(forms["onnx"]["latency_ms"]) == set(result.parity["torch_latency_ms"]) == {"1", "8"}
    assert result.parity["images"] == 12 == result.parity["calibration_images"]


def test_the_manifest_describes_the_files(result, store):
    manifest = read_export(result.folder)
    assert manifest == result.manifest
    for entry in manifest["files"]:
        path = result.folder / entry["file"]
        assert entry["bytes"] == path.stat().st_size
        assert entry["sha256"] == weights_digest(path)
    assert manifest["source"]["run"] == "student-0"
    assert manifest["source"]["weights"] == open_run(store, "student-0").digest
    assert manifest["input"]["image_size"] == 128
    assert json.loads((result.folder / "parity.json").read_text()) == result.parity


def test_onnx_runs_anywhere_with_any_batch(result, store):
    for name in ("model.onnx", "model-int8.onnx"):
        path = result.folder / name
        model = onnx.load(path)
        assert {f.domain: f.version for f in model.opset_import}[""] == export_graph.OPSET
        about = json.loads({p.key: p.value for p in model.metadata_props}["echostill"])
        assert (about["model"], about["image_size"]) == ("tinyusfm-micro", 128)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 5):
            pixels = np.random.default_rng(0).random((batch, 3, 128, 128), dtype=np.float32)
            feature, tokens = session.run(None, {"pixels": pixels})
            assert feature.shape == (batch, 64)
            assert tokens.shape == (batch, 65, 64)


def test_no_file_tells_paths_of_this_machine(result, store):
    roots = [store.root, str(Path(torch.__file__).parents[1])]
    for path in result.folder.iterdir():
        assert not [root for root in roots if root.encode() in path.read_bytes()], path.name


def test_int8_holds_its_weights_in_eight_bits_and_attention_in_float(result):
    model = onnx.load(result.folder / "model-int8.onnx")
    sizes = {}
    for tensor in model.graph.initializer:
        count = int(np.prod(tensor.dims))
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + count
    assert sizes[onnx.TensorProto.INT8] > 10 * sizes[onnx.TensorProto.FLOAT]
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    whole = [n for n in products if all(made_by.get(i) == "DequantizeLinear" for i in n.input)]
    assert len(products) - len(whole) == 2 * 6  # q k^T and the weighted sum, in each of six blocks


def test_torch_export_needs_torch_alone(result, store):
    program = torch.export.load(result.folder / "model.pt2").module()
    encoder = open_run(store, "student-0").encoder
    pixels = torch.rand(3, 3, 128, 128)
    with torch.inference_mode():
        feature, tokens = program(pixels)
        own = encoder(pixels)
    torch.testing.assert_close(feature, own.pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens, own.tokens, rtol=1e-4, atol=1e-4)


def test_a_form_opens_by_itself_where_it_says_what_it_is(result, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 128, 128), dtype=np.uint8)
    reference = open_export(result.folder).features(pixels)
    for form in ("onnx", "torch-export", "safetensors"):
        name = exported.FILES[form]
        (tmp_path / name).write_bytes((result.folder / name).read_bytes())
        alone = open_export(tmp_path / name)
        assert (alone.name, alone.form, alone.image_size) == ("tinyusfm-micro", form, 128)
        np.testing.assert_allclose(alone.features(pixels), reference, rtol=1e-3, atol=1e-4)
    published = tmp_path / "tinyusfm.pth"
    published.write_bytes((result.folder / "tinyusfm.pth").read_bytes())
    with pytest.raises(UsageError, match="does not say which model"):
        open_export(published)


def test_a_form_too_far_off_is_said_and_kept(store, tmp_path, monkeypatch):
    def write_wrong(encoder, folder, about):
        with torch.no_grad():
            changed = create_encoder(encoder.name)
        save_weights(changed, folder / "model.safetensors", about)
        return ["model.safetensors"]

    monkeypatch.setattr("echostill.distill.exporting.forms.write_ours", write_wrong)
    with pytest.raises(EchostillError, match=r"too far.*safetensors: least cosine") as caught:
        export(open_run(store, "student-0"), store, str(tmp_path), ["safetensors"], repeats=0)
    assert caught.value.exit_code == 1
    assert not json.loads((tmp_path / "parity.json").read_text())["forms"][0]["passes"]
    assert (tmp_path / "model.safetensors").is_file()


def test_wrong_usage_is_named(store, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Did you mean 'onnx'"):
        check_forms(["onxx"])
    with pytest.raises(UsageError, match="no form given"):
        check_forms([])
    source = open_run(store, "student-0")
    with pytest.raises(UsageError, match=r"no coreset 'defautl'.*'default'"):
        export(source, store, str(tmp_path), ["timm"], coreset="defautl")
    assert check_forms(["onnx-int8", "timm"]) == ["timm", "onnx", "onnx-int8"]
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript.*pip install 'echostill\[export\]'"):
        check_forms(["onnx"])


def test_images_for_calibration_are_not_compared_on(store):
    from echostill.distill.exporting.stage import _images

    first, second = _images(store, "default", 128, 8, 8, seed=0)
    assert len(first) == len(second) == 8
    own = {image.tobytes() for image in first}
    assert not own & {image.tobytes() for image in second}
    again, _ = _images(store, "default", 128, 8, 8, seed=0)
    assert np.array_equal(first, again)
    other, _ = _images(store, "default", 128, 8, 8, seed=1)
    assert not np.array_equal(first, other)
