"""A plain PyTorch loop with a DataLoader that distils as `peers_distill.py` asks; run by it.

One view of an image; a linear layer maps the student's last tokens, resampled to the teacher's
grid, to the teacher's last tokens, both normalised; AdamW, clipped gradients; the student is saved.
"""

import json
import sys
import time

import timm
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Images(Dataset):
    """Random crops of image files, normalised as ImageNet's."""

    def __init__(self, files: list[str], side: int) -> None:
        """Take the files and the side of a crop in pixels."""
        self.files = files
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(side, scale=(0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, deviation),
            ]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one crop, of shape (3, side, side)."""
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def main() -> None:
    """Train, save, and print the images per second after the first two steps."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    side = job["side"]
    teacher = timm.create_model(job["teacher"], num_classes=0, img_size=side)
    saved = torch.load(job["weights"], weights_only=True)
    teacher.load_state_dict(_resized(saved, teacher))
    teacher.eval().requires_grad_(False)
    student = timm.create_model(job["student"], num_classes=0, img_size=side)
    head = torch.nn.Linear(student.num_features, teacher.num_features)
    trained = [*student.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)
    loader = DataLoader(
        Images(job["files"], side), job["batch"], shuffle=True, drop_last=True, num_workers=1
    )
    step, warm = 0, 0.0
    while step < job["steps"]:
        for pixels in loader:
            with torch.no_grad():
                target = teacher.forward_features(pixels)[:, teacher.num_prefix_tokens :]
                target = functional.layer_norm(target, target.shape[-1:])
            tokens = student.forward_features(pixels)[:, student.num_prefix_tokens :]
            made = _resampled(head(tokens), target.shape[1])
            loss = functional.mse_loss(made, target)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            step += 1
            if step == 2:
                warm = time.perf_counter()
            if step == job["steps"]:
                break
    rate = (step - 2) * job["batch"] / (time.perf_counter() - warm)
    torch.save(student.state_dict(), f"{job['out']}.pt")
    print(json.dumps({"images_per_second": rate}))


def _resized(saved: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Resample the positions of saved weights to the grid of a model, as timm does."""
    from timm.layers import resample_abs_pos_embed

    grid, prefix = model.patch_embed.grid_size, model.num_prefix_tokens
    weights = {name: value for name, value in saved.items() if name != "mask_token"}
    weights["pos_embed"] = resample_abs_pos_embed(saved["pos_embed"], list(grid), None, prefix)
    return weights


def _resampled(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Resample tokens of a square grid, of shape (batch, own, dim), to another such grid."""
    own, other = round(tokens.shape[1] ** 0.5), round(count**0.5)
    grid = tokens.transpose(1, 2).unflatten(2, (own, own))
    return functional.interpolate(grid, (other, other), mode="bilinear").flatten(2).transpose(1, 2)


if __name__ == "__main__":
    main()
