"""The forms that hold a computation: ONNX in float32 and int8, and a torch.export program."""

import itertools
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from echostill.platform.models import Encoder
from echostill.platform.models.exported import (
    FEATURE,
    FILES,
    INPUT,
    METADATA_KEY,
    TOKENS,
    FeatureModule,
    require,
)

OPSET = 18  # LayerNormalization is one operator since 17; ONNX Runtime 1.14 and later reads it
CALIBRATION_BATCH = 8
QUANTISED = ("MatMul", "Gemm", "Conv")


def export_program(encoder: Encoder) -> Any:
    """Trace an encoder with a batch of any size, on the CPU, in evaluation mode."""
    module = FeatureModule(encoder.cpu().eval())
    size = encoder.image_size
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, of no use elsewhere
    return program


def write_program(program: Any, folder: Path, about: dict[str, Any]) -> list[str]:
    """Write ``model.pt2``, which ``torch.export.load`` reads without echostill."""
    name = FILES["torch-export"]
    torch.export.save(program, folder / name, extra_files={METADATA_KEY: json.dumps(about)})
    return [name]


def write_onnx(program: Any, folder: Path, about: dict[str, Any]) -> list[str]:
    """Write ``model.onnx``: pixels in [0, 1] in, ``feature`` and ``tokens`` out, any batch size."""
    onnx = require("onnx")
    require("onnxscript")  # torch's exporter needs it and would say so in its own way
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[FEATURE, TOKENS],
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    _strip(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(model)
    name = FILES["onnx"]
    onnx.save(model, folder / name)
    return [name]


def write_int8(folder: Path, pixels: np.ndarray, about: dict[str, Any]) -> list[str]:
    """Quantise the folder's ``model.onnx`` into ``model-int8.onnx`` (static, QDQ, per channel).

    Products with weights (and the patch convolution) become 8-bit; the two products inside
    attention, the norms, softmax and GELU stay in float32: they hold no weights, and quantising
    them costs ten times the error for no size. Weights keep 7 bits (``reduce_range``): processors
    without VNNI add pairs of 8-bit products in 16 bits, which would saturate and give other
    features there than here.

    Args:
        folder: The export; holds the float32 ONNX file.
        pixels: (N, 3, S, S) uint8 images that the ranges of activations are taken from.
        about: Metadata of the file.
    """
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    preparation = require("onnxruntime.quantization.shape_inference")
    name = FILES["onnx-int8"]
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared, quantised = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        preparation.quant_pre_process(folder / FILES["onnx"], prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        weights = {tensor.name for tensor in model.graph.initializer}
        without = [
            node.name
            for node in model.graph.node
            if node.op_type == "MatMul" and not weights & set(node.input)
        ]
        quantization.quantize_static(
            prepared,
            quantised,
            _reader(quantization, pixels),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=without,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        model = onnx.load(quantised)
    _strip(model)
    _shorten_names(model)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(about, sort_keys=True)})
    onnx.checker.check_model(model)
    onnx.save(model, folder / name)
    return [name]


def _reader(quantization: Any, pixels: np.ndarray) -> Any:
    """Make the calibration reader; its base class exists only where ONNX Runtime does."""

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(pixels), CALIBRATION_BATCH):
            yield {INPUT: pixels[start : start + CALIBRATION_BATCH].astype(np.float32) / 255}

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._batches = batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    return Reader()


def _strip(model: Any) -> None:
    """Take out the traces of the exporter: stack frames with paths of this machine, shape notes."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in itertools.chain(graph.node, graph.input, graph.output, graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _shorten_names(model: Any) -> None:
    """Number the values inside the graph: names are a tenth of a small quantised model."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}

    def rename(name: str) -> str:
        if name in kept:
            return name
        return short.setdefault(name, f"v{len(short)}")

    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]


class _quiet:  # noqa: N801
    """Hold back the root logger, which the quantiser fills with advice already followed."""

    def __enter__(self) -> None:
        import logging

        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        import logging

        logging.root.setLevel(self._level)
