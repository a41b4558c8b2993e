import numpy as np
import pytest

from echostill.curation.service.data import projection
from echostill.curation.service.data.projection import build_map
from echostill.platform.tables.store import Store


def made(store, path, size=240):
    scores = store.open_scores()
    rows = np.arange(scores.rows)
    build_map(scores, rows, size, path, lambda stage, fraction: None)
    return np.load(path)


def test_likes_lie_together(built, tmp_path, make):
    store = Store(str(built))
    places = made(store, tmp_path / "map.npy")
    scored = places[:236]
    assert np.isfinite(scored).all()
    assert np.isnan(places[236:]).all()
    assert np.abs(scored).max() == pytest.approx(1)
    ids = store.open_scores().read(["image_id"])["image_id"].to_pylist()
    known = {make["identity"](row): row % 8 for row in range(240)}
    cluster = np.array([known[name] for name in ids])
    distance = np.linalg.norm(scored[:, None] - scored[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (cluster[distance.argmin(axis=1)] == cluster).mean() > 0.95


def test_those_between_the_landmarks_lie_among_their_likes(built, tmp_path, make, monkeypatch):
    monkeypatch.setattr(projection, "LANDMARKS", 60)
    store = Store(str(built))
    places = made(store, tmp_path / "map.npy")[:236]
    ids = store.open_scores().read(["image_id"])["image_id"].to_pylist()
    known = {make["identity"](row): row % 8 for row in range(240)}
    cluster = np.array([known[name] for name in ids])
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (cluster[distance.argmin(axis=1)] == cluster).mean() > 0.9
    assert len(np.unique(places, axis=0)) == 236


def test_the_same_map_each_time(built, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "LANDMARKS", 40)
    store = Store(str(built))
    first = made(store, tmp_path / "a.npy")
    second = made(store, tmp_path / "b.npy")
    assert np.array_equal(first, second, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_pools_have_a_map(tmp_path, make, rows):
    store = make["write_store"](tmp_path / "s", rows=rows, quarantined=0)
    places = made(store, tmp_path / "map.npy", rows)
    assert places.shape == (rows, 2)
    assert np.isfinite(places).all()
