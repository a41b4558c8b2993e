import numpy as np
import pytest
import torch
from pydantic import ValidationError

from echostill.distill.objective import (
    DistillationObjective,
    ObjectiveSettings,
    RunningMean,
    consistency_of,
    consistency_weight,
    token_distance,
)
from echostill.platform.errors import UsageError
from echostill.platform.masks import (
    MaskSettings,
    apply_frequency,
    apply_spatial,
    draw_masks,
)
from echostill.platform.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder

SIZE, BATCH = 64, 3


def batch_of(seed=0, dtype=torch.float64, size=BATCH):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(size, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    ids = [f"image {index}" for index in range(size)]
    masks = draw_masks(MaskSettings().scaled_to(SIZE), seed, np.zeros(size, int), ids)
    return (
        pixels,
        apply_spatial(pixels, masks.spatial),
        apply_frequency(pixels, masks.frequency),
        masks.spatial,
        masks.frequency,
    )


def objective_of(**settings):
    torch.manual_seed(0)
    student = MaskedImageModel(
        create_encoder("tinyusfm-micro", image_size=SIZE), DecoderSettings(dim=24)
    )
    teacher = create_encoder("usfm-micro", image_size=SIZE)
    with torch.no_grad():  # an untrained teacher sees little difference between images
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return DistillationObjective(student, teacher, ObjectiveSettings(**settings)).double()


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def cosine(a, b):
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def patchify(x):
    return np.stack(
        [
            x[:, :, row : row + 16, column : column + 16].transpose(0, 2, 3, 1).reshape(len(x), -1)
            for row in range(0, SIZE, 16)
            for column in range(0, SIZE, 16)
        ],
        axis=1,
    )


def reference_reconstruction(objective, batch):
    pixels, spatial_view, frequency_view, hidden, passing = (b.numpy() for b in batch)
    with torch.no_grad():
        spatial = objective.student(torch.tensor(spatial_view)).prediction.numpy()
        frequency = objective.student(torch.tensor(frequency_view)).prediction.numpy()
    error = np.abs(spatial - patchify(pixels))
    inside = patchify(np.repeat(hidden[:, None], 3, axis=1))
    losses = []
    for index in range(len(pixels)):
        image = np.zeros((3, SIZE, SIZE))
        for token, patch in enumerate(frequency[index]):
            row, column = token // 4 * 16, token % 4 * 16
            image[:, row : row + 16, column : column + 16] = patch.reshape(16, 16, 3).transpose(
                2, 0, 1
            )
        spectrum = np.fft.fft2(image, norm="ortho") - np.fft.fft2(pixels[index], norm="ortho")
        distance = np.abs(np.fft.fftshift(spectrum, axes=(-2, -1)))
        losses.append(error[index][inside[index]].mean() + distance[:, ~passing[index]].mean())
    return np.array(losses)


def reference_distillation(objective, batch, distance, mean, level):
    """Unweighted distances per token (B, N) and consistency, from raw tokens in numpy."""
    student, teacher = objective.student.encoder, objective.teacher
    total, features = 0.0, []
    with torch.no_grad():
        owns = [student(view, (2, 4, 6)) for view in batch[1:3]]
        wanteds = [teacher(view, (2, 4, 6)) for view in batch[1:3]]
    for index, adapter in enumerate(objective.adapters):
        targets = [layer_norm(wanted.intermediate[index][:, 1:].numpy()) for wanted in wanteds]
        if objective.settings.target == "standardised":  # on the first batch: its own moments
            both = np.concatenate(targets).reshape(-1, targets[0].shape[-1])
            targets = [(t - both.mean(0)) / np.sqrt(np.maximum(both.var(0), 1e-4)) for t in targets]
        for own, t in zip(owns, targets, strict=True):
            h = layer_norm(own.intermediate[index][:, 1:].numpy())
            p = h @ adapter.weight.detach().numpy().T
            total = total + (((p - t) ** 2).mean(-1) if distance == "mse" else 1 - cosine(p, t))
    for wanted in wanteds:
        tokens = wanted.tokens[:, 1:].numpy()
        features.append(wanted.pooled.numpy() if level == "sample" else tokens)
    if mean == "batch":
        mean = np.concatenate(features).reshape(-1, features[0].shape[-1]).mean(axis=0)
    return total, cosine(features[0] - mean, features[1] - mean)


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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "layer-norm"},
        {"preset": "fixed-weight", "beta": 0.5},
        {"weighting": "relu", "distance": "cosine", "level": "token"},
        {"weighting": "softmax", "centring": False},
        {"weighting": "softmax", "level": "token", "beta": 2.0},
        {"weighting": "batch-normalised", "combination": "balance"},
        {"weighting": "linear", "combination": "balance", "level": "token", "beta": 0.3},
    ],
)
def test_objective_is_the_float64_reference(settings):
    objective, batch = objective_of(**settings), batch_of()
    chosen = objective.settings
    output = objective(*batch)
    reconstruction = reference_reconstruction(objective, batch)
    distances, consistency = reference_distillation(
        objective, batch, chosen.distance, "batch" if chosen.centring else 0.0, chosen.level
    )
    weight = reference_weight(consistency, chosen.weighting)
    per_token = weight if weight.ndim == 2 else weight[:, None]
    weighted = chosen.beta * (per_token * distances).mean(axis=1)
    kept = 1 - per_token.mean(axis=1) if chosen.combination == "balance" else 1.0
    expected = (kept * reconstruction + weighted).mean()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    near = {"rtol": 1e-6, "atol": 1e-9}
    np.testing.assert_allclose(output.reconstruction.numpy(), reconstruction, **near)
    np.testing.assert_allclose(output.distillation.numpy(), distances.mean(axis=1), **near)
    np.testing.assert_allclose(output.weight.numpy(), per_token.mean(axis=1), **near)
    per_image = consistency.reshape(BATCH, -1).mean(axis=1)
    np.testing.assert_allclose(output.consistency.numpy(), per_image, **near)
    assert output.parts["weight_std"].item() == pytest.approx(per_token.mean(axis=1).std())
    assert output.parts["consistency_mean"].item() == pytest.approx(per_image.mean())
    assert output.parts["loss"] == output.loss


