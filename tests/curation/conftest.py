"""Drawn ultrasound, with lettering where a test wants it; ingests in this process, without Ray."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage


def _fan(height=240, width=320, apex=(-40, 160), radii=(60, 260), half_angle=0.6):
    """Return the mask of a fan: True between two arcs around the apex (row, column)."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y - apex[0], x - apex[1])
    angle = np.abs(np.arctan2(x - apex[1], y - apex[0]))
    return (radius >= radii[0]) & (radius <= radii[1]) & (angle <= half_angle)


def _speckle(shape, seed=0, level=70):
    """Return tissue: smoothed noise of Rayleigh's distribution, uint8."""
    noise = np.random.default_rng(seed).rayleigh(1.0, shape)
    smooth = ndimage.gaussian_filter(noise, (1.0, 2.0))
    return np.clip(smooth / smooth.mean() * level, 5, 200).astype(np.uint8)


def _picture(mask, seed=0, level=70):
    """Return tissue inside the mask and black outside."""
    return np.where(mask, _speckle(mask.shape, seed, level), 0).astype(np.uint8)


def _write(pixels, text, at, size=16, level=230):
    """Return the picture with a text at (column, row), and the box of the text's ink."""
    image = Image.fromarray(pixels)
    font = ImageFont.load_default(size)
    pen = ImageDraw.Draw(image)
    pen.text(at, text, fill=level if pixels.ndim == 2 else (level,) * 3, font=font)
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    return np.asarray(image), (int(left), int(top), int(right) + 1, int(bottom) + 1)


@pytest.fixture(scope="session")
def phantom():
    """Makers of drawn frames: fan, speckle, picture and write."""
    return SimpleNamespace(fan=_fan, speckle=_speckle, picture=_picture, write=_write)


def one_by_one(stage, payloads, todo, make_worker, plan, decode, retry):
    """Run shards as the actors do, one after the other and in this process."""
    worker = make_worker()
    for index in todo:
        payload = json.loads(json.dumps(payloads[index]))
        earlier = stage.record(index)
        if earlier is None:
            with stage.attempt(index):
                record = stage.write(index, worker.process(payload))
        elif retry:
            before = stage.read(earlier)
            failed = before.failed_units
            outcome = before.replaced(failed, worker.process_units(payload, failed))
            same = outcome.same_tables(before)
            record = earlier if same else stage.write(index, outcome)
        else:
            record = earlier
        yield {"record": record, "worker": "here", "seconds": {}, "ended": 0.0}


@pytest.fixture
def ingest_in_process(monkeypatch):
    """Have ingests of this test run here, shard by shard, without Ray."""
    from echostill.curation.ingestion import stage as ingest_stage
    from echostill.platform.cluster.nodes import Node
    from echostill.platform.cluster.plans import plan_workers
    from echostill.platform.shards import stage as shard_stage

    def planned(config, plan):
        return plan_workers(1, 8, [Node(2)])

    monkeypatch.setattr(shard_stage, "stream", one_by_one)
    monkeypatch.setattr(ingest_stage, "plan_on_cluster", planned)
