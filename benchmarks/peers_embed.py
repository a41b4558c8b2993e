"""`echostill embed` beside timm with a DataLoader: the same model, images and batch.

Both read image files, compute the mean of a ViT's patch tokens and write Parquet. The plain script
resizes to the model's side and nothing else; ours reads as ingest does, with ids. `peers.py` calls
:func:`compare`; with `--plain` this file is the plain script.
"""

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

MODEL, SIDE, BATCH = "vit_tiny_patch16_224", 224, 32
DEFAULT_SOURCE = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "pool"
Measure = Callable[[list[str]], tuple[float, float]]


def plain(folder: str, weights: str, target: str, workers: int) -> None:
    """Write the features of a folder's images with timm, torchvision and a DataLoader."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    class Images(Dataset):
        """Images of a folder, resized and normalised."""

        def __init__(self) -> None:
            self.files = sorted(str(path) for path in Path(folder).iterdir())
            mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            self.transform = v2.Compose(
                [
                    v2.PILToTensor(),
                    v2.Resize((SIDE, SIDE), antialias=True),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(mean, deviation),
                ]
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
            with Image.open(self.files[index]) as image:
                return self.files[index], self.transform(image.convert("RGB"))

    model = timm.create_model(MODEL, num_classes=0).eval()
    model.load_state_dict(load_file(weights))
    names, features = [], []
    with torch.inference_mode():
        for files, pixels in DataLoader(Images(), BATCH, num_workers=workers):
            names += files
            features.append(model.forward_features(pixels)[:, 1:].mean(dim=1))
    found = torch.cat(features).numpy()
    column = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
    pq.write_table(pa.table({"image": names, "feature": column}), target, compression="zstd")


def prepare(folder: Path, images: int) -> tuple[str, str]:
    """Make a folder of images and a file of weights; return both."""
    import timm
    import torch
    from safetensors.torch import save_file
    from steady import tile_files

    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), weights)
    tile_files(DEFAULT_SOURCE, folder / "images", images, (".png", ".jpg", ".jpeg"))
    return str(folder / "images"), str(weights)


def agreement(ours: str, theirs: str) -> float:
    """Return the smallest cosine of two files' features; the images are resized differently."""
    import numpy as np
    import pyarrow.parquet as pq

    found = []
    for path in (ours, theirs):
        table = pq.read_table(path, columns=["image", "feature"])
        names = [os.path.basename(name) for name in table["image"].to_pylist()]
        values = np.stack(table["feature"].to_numpy())[np.argsort(names)]
        found.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    return float((found[0] * found[1]).sum(axis=1).min())


def compare(
    folder: Path, measure: Measure, images: int, runs: int, before: str | None = None
) -> dict[str, object]:
    """Print medians of both, and their ratio; return them.

    Args:
        folder: Empty, for images, weights and results.
        measure: Runs a command and returns its CPU seconds and its seconds.
        images: How many images.
        runs: Of each.
        before: Another `echostill` to set beside, such as that of an earlier version.
    """
    source, weights = prepare(folder, images)
    threads = max(len(os.sched_getaffinity(0)) - 1, 1)
    targets = {name: str(folder / f"{name}.parquet") for name in ("embed", "before", "plain")}
    options = ["--model", f"timm:{MODEL}", "--weights", weights, "--batch-size", str(BATCH), "--to"]
    own = str(Path(sys.executable).with_name("echostill"))
    commands = {"embed": [own, "embed", source, *options, targets["embed"]]}
    if before:
        commands["before"] = [before, "embed", source, *options, targets["before"]]
    plain_arguments = [source, weights, targets["plain"], str(threads)]
    commands["plain"] = [sys.executable, __file__, "--plain", *plain_arguments]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(runs + 1):
        for name, command in commands.items():
            cost = measure(command)
            if number:  # the first one fills byte code and the page cache
                found[name].append(cost)
                print(f"run {number}: {name:<7}{cost[0]:>8.2f} CPU s{cost[1]:>8.2f} s", flush=True)
    result: dict[str, object] = {"images": images, "runs": runs, "model": MODEL}
    for name, costs in found.items():
        cpu, took = (statistics.median(one[place] for one in costs) for place in (0, 1))
        result[name] = {"cpu_seconds": round(cpu, 2), "seconds": round(took, 2)}
    for name in ("embed", "before"):
        if name in found:
            pairs = zip(found[name], found["plain"], strict=True)
            ratio = statistics.median(ours[0] / theirs[0] for ours, theirs in pairs)
            result[f"{name}_by_plain"] = round(ratio, 2)
            print(f"{name} takes {ratio:.2f} times the CPU of timm with a DataLoader")
    result["smallest_cosine"] = round(agreement(targets["embed"], targets["plain"]), 4)
    return result


if __name__ == "__main__":
    assert sys.argv[1] == "--plain"
    plain(*sys.argv[2:5], int(sys.argv[5]))
