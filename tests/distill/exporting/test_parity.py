import numpy as np
import pytest

from echostill.distill.exporting.parity import Parity, describe, feature_parity


def test_cosines_by_the_definition():
    draw = np.random.default_rng(0)
    reference = draw.normal(size=(7, 5)) + 3
    features = reference + 0.3 * draw.normal(size=(7, 5))
    mean = [sum(row[k] for row in reference) / 7 for k in range(5)]

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    plain = [cosine(a, b) for a, b in zip(reference, features, strict=True)]
    centred = [cosine(a - mean, b - mean) for a, b in zip(reference, features, strict=True)]
    wanted = (min(plain), sum(plain) / 7, min(centred))
    assert feature_parity(reference, features) == pytest.approx(wanted, abs=1e-12)
    assert min(centred) < min(plain)


def test_a_shared_constant_flatters_the_plain_cosine_alone():
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(50, 16)) + 100
    unrelated = draw.normal(size=(50, 16)) + 100
    least, _, centred = feature_parity(reference, unrelated)
    assert least > 0.99
    assert centred < 0.5


@pytest.mark.parametrize(("least", "passes"), [(0.98, True), (0.9799, False)])
def test_the_bar_is_the_least_cosine(least, passes):
    row = Parity("onnx-int8", "f", 1, least, 1.0, 1.0, 0.0, 0.98, {})
    assert row.passes is passes


def test_the_table_names_machine_and_threads():
    form = {
        "form": "onnx",
        "bytes": 1_500_000,
        "cosine_min": 0.99999,
        "cosine_mean": 1.0,
        "centred_cosine_min": 0.9,
        "latency_ms": {"1": 2.0, "8": 9.5},
    }
    said = describe(
        {
            "images": 5,
            "threads": 2,
            "machine": {"processor": "A chip", "cores": 4},
            "torch_latency_ms": {},
            "forms": [form],
        }
    )
    for words in ("1.50", "0.999990", "9.50", "A chip, 4 cores, 2 thread(s)", "5 images"):
        assert words in said
