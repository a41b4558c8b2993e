"""The whole objective against a reference in numpy, and what a run of it must keep to."""

import itertools
import json

import numpy as np
import pytest
import torch

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.errors import UsageError

SIZE, BATCH = 64, 3


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def cosine(a, b):
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def patchify(x):
    return np.stack(
        [
            x[:, :, row : row + 16, column : column + 16].transpose(0, 2, 3, 1).reshape(len(x), -1)
            for row in range(0, SIZE, 16)
            for column in range(0, SIZE, 16)
        ],
        axis=1,
    )


def unpatchify(patches):
    image = np.zeros((3, SIZE, SIZE))
    for token, patch in enumerate(patches):
        row, column = token // 4 * 16, token % 4 * 16
        square = patch.reshape(16, 16, 3).transpose(2, 0, 1)
        image[:, row : row + 16, column : column + 16] = square
    return image


def reference_views(batch, views):
    """The views, from their definitions: a list with one array per view."""
    pixels, masks = batch
    x = pixels.numpy()
    hidden, passing = masks.spatial.numpy()[:, None], masks.frequency.numpy()[:, None]

    def fill(image):
        return np.where(hidden, image.mean(axis=(2, 3), keepdims=True), image)

    def stop(image):
        spectrum = np.fft.fftshift(np.fft.fft2(image), axes=(-2, -1)) * passing
        return np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))))

    return {"separated": [fill(x), stop(x)], "spatial": [fill(x)], "joint": [stop(fill(x))]}[views]


def reference_reconstruction(settings, predictions, batch, constant=None):
    """L_rec of each image, from the predicted patches of each view.

    What carries no gradient (the sign of an absolute error, the focal weight) is taken from
    ``constant`` where it is there, and else put there.
    """
    constant = {} if constant is None else constant
    pixels, hidden, passing = batch[0].numpy(), batch[1].spatial.numpy(), batch[1].frequency.numpy()
    spatial, frequency = predictions[0], predictions[-1]
    target = patchify(pixels)
    mean, deviation = target.mean(-1, keepdims=True), 1.0
    if settings.reconstruction.pixel == "normalised-mse":
        deviation = np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        error = np.square(spatial - (target - mean) / deviation)
        frequency = frequency * deviation + mean
    elif settings.reconstruction.pixel == "mse":
        error = np.square(spatial - target)
    else:
        error = (spatial - target) * constant.setdefault("sign", np.sign(spatial - target))
    inside = patchify(np.repeat(hidden[:, None], 3, axis=1))
    losses = []
    for index in range(len(pixels)):
        loss = error[index][inside[index]].mean()
        difference = unpatchify(frequency[index]) - pixels[index]
        distance = np.abs(np.fft.fftshift(np.fft.fft2(difference, norm="ortho"), axes=(-2, -1)))
        if settings.views != "spatial":
            if settings.reconstruction.frequency == "focal":
                weight = np.log1p(distance)
                weight /= weight.max(axis=(1, 2), keepdims=True)
                weight = constant.setdefault(f"focal {index}", weight)
                share = (weight * distance**2).mean()
            else:
                share = distance[:, ~passing[index]].mean()
            loss += settings.reconstruction.frequency_weight * share
        losses.append(loss)
    return np.array(losses)


def raw_attention(encoder, tokens, layer):
    """Queries, keys, values (B, heads, N, d) and position bias of a block, from its weights."""
    block = encoder.backbone.blocks[layer - 1]
    x = layer_norm_affine(tokens, block.norm1)
    attention = block.attn
    weight = attention.qkv.weight.detach().numpy()
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.detach().numpy()
    else:
        zero = np.zeros(len(attention.q_bias))
        bias = np.concatenate([attention.q_bias.detach(), zero, attention.v_bias.detach()])
    joint = x @ weight.T + bias
    heads = attention.num_heads
    q, k, v = np.split(joint, 3, axis=-1)

    def by_head(part):
        return part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    position = 0.0
    if getattr(attention, "relative_position_bias_table", None) is not None:
        table = attention.relative_position_bias_table.detach().numpy()
        position = table[attention.relative_position_index.numpy()].transpose(2, 0, 1)
    return by_head(q), by_head(k), by_head(v), position


