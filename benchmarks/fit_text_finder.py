"""Fit the text finder of de-identification, and write its weights.

    python benchmarks/fit_text_finder.py WORK --crops FOLDER... [--number 60000] [--marked FILE]
    python benchmarks/fit_text_finder.py WORK --train [--steps 12000] [--minutes 4]
    python benchmarks/fit_text_finder.py WORK --write FILE

Half of the pictures in each folder (by a hash of the name; the other half is for measuring) give
the tissue that crops are cut from (``fit_crops.py``). ``--marked`` names a file with lines such as
``lettered SET/NAME`` (a picture with lettering of its own, left out) and ``alarming SET/NAME`` (one
that an earlier fit took for lettering though there is none, used more often).

The weights in the package came from four rounds, each of which went on from the one before: 8,000
steps on 65,536 crops; to 12,000 on 40,960 made with ``--marked fit_pictures.txt``, written after a
look at what the first round found; to 16,000 on 40,960, half of them of drawn echoes
(``fit_echoes.py``), since coarse speckle was taken for letters, with more of the joined scripts; to
20,000 on 40,960 with more real tissue and callipers again, and 20,480 of the round before.
Training goes on where it was cut off. The last third of the first round's steps, and all rounds
after it, train with weights and activations rounded to the 8 bits in which they are used.
"""

import argparse
import hashlib
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from fit_crops import NO_TEXT, TEXT, Crops
from torch import nn
from torch.nn import functional

from echostill.platform.imaging.containers import IMAGE_SUFFIXES
from echostill.platform.imaging.images import decode_image

# Kernel, stride, dilation, channels in and out of each layer.
LAYERS = (
    (5, 2, 1, 1, 12), (3, 2, 1, 12, 24), (3, 1, 1, 24, 24), (3, 1, 2, 24, 24), (3, 1, 4, 24, 24),
    (3, 1, 2, 24, 24), (3, 1, 1, 24, 24), (1, 1, 1, 24, 1),
)  # fmt: skip
CHUNK, BATCH = 2048, 64
ALARMING = 6  # times as often as others: a picture that an earlier fit took for lettering
HARD = 3  # background cells per text cell that count: those that look most like text


class Finder(nn.Module):
    """The network: grey levels over 255 (N, 1, H, W) to logits (N, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, s, d * (k // 2), d) for k, s, d, i, o in LAYERS
        )
        self.register_buffer("rounded", torch.tensor(False))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, conv in enumerate(self.convs):
            weight = _to_8_bits(conv.weight) if self.rounded else conv.weight
            x = functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation)
            if number < len(self.convs) - 1:
                x = functional.relu(x)
                if self.rounded:
                    x = x.clamp(max=1)
                    x = x + (torch.round(x * 255) / 255 - x).detach()
        return x[:, 0]

    @torch.no_grad()
    def scale_into_bits(self, x: torch.Tensor) -> None:
        """Rescale the layers so that their outputs lie in 0..1, but for a ten-thousandth."""
        before = 1.0
        for number, conv in enumerate(self.convs):
            conv.weight.mul_(before)
            if number == len(self.convs) - 1:
                break
            x = functional.relu(
                functional.conv2d(
                    x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation
                )
            )
            before = float(np.quantile(x.numpy(), 0.9999))
            conv.weight.div_(before)
            conv.bias.div_(before)
            x = x / before
        self.rounded.fill_(True)


def _to_8_bits(weight: torch.Tensor) -> torch.Tensor:
    step = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    return weight + (torch.round(weight / step) * step - weight).detach()


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of text cells, and of the hardest background cells."""
    text, plain = logits[labels == TEXT], logits[labels == NO_TEXT]
    kept = min(len(plain), max(HARD * len(text), 2000))
    hard = torch.topk(plain, kept).values
    every = functional.softplus(plain).mean()
    return functional.softplus(-text).mean() + functional.softplus(hard).mean() + every


def pictures_of(folders: list[Path], marks: dict[str, str]) -> list[tuple[np.ndarray, np.ndarray]]:
    found = []
    for folder in folders:
        name = folder.parent.name if folder.name == "images" else folder.name
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        for file in files:
            mark = marks.get(f"{name}/{file.name}", "")
            if hashlib.sha256(file.name.encode()).digest()[0] % 2 or mark == "lettered":
                continue
            pixels = decode_image(file.read_bytes())
            value = pixels if pixels.ndim == 2 else pixels.max(axis=2)
            repeated = 3 if max(value.shape) > 100 else 1  # the small ones say less
            repeated *= ALARMING if mark == "alarming" else 1
            found += [(value, np.zeros(value.shape, dtype=bool))] * repeated
    return found


