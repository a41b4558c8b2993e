"""The published protocol against a loop that is written by hand from the same settings."""

import copy

import numpy as np
import pytest
import torch

from echostill.eval.heads import SegmentationTask
from echostill.eval.unius.protocols.data import find_tasks, load_data
from echostill.eval.unius.protocols.published import batches, learning_rate, run_published, train
from echostill.eval.unius.protocols.settings import ProtocolSettings, PublishedSettings
from echostill.platform.models import create_encoder

SETTINGS = PublishedSettings(
    classification_epochs=3,
    segmentation_epochs=3,
    warmup_epochs=1,
    learning_rate=1e-3,
    head_width=16,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_encoder("tinyusfm-micro", image_size=32)


@pytest.fixture
def data(prepared_set):
    def load(name, kind):
        (task,) = find_tasks(prepared_set(name)[1].table.storage.root, kinds=(kind,))
        return load_data(task, 32)

    return load


def by_hand(encoder, head, forward, loss, data, seed, epochs):
    """Adam's equations (Kingma and Ba, 2015), step by step; the weights after each epoch."""
    trained = [*encoder.parameters(), *head.parameters()]
    first = [torch.zeros_like(p) for p in trained]
    second = [torch.zeros_like(p) for p in trained]
    step, states = 0, []
    for epoch in range(epochs):
        # One epoch of warm-up at the peak; then down to 1e-6, an equal step for each epoch.
        rate = 1e-3 if epoch < 1 else 1e-6 + (1e-3 - 1e-6) * (1 - (epoch - 1) / (epochs - 1))
        encoder.train(), head.train()
        for pixels, targets in batches(data, data.sides["train"], epoch, SETTINGS, seed):
            step += 1
            value = loss(forward(pixels), targets)
            slopes = torch.autograd.grad(value, trained, allow_unused=True)
            with torch.no_grad():
                for place, slope in enumerate(slopes):
                    if slope is None:
                        continue
                    first[place] = 0.9 * first[place] + 0.1 * slope
                    second[place] = 0.999 * second[place] + 0.001 * slope**2
                    mean = first[place] / (1 - 0.9**step)
                    size = (second[place] / (1 - 0.999**step)).sqrt() + 1e-8
                    trained[place] -= rate * mean / size
        encoder.eval(), head.eval()
        states.append((copy.deepcopy(encoder.state_dict()), copy.deepcopy(head.state_dict())))
    return states


def scored(data, predict, score):
    rows = data.sides["val"]
    with torch.no_grad():
        found = predict(torch.from_numpy(data.dataset.pixels[rows]).float() / 255)
    return score(found.numpy(), rows)


def best_of(states, encoder, head, measure):
    scores = []
    for body, top in states:
        encoder.load_state_dict(body), head.load_state_dict(top)
        scores.append(measure())
    body, top = states[int(np.argmax(scores))]  # the first of equal ones
    encoder.load_state_dict(body), head.load_state_dict(top)


def test_classification_is_a_hand_written_loop(data, encoder):
    busi = data("busi", "classification")
    torch.manual_seed(5)
    own = copy.deepcopy(encoder)
    head = torch.nn.Linear(64, 3)

    def forward(pixels):
        return head(own(pixels).pooled)

    def loss(logits, labels):
        chosen = logits[torch.arange(len(labels)), labels]
        return (torch.log(torch.exp(logits).sum(1)) - chosen).mean()

    states = by_hand(own, head, forward, loss, busi, seed=5, epochs=3)
    labels = busi.dataset.labels

    def accuracy():
        return scored(busi, forward, lambda found, rows: (found.argmax(1) == labels[rows]).mean())

    best_of(states, own, head, accuracy)
    test = busi.sides["test"]
    with torch.no_grad():
        logits = forward(torch.from_numpy(busi.dataset.pixels[test]).float() / 255)
    wanted = (torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)).numpy()
    (measured,) = run_published(encoder, busi, ProtocolSettings(published=SETTINGS), seed=5)
    found = np.array([row["values"] for row in measured.images])
    assert np.abs(found - wanted).max() < 1e-5
    assert measured.method == "fine-tuned"


def test_segmentation_is_a_hand_written_loop(data, encoder):
    ddti = data("ddti", "segmentation")
    torch.manual_seed(5)
    task = SegmentationTask(copy.deepcopy(encoder), 1, 16)
    own, head = task.encoder, task.head

    def forward(pixels):
        parts = own(pixels, (2, 3, 4, 6)).intermediate
        return head([part[:, 1:] for part in parts])[:, 0]

    def loss(logits, masks):
        wanted = masks.float()
        share = 1 / (1 + torch.exp(-logits))
        return -(wanted * torch.log(share) + (1 - wanted) * torch.log(1 - share)).mean()

    states = by_hand(own, head, forward, loss, ddti, seed=5, epochs=3)
    masks = ddti.dataset.masks

    def overlap(found, rows):
        values = []
        for own_mask, mask in zip(found > 0, masks[rows] > 0, strict=True):
            total = own_mask.sum() + mask.sum()
            values.append(2 * (own_mask & mask).sum() / total if total else 1.0)
        return np.mean(values)

    best_of(states, own, head, lambda: scored(ddti, forward, overlap))
    trained = train(encoder, ddti, ddti.sides["train"], SETTINGS, seed=5)
    pixels = torch.from_numpy(ddti.dataset.pixels[ddti.sides["test"]]).float() / 255
    with torch.no_grad():
        difference = trained.network.logits(pixels)[:, 0] - forward(pixels)
    assert difference.abs().max() < 1e-5
    assert set(trained.scores) == {0, 1, 2}
    (measured,) = run_published(encoder, ddti, ProtocolSettings(published=SETTINGS), seed=5)
    with torch.no_grad():
        wanted = overlap(forward(pixels).numpy(), ddti.sides["test"])
    assert measured.metrics["dice"] == pytest.approx(wanted, abs=1e-6)


def test_the_rate_rises_and_falls_as_published():
    settings = PublishedSettings()
    rates = [learning_rate(epoch, 400, settings) for epoch in range(400)]
    assert rates[:5] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert rates[5] == 1e-4
    assert np.allclose(np.diff(rates[5:]), -(1e-4 - 1e-6) / 395)
    assert 1e-6 < rates[-1] < 1.3e-6


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(data):
    busi = data("busi", "classification")
    rows = busi.sides["train"]
    orders = []
    for epoch in (0, 1):
        parts = [targets for _, targets in batches(busi, rows, epoch, SETTINGS, 0)]
        assert [len(part) for part in parts[:-1]] == [8] * (len(parts) - 1)
        orders.append(torch.cat(parts).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(busi.dataset.labels[rows])
    again = list(batches(busi, rows, 1, SETTINGS, 0))
    assert all(
        torch.equal(one, other)
        for (one, _), (other, _) in zip(again, batches(busi, rows, 1, SETTINGS, 0), strict=True)
    )


def test_training_changes_neither_the_encoder_nor_torchs_generator(data, encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    busi = data("busi", "classification")
    settings = SETTINGS.model_copy(update={"classification_epochs": 1})
    first = train(encoder, busi, busi.sides["train"], settings, seed=1)
    second = train(encoder, busi, busi.sides["train"], settings, seed=1)
    assert np.array_equal(first.losses, second.losses)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], tensor) for n, tensor in encoder.state_dict().items())
