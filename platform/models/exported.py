"""Exported models: what each form is called, and one way to take features from any of them.

An export is a folder with an ``export.json`` (the manifest: model, input, checksums) and one file
per form. Whatever the form, :func:`open_export` gives pixels to pooled features.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from echostill.platform.computing.precision import (
    Precision,
    checked_precision,
    computing,
    computing_type,
    lowered,
)
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.models import Encoder, create_encoder, load_weights, weights_digest
from echostill.platform.models.encoder import IMAGENET_MEAN, IMAGENET_STD

MANIFEST = "export.json"
METADATA_KEY = "echostill"  # in ONNX metadata and among the extra files of a .pt2
FORMAT_VERSION = 1

Form = Literal["safetensors", "tinyusfm", "timm", "onnx", "onnx-int8", "torch-export"]
FORMS: tuple[Form, ...] = get_args(Form)
FILES: Mapping[Form, str] = {
    "safetensors": "model.safetensors",
    "tinyusfm": "tinyusfm.pth",
    "timm": "timm.safetensors",
    "onnx": "model.onnx",
    "onnx-int8": "model-int8.onnx",
    "torch-export": "model.pt2",
}
TIMM_ARGUMENTS = "timm.json"
GRAPHS: tuple[Form, ...] = ("onnx", "onnx-int8", "torch-export")
INPUT, FEATURE, TOKENS = "pixels", "feature", "tokens"

Compute = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FeatureModel:
    """Something that turns pixels into pooled features, whatever form it was loaded from.

    Attributes:
        name: Name of the model in the zoo, or of the file.
        form: One of ``FORMS``, ``run`` or ``zoo``.
        image_size: Side of the square input in pixels.
        digest: SHA-256 of the file the weights came from.
        compute: Features of float32 pixels.
        precision: Of matrix products; never ``auto``.
    """

    name: str
    form: str
    image_size: int
    digest: str
    compute: Compute = field(repr=False)
    precision: Precision = "float32"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Pooled features of a batch.

        Args:
            pixels: (B, 3, S, S) uint8, S = ``image_size``.

        Returns:
            (B, D) float32.

        Raises:
            EchostillError: The model gave numbers that are not finite.
        """
        features = np.asarray(self.compute(pixels.astype(np.float32) / 255), dtype=np.float32)
        if not np.isfinite(features).all():
            raise EchostillError(f"'{self.name}' ({self.form}) gave features that are not finite.")
        return features


class FeatureModule(nn.Module):
    """An encoder as it is exported: pixels in [0, 1] in, pooled feature and tokens out.

    The normalisation stays inside, so that nobody outside can forget it.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) pooled features and (B, prefix + N, D) tokens of (B, 3, S, S) pixels."""
        output = self.encoder(pixels)
        return output.pooled, output.tokens


def open_export(
    path: str | Path,
    form: str | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
) -> FeatureModel:
    """Open an exported model for features.

    Args:
        path: An export folder, or one file of it.
        form: Which form of a folder; default the first there is of float32 ONNX, safetensors, ...
        threads: Threads for ONNX Runtime; default its own choice.
        precision: Of matrix products. A graph (ONNX, torch.export) has the one it was exported in.

    Raises:
        UsageError: There is no export there, not in that form, or it was changed since; or the
            precision is not the form's.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    manifest = read_export(folder) if (folder / MANIFEST).is_file() else None
    if path.is_dir():
        if manifest is None:
            raise UsageError(f"'{path}' is not an export: it holds no {MANIFEST}.")
        chosen = _choose(manifest, form, path)
        path = folder / FILES[chosen]
    elif path.is_file():
        chosen = _form_of(path, manifest)
        if form is not None and form != chosen:
            raise UsageError(f"'{path}' has the form {chosen}, not {form}.")
    else:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise UsageError(f"no exported model '{path}'.{nearest(path.name, names)}")
    digest = weights_digest(path)
    about = _about(path, chosen, manifest)
    if manifest is not None:
        _check_digest(path, digest, manifest)
    if chosen in GRAPHS:
        if precision not in ("auto", "float32"):
            raise UsageError(
                f"'{path}' is a graph ({chosen}), which computes in what it was exported in: leave "
                f"out the precision {precision}, or take the form safetensors."
            )
        precision = "float32"
    if chosen in ("onnx", "onnx-int8"):
        compute = onnx_compute(path, threads)
    elif chosen == "torch-export":
        program: Any = torch.export.load(path).module()
        compute = _torch_compute(lambda pixels: program(pixels)[0])
    elif chosen == "timm":
        precision = settled_here(precision)
        compute = _timm_compute(path, about, precision)
    else:
        encoder = create_encoder(about["model"], image_size=int(about["image_size"]))
        load_weights(encoder, path)
        precision = settled_here(precision)
        compute = encoder_compute(encoder, precision)
    return FeatureModel(
        about["model"], chosen, int(about["image_size"]), digest, compute, precision
    )


def read_export(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of an export folder.

    Raises:
        EchostillError: It is of another version of the format.
    """
    manifest: dict[str, Any] = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise EchostillError(
            f"'{Path(folder) / MANIFEST}' has format {manifest.get('format_version')}; "
            f"this version reads format {FORMAT_VERSION}."
        )
    return manifest


def settled_here(precision: Precision) -> Precision:
    """Return what a precision stands for on the device of :func:`encoder_compute`.

    Raises:
        UsageError: The device does not have it.
    """
    kind = computing_type(precision, _device())
    return checked_precision(str(kind).removeprefix("torch."))


