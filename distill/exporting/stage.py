"""Exporting a trained model: one folder, one file per form, a manifest and a parity report."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echostill.distill.exporting import forms as export_forms
from echostill.distill.exporting import graph as export_graph
from echostill.distill.exporting import parity
from echostill.platform.errors import EchostillError, UsageError, nearest
from echostill.platform.imaging.images import decode_staged, to_square
from echostill.platform.models import Encoder, weights_digest
from echostill.platform.models.exported import (
    FEATURE,
    FORMAT_VERSION,
    FORMS,
    INPUT,
    MANIFEST,
    TOKENS,
    Form,
    require,
)
from echostill.platform.models.trained import TrainedModel
from echostill.platform.seeding import stream
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.store import Store, describe_bytes, selected_ids
from echostill.platform.tables.table import MANIFEST as TABLE_MANIFEST

PARITY = "parity.json"
CALIBRATION_IMAGES = 64
PARITY_IMAGES = 64


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote and how it compares with the model it was made from."""

    folder: Path
    manifest: dict[str, Any]
    parity: dict[str, Any]

    def describe(self) -> str:
        """Return files, sizes and the parity table in words."""
        files = "\n".join(
            f"  {entry['file']:<20} {entry['form']:<13} {describe_bytes(entry['bytes'])}"
            for entry in self.manifest["files"]
        )
        return f"{self.folder}\n{files}\n\n{parity.describe(self.parity)}"


def export(
    source: TrainedModel,
    store: Store,
    to: str,
    forms: Sequence[str],
    *,
    coreset: str = "default",
    calibration_images: int = CALIBRATION_IMAGES,
    parity_images: int = PARITY_IMAGES,
    threads: int | None = None,
    repeats: int = 15,
    seed: int = 0,
) -> ExportResult:
    """Export a model in one or several forms and compare each with the original.

    Args:
        source: The model, from :mod:`echostill.platform.models.trained`.
        store: Store whose images calibrate the int8 form and are compared on.
        to: A local folder; files of an earlier export there are replaced.
        forms: Some of ``FORMS``.
        coreset: Coreset the images are taken from; the pool where the store has none.
        calibration_images: Images for the ranges of the int8 form.
        parity_images: Other images, for the comparison.
        threads: Threads for the timings; default all this process may use.
        repeats: Timed runs; 0 times nothing.
        seed: Seed of the choice of images.

    Raises:
        UsageError: An unknown form, a form this model has not, a library that is not installed, or
            no images.
        EchostillError: A form's features are too far from the original's; the files are kept.
    """
    chosen = check_forms(forms)
    encoder = source.encoder
    calibration, held_out = _images(
        store, coreset, encoder.image_size, calibration_images, parity_images, seed
    )
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # until all is written anew, this is no export
    files = _write(encoder, folder, chosen, calibration, _about(source))
    manifest = _manifest(source, folder, files)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    used = threads or len(os.sched_getaffinity(0))
    rows = parity.measure(
        encoder,
        folder,
        {form: files[form][0] for form in chosen},
        held_out,
        threads=used,
        repeats=repeats,
    )
    compared = parity.parity_report(
        encoder,
        rows,
        images=len(held_out),
        calibration_images=len(calibration) if "onnx-int8" in chosen else 0,
        threads=used,
        repeats=repeats,
    )
    (folder / PARITY).write_text(json.dumps(compared, indent=1), encoding="utf-8")
    result = ExportResult(folder, manifest, compared)
    failed = [row for row in rows if not row.passes]
    if failed:
        said = "; ".join(
            f"{row.form}: least cosine {row.cosine_min:.4f}, below {row.least_cosine}"
            for row in failed
        )
        raise EchostillError(
            f"the export in '{folder}' is too far from the model it was made from ({said}). "
            f"The files are kept; see {PARITY}.\n{result.describe()}"
        )
    return result


def check_forms(forms: Sequence[str]) -> list[Form]:
    """Return the forms in order, each once; see that what they need is installed.

    Raises:
        UsageError: None given, an unknown one, or a library is missing.
    """
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        hint = nearest(unknown[0], FORMS) if unknown else ""
        said = f"no form '{unknown[0]}'.{hint}" if unknown else "no form given."
        raise UsageError(f"{said} There are: {', '.join(FORMS)}.")
    chosen = [form for form in FORMS if form in forms]
    if "onnx" in chosen or "onnx-int8" in chosen:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module)
    if "onnx-int8" in chosen and "onnx" not in chosen:
        chosen.insert(chosen.index("onnx-int8"), "onnx")  # it is made from the float32 file
    return chosen


