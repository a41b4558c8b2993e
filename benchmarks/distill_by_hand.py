"""Distillation as a plain PyTorch loop, of the same mathematics as the real one.

`distill_throughput.py` sets it beside the loop that is in use.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from echostill.platform.seeding import unit_uniforms
from echostill.platform.training.optimisation import parameter_groups
from echostill.platform.training.sampling import epoch_permutation


def hand_written(task, images, settings, seed, steps):
    """Plain PyTorch, top to bottom. Returns the losses; ``task`` gives the start alone."""
    objective = task.objective
    student, teacher = objective.student, objective.teacher
    size, patch = task.image_size, student.patch_size
    matching = objective.terms["tokens"]
    adapters, layers, teacher_layers = matching.adapters, matching.blocks, matching.teacher_blocks
    spatial, frequency = task.masks.spatial, task.masks.frequency
    distance = torch.arange(size) - size // 2
    radius = (distance[:, None] ** 2 + distance[None, :] ** 2).float().sqrt()
    rings = [
        (radius > low) & (radius <= high)
        for low, high in zip(frequency.radii, frequency.radii[1:], strict=False)
    ]
    rings = torch.fft.ifftshift(torch.stack(rings), dim=(-2, -1))
    optimiser = torch.optim.AdamW(
        parameter_groups(task, settings.weight_decay), lr=1.0, betas=settings.betas
    )
    trained = [p for p in task.parameters() if p.requires_grad]
    running = {"feature": [0.0, 0.0], **{place: [0.0, 0.0] for place in range(len(layers))}}
    momentum = objective.settings.momentum

    def remember(name, value):
        total, weight = running[name]
        total = total * momentum + value * (1 - momentum)
        weight = weight * momentum + (1 - momentum)
        running[name] = [total, weight]
        return total / weight

    losses = []
    for step in range(steps):
        positions = np.arange(step * settings.batch_size, (step + 1) * settings.batch_size)
        rows, epochs = [], []
        for position in positions:
            epoch, offset = divmod(int(position), len(images))
            rows.append(order_of(seed, epoch, len(images))[offset])
            epochs.append(epoch)
        ids = [images.image_ids[row] for row in rows]

        def numbers(view, count, ids=ids, epochs=epochs):
            return np.concatenate(
                [unit_uniforms(seed, e, [i], view, count) for i, e in zip(ids, epochs, strict=True)]
            )

        pixels = torch.from_numpy(images.pixels[rows]).float().div_(255)
        u = numbers("crop", 5)
        area = 0.4 + 0.6 * u[:, 0]
        low, high = math.log(0.75), math.log(4 / 3)
        ratio = np.exp(low + (high - low) * u[:, 1])
        width = np.minimum(np.sqrt(area * ratio), 1)
        height = np.minimum(np.sqrt(area / ratio), 1)
        theta = np.zeros((len(rows), 2, 3))
        theta[:, 0, 0] = np.where(u[:, 4] < 0.5, -width, width)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = 2 * u[:, 2] * (1 - width) + width - 1
        theta[:, 1, 2] = 2 * u[:, 3] * (1 - height) + height - 1
        grid = functional.affine_grid(
            torch.from_numpy(theta).float(), [len(rows), 1, size, size], align_corners=False
        )
        pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        pixels = pixels.clamp_(0, 1).expand(-1, 3, -1, -1)

        hidden = torch.zeros(len(rows), spatial.count, dtype=torch.bool)
        chosen = np.argsort(numbers("spatial mask 0", spatial.count), axis=1, kind="stable")
        hidden.scatter_(1, torch.from_numpy(chosen[:, : spatial.hidden].copy()), True)
        hidden = hidden.view(-1, spatial.side, spatial.side)
        hidden = hidden.repeat_interleave(spatial.block_size, 1)
        hidden = hidden.repeat_interleave(spatial.block_size, 2)
        chosen = np.argsort(numbers("frequency mask 0", frequency.count), axis=1, kind="stable")
        stopped = rings[torch.from_numpy(chosen[:, : frequency.stopped].copy())].any(dim=1)[:, None]

        filled = torch.where(hidden[:, None], pixels.mean(dim=(2, 3), keepdim=True), pixels)
        ringed = torch.fft.ifft2(torch.fft.fft2(pixels) * ~stopped).abs()
        views = torch.cat([filled, ringed])

        with torch.no_grad():
            wanted = teacher(views, teacher_layers)
            mean = remember("feature", wanted.pooled.mean(0))
            first, second = (wanted.pooled - mean).chunk(2)
            weight = (1 + functional.cosine_similarity(first, second)) / 2
            targets = []
            for place, tokens in enumerate(wanted.intermediate):
                tokens = functional.layer_norm(tokens[:, 1:], tokens.shape[-1:])
                flat = tokens.flatten(0, 1)
                moments = torch.cat([flat.mean(0), flat.square().mean(0)])
                mean, square = remember(place, moments).chunk(2)
                targets.append((tokens - mean) / (square - mean.square()).clamp_min(1e-4).sqrt())

        made = student(views, layers)
        first, second = made.prediction.chunk(2)
        target = fold(pixels, patch)
        inside = fold(hidden[:, None].expand(-1, 3, -1, -1), patch)
        error = (first - target).abs() * inside
        spatial_loss = error.sum((1, 2)) / inside.sum((1, 2))
        difference = torch.fft.fft2(unfold(second, patch, size) - pixels, norm="ortho").abs()
        frequency_loss = (difference * stopped).sum((1, 2, 3)) / (3 * stopped.sum((1, 2, 3)))
        matched = 0.0
        for adapter, tokens, target in zip(
            adapters, made.encoded.intermediate, targets, strict=True
        ):
            own = adapter(functional.layer_norm(tokens[:, 1:], tokens.shape[-1:]))
            matched = matched + (own - target).square().mean(dim=(1, 2))
        first, second = matched.chunk(2)
        loss = (spatial_loss + frequency_loss + weight * (first + second)).mean()

        for group in optimiser.param_groups:
            group["lr"] = settings.rate_at(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


ORDERS = {}


def order_of(seed, epoch, count):
    if (epoch, count) not in ORDERS:
        ORDERS[epoch, count] = epoch_permutation(seed, epoch, count)
    return ORDERS[epoch, count]


def fold(images, patch):
    columns = functional.pixel_unshuffle(images.float(), patch).flatten(2).transpose(1, 2)
    return columns.unflatten(2, (3, patch * patch)).transpose(2, 3).flatten(2)


def unfold(patches, patch, size):
    columns = patches.unflatten(2, (patch * patch, 3)).transpose(2, 3).flatten(2)
    columns = columns.transpose(1, 2).unflatten(2, (size // patch, size // patch))
    return functional.pixel_shuffle(columns, patch)
