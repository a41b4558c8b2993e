import pickle

import numpy as np
import pytest

from echostill.curation import CoresetDataset
from echostill.platform.errors import UsageError


def test_items_are_the_chosen_images(coreset_store):
    images = CoresetDataset(coreset_store.root, "default", transform=np.asarray)
    found = {
        item["image_id"]: item["image"] for item in (images[row] for row in range(len(images)))
    }
    assert found.keys() == coreset_store.pictures.keys()
    assert all(np.array_equal(found[key], coreset_store.pictures[key]) for key in found)
    assert images.values("image_id") == list(coreset_store.pictures)
    with pytest.raises(IndexError):
        images[len(images)]


def test_splits_part_the_images(coreset_store):
    shares = {"train": 0.7, "test": 0.3}
    sides = [CoresetDataset(coreset_store.root, split=side, shares=shares) for side in shares]
    ids = [set(side.values("image_id")) for side in sides]
    assert ids[0] | ids[1] == coreset_store.pictures.keys()
    assert not ids[0] & ids[1]
    with pytest.raises(UsageError, match="no split 'val': there are train, test"):
        CoresetDataset(coreset_store.root, split="val", shares=shares)


def test_a_worker_gets_no_mapped_file(coreset_store):
    images = CoresetDataset(coreset_store.root, transform=np.asarray)
    first = images[0]["image"]
    assert np.array_equal(pickle.loads(pickle.dumps(images))[0]["image"], first)


@pytest.mark.slow
def test_a_loader_with_workers_gives_every_image_once(coreset_store):
    from torch.utils.data import DataLoader

    def picture(image):
        return np.asarray(image.convert("RGB").resize((8, 8)))

    loader = DataLoader(CoresetDataset(coreset_store.root, transform=picture), 7, num_workers=2)
    batches = list(loader)
    assert [name for batch in batches for name in batch["image_id"]] == list(coreset_store.pictures)
    assert batches[0]["image"].shape == (7, 8, 8, 3)