def _write(
    encoder: Encoder,
    folder: Path,
    forms: Sequence[Form],
    calibration: np.ndarray,
    about: dict[str, Any],
) -> dict[str, list[str]]:
    header = {"run": str(about["run"]), "weights": str(about["weights"])}
    writers: dict[str, Any] = {
        "safetensors": lambda: export_forms.write_ours(encoder, folder, header),
        "tinyusfm": lambda: export_forms.write_published(encoder, folder, header),
        "timm": lambda: export_forms.write_timm(encoder, folder, header),
    }
    files: dict[str, list[str]] = {form: writers[form]() for form in forms if form in writers}
    if set(forms) - set(writers):
        program = export_graph.export_program(encoder)
        if "onnx" in forms:
            files["onnx"] = export_graph.write_onnx(program, folder, about)
        if "onnx-int8" in forms:
            files["onnx-int8"] = export_graph.write_int8(folder, calibration, about)
        if "torch-export" in forms:
            files["torch-export"] = export_graph.write_program(program, folder, about)
    return files


def _about(source: TrainedModel) -> dict[str, Any]:
    """What a file says about itself: the model, its input and where its weights came from."""
    encoder = source.encoder
    return {
        "model": encoder.name,
        "image_size": encoder.image_size,
        "dim": encoder.dim,
        "patch_size": encoder.patch_size,
        "prefix_tokens": encoder.prefix_tokens,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "run": source.run,
        "weights": source.digest,
        "echostill": code_version(),
    }


def _manifest(source: TrainedModel, folder: Path, files: dict[str, list[str]]) -> dict[str, Any]:
    about = _about(source)
    return {
        "format_version": FORMAT_VERSION,
        "echostill": about["echostill"],
        "model": about["model"],
        "source": {"run": source.run, "fingerprint": source.fingerprint, "weights": source.digest},
        "input": {
            "name": INPUT,
            "image_size": about["image_size"],
            "channels": 3,
            "range": [0.0, 1.0],
            "resize": "the whole image squashed to a square, bicubic with antialiasing; grey "
            "repeated three times",
            "mean": about["mean"],
            "std": about["std"],
            "normalised_inside": [
                form for form in ("onnx", "onnx-int8", "torch-export") if form in files
            ],
        },
        "output": {
            FEATURE: ["batch", about["dim"]],
            TOKENS: ["batch", "prefix_tokens + patches", about["dim"]],
            "prefix_tokens": about["prefix_tokens"],
            "patch_size": about["patch_size"],
        },
        "files": [
            {
                "form": form,
                "file": name,
                "bytes": (folder / name).stat().st_size,
                "sha256": weights_digest(folder / name),
            }
            for form, names in files.items()
            for name in names
        ],
    }


def _images(
    store: Store, coreset: str, size: int, calibration: int, held_out: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read two disjoint sets of images, (n, 3, S, S) uint8 each, drawn by the seed alone."""
    pool = store.open_pool()
    has_coreset = store.coreset(coreset).exists(TABLE_MANIFEST) or coreset != "default"
    if has_coreset:
        ids = selected_ids(store.open_coreset(coreset))
    else:
        ids = tuple(sorted(pool.read(["image_id"])["image_id"].to_pylist()))
    if len(ids) < 2:
        raise UsageError(f"'{store.root}' has {len(ids)} image(s): two at least are needed.")
    order = stream(seed, "export").permutation(len(ids))
    first = min(calibration, max(len(ids) // 2, 1))
    wanted = [ids[row] for row in order[: first + held_out]]
    found: dict[str, np.ndarray] = {}
    chosen = set(wanted)
    for part in pool.parts(["image_id", "image"]):
        for image_id, data in zip(*(c.to_pylist() for c in part.columns), strict=True):
            if image_id in chosen:
                found[image_id] = to_square(decode_staged(data), size)
    missing = chosen - found.keys()
    if missing:
        raise EchostillError(
            f"{len(missing)} image(s) of the coreset are not in the pool of '{store.root}': "
            "select again from this pool."
        )
    pixels = np.stack([found[image_id] for image_id in wanted])
    return pixels[:first], pixels[first:]