def make_chunk(task: tuple[list[Path], dict[str, str], Path, int]) -> None:
    folders, marks, work, chunk = task
    file = work / f"crops-{chunk:04d}.npz"
    if file.exists():
        return
    global _CROPS
    if "_CROPS" not in globals():
        _CROPS = Crops(pictures_of(folders, marks))
    made = [_CROPS.make(number) for number in range(chunk * CHUNK, (chunk + 1) * CHUNK)]
    np.savez(file, crops=np.stack([c for c, _ in made]), labels=np.stack([y for _, y in made]))


def train(work: Path, steps: int, minutes: float) -> None:
    begun = time.monotonic()
    net = Finder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    state_file, step = work / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    files = sorted(work.glob("crops-*.npz"))
    loaded = [np.load(file) for file in files]
    crops = np.concatenate([part["crops"] for part in loaded])
    labels = np.concatenate([part["labels"] for part in loaded])
    crops, labels, held, held_labels = (
        crops[:-CHUNK],
        labels[:-CHUNK],
        crops[-CHUNK:],
        labels[-CHUNK:],
    )
    losses = []
    while step < steps and time.monotonic() - begun < 60 * minutes:
        generator = np.random.default_rng(step)
        chosen = generator.integers(len(crops), size=BATCH)
        x = torch.from_numpy(crops[chosen]).float()[:, None] / 255
        y = torch.from_numpy(labels[chosen])
        if step == steps * 2 // 3 and not net.rounded:
            net.scale_into_bits(x)
            optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        share = step / steps
        rate = 2e-3 * min(1, step / 200) * (0.5 + 0.5 * np.cos(np.pi * share)) + 1e-5
        for group in optimiser.param_groups:
            group["lr"] = float(rate)
        loss = loss_of(net(x.to(memory_format=torch.channels_last)), y)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        step += 1
        if step % 200 == 0:
            print(step, round(float(np.mean(losses[-200:])), 4), flush=True)
    state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    torch.save(state, state_file)
    with torch.no_grad():
        x = torch.from_numpy(held).float()[:, None] / 255
        logits = torch.cat([net(part) for part in x.split(256)]).numpy()
    text, plain = logits[held_labels == TEXT], logits[held_labels == NO_TEXT]
    for level in (0.5, 0.9, 0.99):
        at = np.log(level / (1 - level))
        print(f"at {level}: text cells {np.mean(text > at):.4f}, others {np.mean(plain > at):.6f}")
    print("finished" if step >= steps else f"stopped at step {step}")


def write(work: Path, file: Path) -> None:
    """Write the weights as the finder reads them: whole numbers, and a scale for each channel."""
    net = Finder()
    net.load_state_dict(torch.load(work / "state.pt", weights_only=True)["net"])
    if not net.rounded:
        raise SystemExit("the training is not finished: its weights are not rounded yet")
    held: dict[str, np.ndarray] = {
        "strides": np.array([layer[1] for layer in LAYERS]),
        "dilations": np.array([layer[2] for layer in LAYERS]),
    }
    for number, conv in enumerate(net.convs):
        weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
        step = np.abs(weight).max(axis=(1, 2, 3)) / 127
        last = number == len(LAYERS) - 1
        held[f"weight_{number}"] = np.rint(weight / step[:, None, None, None]).astype(np.int8)
        held[f"scale_{number}"] = (step / 255 if last else step).astype(np.float32)
        held[f"offset_{number}"] = (bias if last else 255 * bias).astype(np.float32)
        reach = np.abs(held[f"weight_{number}"].astype(np.int64)).sum(axis=(1, 2, 3)).max() * 255
        assert reach < 2**24, "sums would not be exact in float32"
    np.savez_compressed(file, **held)  # type: ignore[arg-type]
    print(f"{file}: {file.stat().st_size} bytes")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="folder for crops and states")
    parser.add_argument("--crops", nargs="+", type=Path, help="make crops from these folders")
    parser.add_argument("--number", type=int, default=60_000)
    parser.add_argument("--marked", type=Path, help="pictures to leave out or to use more often")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--write", type=Path, help="write the weights to this file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.crops:
        lines = given.marked.read_text().splitlines() if given.marked else []
        marks = {name: mark for mark, name in (line.split(" ", 1) for line in lines)}
        tasks = [(given.crops, marks, given.work, n) for n in range(given.number // CHUNK)]
        with ProcessPoolExecutor(1) as pool:
            list(pool.map(make_chunk, tasks))
    if given.train:
        train(given.work, given.steps, given.minutes)
    if given.write:
        write(given.work, given.write)


if __name__ == "__main__":
    main()