def encoder_compute(encoder: Encoder, precision: Precision = "float32") -> Compute:
    """Features from a torch encoder, in evaluation mode, on a GPU where there is one.

    Args:
        encoder: Its weights are rounded to the precision.
        precision: Of matrix products.
    """
    device = _device()
    encoder = lowered(encoder.to(device).eval(), computing_type(precision, device))

    def forward(pixels: Tensor) -> Tensor:
        with computing(precision, device):
            pooled: Tensor = encoder(pixels.to(device)).pooled
        return pooled

    return _torch_compute(forward)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def onnx_compute(path: str | Path, threads: int | None = None) -> Compute:
    """Features from an ONNX file, by ONNX Runtime on the CPU."""
    session = onnx_session(path, threads)
    return lambda pixels: np.asarray(session.run([FEATURE], {INPUT: pixels})[0])


def onnx_session(path: str | Path, threads: int | None = None) -> Any:
    """Open an ONNX Runtime session on the CPU.

    Raises:
        UsageError: ONNX Runtime is not installed, or the file is no ONNX model.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base class
        raise UsageError(
            f"'{path}' cannot be opened by ONNX Runtime: {' '.join(str(error).split())[:300]}"
        ) from None


def require(module: str) -> Any:
    """Import an optional library, or say which extra brings it.

    Raises:
        UsageError: It is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise UsageError(
            f"this needs {module.partition('.')[0]}, which is not installed: "
            "pip install 'echostill[export]'"
        ) from None


def _torch_compute(forward: Callable[[Tensor], Tensor]) -> Compute:
    def compute(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return forward(torch.from_numpy(pixels)).float().cpu().numpy()

    return compute


def _timm_compute(path: Path, about: Mapping[str, Any], precision: Precision) -> Compute:
    """Features as anybody with timm alone would take them: the normalisation in front."""
    import timm
    from safetensors.torch import load_file

    arguments = path.with_name(TIMM_ARGUMENTS)
    if not arguments.is_file():
        raise UsageError(f"'{path}' needs the arguments written beside it, {TIMM_ARGUMENTS}.")
    written = json.loads(arguments.read_text(encoding="utf-8"))
    model = timm.create_model(written["architecture"], **written["arguments"]).eval()
    model.load_state_dict(load_file(path), strict=True)
    mean, std = about.get("mean", IMAGENET_MEAN), about.get("std", IMAGENET_STD)
    if not written["pools_itself"]:
        size = int(about["image_size"])
        return encoder_compute(
            Encoder(model, name=about["model"], image_size=size, mean=mean, std=std), precision
        )
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    device = _device()
    lowered(model.to(device), computing_type(precision, device))

    def forward(pixels: Tensor) -> Tensor:
        with computing(precision, device):
            features: Tensor = model(((pixels - shift) / scale).to(device))
        return features

    return _torch_compute(forward)


def _choose(manifest: Mapping[str, Any], form: str | None, folder: Path) -> Form:
    present = [entry["form"] for entry in manifest["files"]]
    preferred: tuple[Form, ...] = (
        *("onnx", "safetensors", "tinyusfm", "timm", "torch-export", "onnx-int8"),
    )
    if form is None:
        return next(name for name in preferred if name in present)
    for name in FORMS:
        if name == form and name in present:
            return name
    raise UsageError(
        f"'{folder}' has no form '{form}'.{nearest(form, present)} It has {', '.join(present)}."
    )


def _form_of(path: Path, manifest: Mapping[str, Any] | None) -> Form:
    for entry in manifest["files"] if manifest else ():
        if entry["file"] == path.name and entry["form"] in FORMS:
            form: Form = entry["form"]
            return form
    by_name: dict[str, Form] = {name: form for form, name in FILES.items()}
    if path.name in by_name:
        return by_name[path.name]
    by_suffix: dict[str, Form] = {
        ".onnx": "onnx",
        ".pt2": "torch-export",
        ".safetensors": "safetensors",
        ".pth": "tinyusfm",
    }
    if path.suffix not in by_suffix:
        raise UsageError(f"'{path}' is no exported model: expected {', '.join(by_suffix)}.")
    return by_suffix[path.suffix]


def _about(path: Path, form: Form, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say which model a file is: by the manifest beside it, else by what it carries itself."""
    if manifest is not None:
        return {**manifest["input"], "model": manifest["model"]}
    text = ""
    if form in ("onnx", "onnx-int8"):
        properties = onnx_session(path).get_modelmeta().custom_metadata_map
        text = properties.get(METADATA_KEY, "")
    elif form == "torch-export":
        extra = {METADATA_KEY: ""}
        torch.export.load(path, extra_files=extra)
        text = extra[METADATA_KEY]
    elif form == "safetensors":
        import safetensors

        with safetensors.safe_open(str(path), framework="pt") as file:
            text = json.dumps(file.metadata() or {})
    about: dict[str, Any] = json.loads(text) if text else {}
    if not {"model", "image_size"} <= about.keys():
        raise UsageError(
            f"'{path}' does not say which model it is: keep {MANIFEST} beside it, or name the "
            "model (--model NAME --weights FILE)."
        )
    return about


def _check_digest(path: Path, digest: str, manifest: Mapping[str, Any]) -> None:
    for entry in manifest["files"]:
        if entry["file"] == path.name and entry["sha256"] != digest:
            raise UsageError(
                f"'{path}' is not the file that {MANIFEST} describes (its SHA-256 differs): "
                "export again."
            )


def machine() -> dict[str, Any]:
    """Describe this machine for a report of timings: processor, cores, versions."""
    import os
    import sys

    processor = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        processor = found.group(1).strip() if found else ""
    return {
        "processor": processor or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