def test_gradient_is_that_of_a_constant_weight():
    """The weight is detached: finite differences agree once it is frozen at its value."""
    objective, batch = objective_of(momentum=0.0), batch_of()
    output = objective(*batch)
    output.loss.backward()
    adapter = objective.adapters[1].weight
    direction = torch.randn_like(adapter)
    slope = (adapter.grad * direction).sum().item()

    def frozen(step):
        with torch.no_grad():
            adapter.add_(step * direction)
            later = objective(*batch)
            adapter.sub_(step * direction)
        return (later.reconstruction + output.weight * later.distillation).mean().item()

    assert slope == pytest.approx((frozen(1e-5) - frozen(-1e-5)) / 2e-5, rel=1e-6)
    assert output.weight.grad_fn is None
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_every_student_parameter_but_the_pooling_is_trained():
    objective = objective_of()
    objective(*batch_of()).loss.backward()
    idle = {name for name, p in objective.named_parameters() if p.grad is None}
    assert all("fc_norm" in name for name in idle)


@pytest.mark.parametrize("centring", [True, False])
@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("size", [1, 4])
def test_identical_views_are_consistent(centring, level, size):
    objective = objective_of(centring=centring, level=level).float()
    pixels, spatial_view, _, hidden, passing = batch_of(dtype=torch.float32, size=size)
    for _ in range(2):
        output = objective(pixels, spatial_view, spatial_view, hidden, passing)
        torch.testing.assert_close(output.consistency, torch.ones(size), atol=1e-6, rtol=0)
        torch.testing.assert_close(output.weight, torch.ones(size), atol=1e-6, rtol=0)


def test_a_fixed_weight_is_plain_hidden_distillation():
    objective, batch = objective_of(preset="fixed-weight"), batch_of()
    output = objective(*batch)
    expected = (output.reconstruction + output.distillation).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.parts["weight_std"] == 0