def layer_norm_affine(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def resplit(part, heads):
    joined = part.transpose(0, 2, 1, 3).reshape(part.shape[0], part.shape[2], -1)
    return joined.reshape(*joined.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def divergence(own, own_other, wanted, wanted_other):
    p = softmax(wanted @ wanted_other.swapaxes(-1, -2) / np.sqrt(wanted.shape[-1]))
    q = softmax(own @ own_other.swapaxes(-1, -2) / np.sqrt(own.shape[-1]))
    return (p * np.log(p / q)).sum(-1).mean(1)


def reference_weight(c, weighting):
    if weighting == "linear":
        return (1 + c) / 2
    if weighting == "relu":
        return np.maximum(c, 0)
    if weighting == "softmax":
        raised = np.exp(c / 0.1)
        return raised / raised.sum() * c.size
    if weighting == "batch-normalised":
        return (c - c.min()) / (c.max() - c.min())
    return np.ones_like(c)


def reference(objective, batch, constant=None):
    """Loss, L_rec, L_dis, weight and consistency, in numpy from the raw tokens of both networks.

    On the first batch a running mean is that of the batch.
    """
    constant = {} if constant is None else constant
    settings, student, teacher = objective.settings, objective.student, objective.teacher
    views = [torch.tensor(view) for view in reference_views(batch, settings.views)]
    every = tuple(range(1, 7))
    with torch.no_grad():
        owns = [student(view, every) for view in views]
        shown = [batch[0]] * len(views) if settings.teacher_sees == "image" else views
        wanteds = [teacher(view, every) for view in shown]
    reconstruction = reference_reconstruction(
        settings, [own.prediction.numpy() for own in owns], batch, constant
    )
    token_layers, features = [], []
    blocks = (settings.layers or (2, 4, 6), settings.teacher_layers or (2, 4, 6))
    matched = zip(objective.adapters, *blocks, strict=True) if settings.token_weight else ()
    for adapter, layer, other in matched:
        targets = [layer_norm(w.intermediate[other - 1][:, 1:].numpy()) for w in wanteds]
        features.append(targets)
        if settings.target == "standardised":
            both = np.concatenate(targets).reshape(-1, targets[0].shape[-1])
            targets = [(t - both.mean(0)) / np.sqrt(np.maximum(both.var(0), 1e-4)) for t in targets]
        total = 0.0
        for own, t in zip(owns, targets, strict=True):
            h = layer_norm(own.encoded.intermediate[layer - 1][:, 1:].numpy())
            p = h @ adapter.weight.detach().numpy().T
            mse = settings.distance == "mse"
            total = total + (((p - t) ** 2).mean(-1) if mse else 1 - cosine(p, t))
        token_layers.append(total)
    if settings.consistency == "last":
        token = settings.level == "token"
        features = [[(w.tokens[:, 1:] if token else w.pooled).numpy() for w in wanteds]]
    elif settings.level == "sample":
        features = [[view.mean(1) for view in layer] for layer in features]
    consistency = []
    for layer in features:
        if len(layer) == 1:
            consistency.append(np.ones(BATCH))
            continue
        mean = 0.0, 0.0
        if settings.centring:
            parts = layer if settings.centre == "view" else [np.concatenate(layer)] * 2
            mean = [part.reshape(-1, part.shape[-1]).mean(0) for part in parts]
        consistency.append(cosine(layer[0] - mean[0], layer[1] - mean[1]))
    weight = [reference_weight(c, settings.weighting) for c in consistency]
    weight = constant.setdefault("weight", weight)
    rows = [w if w.ndim == 2 else w[:, None] for w in weight]
    plain, weighted = np.zeros(BATCH), np.zeros(BATCH)
    averages = settings.reduction == "mean"
    share = settings.token_weight / (len(token_layers) * len(views) if averages else 1)
    for index, layer in enumerate(token_layers):
        own = rows[index] if len(rows) > 1 else rows[0]
        plain = plain + share * layer.mean(1)
        weighted = weighted + share * (own * layer).mean(1)
    mean_weight = np.mean(rows, axis=0)
    if settings.level == "token" and mean_weight.shape[1] > 1:  # the class token: its image's
        prefix = mean_weight.mean(1, keepdims=True)
        mean_weight = np.concatenate([prefix, mean_weight], axis=1)
    if settings.attention_weight or settings.relation_weight:
        logits, relations = 0.0, 0.0
        blocks = enumerate(settings.attention_layers or (6,))
        pairs = itertools.product(zip(owns, wanteds, strict=True), blocks)
        for (own, wanted), (index, block) in pairs:
            other = (settings.attention_teacher_layers or (6,))[index]
            entering = own.encoded.intermediate[block - 2].numpy()
            q, k, v, bias = raw_attention(student.encoder, entering, block)
            entering = wanted.intermediate[other - 2].numpy()
            tq, tk, tv, tbias = raw_attention(teacher, entering, other)
            a = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + bias
            b = tq @ tk.swapaxes(-1, -2) / np.sqrt(tq.shape[-1]) + tbias
            if settings.attention_weight:
                adapter = objective.attention.head_adapters[index]
                mixing = adapter.weight.detach().numpy()[:, :, 0, 0]
                logits = logits + ((np.einsum("oh,bhij->boij", mixing, a) - b) ** 2).mean((1, 3))
            heads = tq.shape[1]
            q, k, v = (resplit(part, heads) for part in (q, k, v))
            relations = relations + divergence(q, k, tq, tk) + divergence(v, v, tv, tv)
        for share, term in (
            (settings.attention_weight, logits),
            (settings.relation_weight, relations),
        ):
            if share:
                attended = len(settings.attention_layers or (6,)) * len(views)
                share = share / attended if averages else share
                plain = plain + share * term.mean(1)
                weighted = weighted + share * (mean_weight * term).mean(1)
    per_image = np.mean([row.mean(1) for row in rows], axis=0)
    kept = 1 - per_image if settings.combination == "balance" else 1.0
    loss = (kept * reconstruction + settings.beta * weighted).mean()
    agreed = np.mean([c.reshape(BATCH, -1).mean(1) for c in consistency], axis=0)
    return loss, reconstruction, plain, per_image, agreed


VARIANTS = [
    {"preset": "tinyusfm"},
    {"preset": "fixed-weight"},
    {"target": "layer-norm"},
    {"preset": "fixed-weight", "beta": 0.5},
    {"preset": "mae-lite"},
    {"weighting": "relu", "distance": "cosine", "level": "token"},
    {"weighting": "softmax", "centring": False},
    {"weighting": "softmax", "level": "token", "beta": 2.0, "consistency": "each"},
    {"weighting": "batch-normalised", "combination": "balance"},
    {"weighting": "batch-normalised", "consistency": "each"},
    {"weighting": "linear", "combination": "balance", "level": "token", "beta": 0.3},
    {"attention_weight": 0.5, "relation_weight": 2.0},
    {"attention_weight": 1.0, "level": "token", "token_weight": 0.3},
    {"relation_weight": 1.0, "token_weight": 0.0},
    {"reconstruction": {"pixel": "mse", "frequency": "focal", "frequency_weight": 0.3}},
    {"views": "joint", "weighting": "fixed", "token_weight": 2.0},
    {"centre": "view", "reduction": "mean", "beta": 3.0},
    {"centre": "view", "level": "token", "weighting": "batch-normalised"},
    {
        "views": "spatial",
        "weighting": "fixed",
        "reduction": "mean",
        "layers": [2, 6],
        "teacher_layers": [3, 6],
    },
    {"layers": [5, 1], "teacher_layers": [6, 2], "consistency": "each"},
    {"preset": "fixed-weight", "teacher_sees": "image", "relation_weight": 0.5},
    {
        "attention_weight": 0.5,
        "relation_weight": 2.0,
        "attention_layers": [3, 6],
        "attention_teacher_layers": [2, 6],
        "consistency": "each",
        "level": "token",
        "centre": "view",
        "reduction": "mean",
    },
]


def settings_of(variant):
    return ObjectiveSettings.model_validate_json(json.dumps(variant))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_objective_is_the_float64_reference(variant, objective_of, batch_of, lose):
    objective, batch = objective_of(settings_of(variant)), batch_of()
    output = lose(objective, batch)
    loss, reconstruction, plain, weight, consistency = reference(objective, batch)
    assert output.loss.item() == pytest.approx(loss, rel=1e-6)
    near = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(output.reconstruction.numpy(), reconstruction, **near)
    np.testing.assert_allclose(output.distillation.numpy(), plain, **near)
    np.testing.assert_allclose(output.weight.numpy(), weight, **near)
    np.testing.assert_allclose(output.consistency.numpy(), consistency, **near)
    assert output.parts["loss"] == output.loss


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_gradients_are_those_of_the_float64_reference(variant, objective_of, batch_of, lose):
    """Slopes along a random direction of all parameters, what is detached held constant."""
    objective, batch = objective_of(settings_of(variant)), batch_of()
    lose(objective, batch).loss.backward()
    constant = {}
    reference(objective, batch, constant)
    trained = [p for p in objective.parameters() if p.grad is not None]
    generator = torch.Generator().manual_seed(1)
    directions = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().abs().mean()
        for p in trained
    ]
    slope = sum((p.grad * d).sum().item() for p, d in zip(trained, directions, strict=True))

    def at(step):
        with torch.no_grad():
            for p, d in zip(trained, directions, strict=True):
                p.add_(step * d)
            found = reference(objective, batch, constant)[0]
            for p, d in zip(trained, directions, strict=True):
                p.sub_(step * d)
        return found

    # Fourth order, so that a step large against rounding is still exact enough.
    h = 2e-5
    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(expected, rel=1e-6)
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_every_student_parameter_but_the_pooling_is_trained(objective_of, batch_of, lose):
    objective = objective_of()
    lose(objective, batch_of()).loss.backward()
    idle = {name for name, p in objective.named_parameters() if p.grad is None}
    assert all("fc_norm" in name for name in idle)


@pytest.mark.parametrize("centring", [True, False])
@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("size", [1, 4])
def test_identical_views_are_consistent(centring, level, size, objective_of, batch_of):
    objective = objective_of(centring=centring, level=level).float()
    pixels, masks = batch_of(dtype=torch.float32, size=size)
    spatial_view = objective.views(pixels, masks)[:size]
    for _ in range(2):
        output = objective(pixels, torch.cat([spatial_view, spatial_view]), masks)
        torch.testing.assert_close(output.consistency, torch.ones(size), atol=1e-6, rtol=0)
        torch.testing.assert_close(output.weight, torch.ones(size), atol=1e-6, rtol=0)


def test_a_fixed_weight_is_plain_hidden_distillation(objective_of, batch_of, lose):
    objective, batch = objective_of(preset="fixed-weight"), batch_of()
    output = lose(objective, batch)
    expected = (output.reconstruction + output.distillation).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.parts["weight"].std() == 0


def test_without_a_teacher_only_the_reconstruction_counts(objective_of, batch_of, lose):
    student = objective_of().student
    objective = DistillationObjective(student, None, ObjectiveSettings(preset="mim-only"))
    batch = batch_of()
    output = lose(objective, batch)
    with torch.no_grad():
        made = [
            student(torch.tensor(view)).prediction.numpy()
            for view in reference_views(batch, "separated")
        ]
    expected = reference_reconstruction(objective.settings, made, batch).mean()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.weight is output.consistency is output.distillation is None
    assert {name.split(".")[0] for name in objective.state_dict()} == {"student"}
    with pytest.raises(UsageError, match="mim-only"):
        DistillationObjective(student, None, ObjectiveSettings())


def test_the_teacher_stays_outside(objective_of):
    objective = objective_of()
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert names == {"student", "adapters", "mean_feature", "token_moments"}
    owned = {id(parameter) for parameter in objective.parameters()}
    objective.train()
    for parameter in objective.teacher.parameters():
        assert id(parameter) not in owned
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float64  # it followed .double()
    assert not objective.teacher.training


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[6], VARIANTS[7], VARIANTS[11]], ids=str)
def test_parts_of_a_batch_together_are_the_batch(variant, objective_of, batch_of, lose):
    """Running means and weights see the whole batch, however it is cut."""
    whole, parted = (objective_of(settings_of(variant)) for _ in range(2))
    pixels, masks = batch_of()
    lose(whole, (pixels, masks)).loss.backward()
    cuts = [slice(0, 1), slice(1, 3)]
    pieces = [(pixels[c], type(masks)(*(m[c] for m in masks))) for c in cuts]
    views = [parted.views(*piece) for piece in pieces]
    shown = [pixels for pixels, _ in pieces]
    signals = parted.observe(list(map(parted.ask_teacher, shown, views)))
    for piece, view, signal in zip(pieces, views, signals, strict=True):
        share = len(piece[0]) / len(pixels)
        (share * parted(piece[0], view, piece[1], signal).loss).backward()
    for (name, one), other in zip(whole.named_parameters(), parted.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)
    for one, other in zip(whole.buffers(), parted.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_layers_that_do_not_match_are_refused(objective_of):
    with pytest.raises(UsageError, match="blocks 1 to 6"):
        objective_of(layers=(2, 4, 12))
    with pytest.raises(UsageError, match="equally many"):
        objective_of(layers=(2, 6))
