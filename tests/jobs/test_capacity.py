"""The plan on paper: its arithmetic against a reckoning by hand, and where its rates come from."""

import pytest

from echostill.curation.scoring.stage import ScoreConfig
from echostill.curation.selection.stage import SelectConfig
from echostill.distill.settings import DistillConfig
from echostill.jobs.capacity import (
    RATES,
    Cluster,
    Settings,
    cpus_that_feed,
    duration,
    plan_capacity,
    plan_pool,
    rates_with,
)
from echostill.platform.errors import UsageError

SETTINGS = Settings(ScoreConfig(), SelectConfig(budget=200_000), DistillConfig())
IMAGES = 3_000_000


def planned(cluster, images=IMAGES, **rates):
    plans = plan_capacity(images, SETTINGS, cluster, rates_with(rates))
    return {plan.stage: plan for plan in plans}


def test_the_plan_is_what_a_reckoning_by_hand_gives():
    plans = planned(Cluster(64, 0), ingest=50, cpu=100, select=30_000, clustering=10)
    assert plans["ingest"].seconds == pytest.approx(IMAGES / (64 * 50))
    assert plans["ingest"].lost == pytest.approx(1024 / 50)
    # USFM's 35.1 GFLOPs and, two draws at five steps, ten forward passes of TinyUSFM's 2.507.
    each = 35.126 + 10 * 2.507
    assert plans["score"].seconds == pytest.approx(IMAGES * each / (64 * 100), rel=1e-3)
    assert plans["score"].disk == IMAGES * (768 * 2 + 5 * 4 + 48)
    assert plans["select"].seconds == plans["select"].lost == IMAGES / 30_000 + 10
    # 2,000 steps of 256 images, two views, forward and backward, on one worker of 64 CPUs.
    proxy = 2000 * 256 * 2 * 3 * 2.507 / 100
    assert plans["proxy"].seconds == pytest.approx(proxy, rel=1e-3)
    assert plans["proxy"].lost == pytest.approx(proxy / 5 + 60, rel=1e-3)


def test_gpus_wait_for_the_cpus_that_decode():
    few, many = planned(Cluster(8, 8)), planned(Cluster(800, 8))
    assert few["score"].seconds == pytest.approx(IMAGES / (8 * RATES["decode"].value))
    assert many["score"].seconds < few["score"].seconds
    enough = cpus_that_feed(SETTINGS, 8, RATES)
    assert planned(Cluster(enough, 8))["score"].seconds == many["score"].seconds
    assert planned(Cluster(enough - 1, 8))["score"].seconds > many["score"].seconds


def test_a_hundred_times_the_images_take_a_hundred_times_as_long():
    small, large = planned(Cluster(64, 8)), planned(Cluster(64, 8), 100 * IMAGES)
    for stage in ("ingest", "score"):
        assert large[stage].seconds == pytest.approx(100 * small[stage].seconds)
        assert large[stage].disk == pytest.approx(100 * small[stage].disk)
    assert large["distill"].seconds == small["distill"].seconds  # on the coreset


def test_every_rate_is_printed_with_its_source():
    text = plan_pool(3e6, 8, None, ["gpu=60000"])
    assert text.startswith("3,000,000 images on 8 GPU(s) and ")
    for name, rate in RATES.items():
        assert rate.source.split(":")[0] in ("measured", "assumed")
        assert any(line.split()[:1] == [name] for line in text.splitlines())
    assert "gpu        60000 GFLOP/s and GPU (yours)" in text
    assert "days" not in text.splitlines()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["gpus=3"], r"no rate 'gpus'\. Did you mean 'gpu'"),
        (["gpu=fast"], "must be NAME=VALUE with a number"),
        (["gpu=0"], "rate 'gpu' must be above 0"),
        (["gpu=nan"], "rate 'gpu' must be above 0"),
    ],
)
def test_wrong_rates_are_refused(change, words):
    with pytest.raises(UsageError, match=words):
        plan_pool(3e6, 8, None, change)
    with pytest.raises(UsageError, match="at least 1"):
        plan_pool(0, 8, None)


def test_times_have_the_unit_that_fits():
    assert [duration(s) for s in (30, 600, 7200, 864_000)] == ["30 s", "10 min", "2 h", "10 days"]