def test_without_a_teacher_only_the_reconstruction_counts():
    student = objective_of().student
    objective = DistillationObjective(student, None, ObjectiveSettings(preset="mim-only"))
    batch = batch_of()
    output = objective(*batch)
    expected = reference_reconstruction(objective, batch).mean()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.weight is output.consistency is output.distillation is None
    assert {name.split(".")[0] for name in objective.state_dict()} == {"student"}
    with pytest.raises(UsageError, match="mim-only"):
        DistillationObjective(student, None, ObjectiveSettings())


def test_the_teacher_stays_outside():
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


def test_running_mean_is_the_corrected_exponential_mean():
    running = RunningMean(4, momentum=0.9).double()
    batches = [torch.randn(5, 4, dtype=torch.float64) for _ in range(6)]
    torch.testing.assert_close(running.eval()(batches[0]), batches[0].mean(dim=0))
    assert running.weight == 0
    running.train()
    for count, features in enumerate(batches, start=1):
        weights = 0.9 ** torch.arange(count - 1, -1, -1, dtype=torch.float64)
        means = torch.stack([one.mean(dim=0) for one in batches[:count]])
        expected = (weights[:, None] * means).sum(dim=0) / weights.sum()
        torch.testing.assert_close(running(features), expected)
    before = running(batches[0])
    restored = RunningMean(4, momentum=0.9).double()
    restored.load_state_dict(running.state_dict())
    torch.testing.assert_close(restored.eval()(batches[3]), before)


def test_centring_spreads_what_a_common_feature_hides():
    torch.manual_seed(0)
    common = 20 * torch.randn(64)
    spatial, frequency = common + torch.randn(2, 32, 64)
    assert consistency_of(spatial, frequency).std() < 0.01
    assert consistency_of(spatial, frequency, common).std() > 0.05


def test_consistency_falls_as_the_views_part():
    feature, noise = torch.randn(2, 100, 16)
    values = [consistency_of(feature, feature + s * noise).mean() for s in (0, 0.3, 1, 3)]
    assert values == sorted(values, reverse=True)
    assert consistency_of(feature, -feature).mean() == pytest.approx(-1)
    zero = torch.zeros(1, 16)
    assert consistency_of(zero, zero) == 1
    assert consistency_of(zero, feature[:1]) == 0


def test_weights_of_equal_images_are_one():
    same = torch.full((5,), 0.3)
    for weighting in ("softmax", "batch-normalised"):
        weight = consistency_weight(same, ObjectiveSettings(weighting=weighting))
        torch.testing.assert_close(weight, torch.ones(5))
    many = torch.rand(7, 9)
    softmax = ObjectiveSettings(weighting="softmax", temperature=0.01)
    assert consistency_weight(many, softmax).mean() == pytest.approx(1, rel=1e-5)


def test_token_distance_ignores_the_scale_of_the_teacher():
    student, teacher = torch.randn(2, 3, 4, 32)
    for distance in ("mse", "cosine"):
        torch.testing.assert_close(
            token_distance(student, teacher, distance),
            token_distance(student, 7 * teacher + 2, distance),
            atol=1e-4,
            rtol=1e-4,
        )


def test_presets_fill_in_what_is_not_given():
    assert ObjectiveSettings(preset="fixed-weight").weighting == "fixed"
    assert ObjectiveSettings(preset="fixed-weight", weighting="relu").weighting == "relu"
    assert not ObjectiveSettings.model_validate_json('{"preset": "mim-only"}').distil
    saved = ObjectiveSettings(preset="mim-only").model_dump_json()
    assert ObjectiveSettings.model_validate_json(saved) == ObjectiveSettings(preset="mim-only")
    with pytest.raises(ValidationError, match="fixed-weight"):
        ObjectiveSettings(preset="fixed")
    with pytest.raises(ValidationError, match="weights in"):
        ObjectiveSettings(weighting="softmax", combination="balance")


def test_layers_and_grids_that_do_not_match_are_refused():
    with pytest.raises(UsageError, match="blocks 1 to 6"):
        objective_of(layers=(2, 4, 12))
    with pytest.raises(UsageError, match="equally many"):
        objective_of(layers=(2, 6))
    student = MaskedImageModel(create_encoder("tinyusfm-micro", image_size=SIZE))
    teacher = create_encoder("usfm-micro", image_size=96)
    with pytest.raises(UsageError, match="image size"):
        DistillationObjective(student, teacher, ObjectiveSettings())
