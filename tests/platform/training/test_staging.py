import numpy as np
import pyarrow as pa
import pytest

from echostill.platform.errors import EchostillError
from echostill.platform.imaging.images import encode_png, to_square
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table
from echostill.platform.training.staging import stage_images, staged_side


@pytest.mark.parametrize("colour", [False, True])
def test_every_image_lies_at_its_id_with_its_words(tmp_path, colour):
    store = Store(str(tmp_path))
    random = np.random.default_rng(0)
    shape = (20, 24, 3) if colour else (20, 24)
    drawn = [random.integers(0, 255, shape, dtype=np.uint8) for _ in range(9)]
    rows = [
        {
            "image_id": f"{(7 * n) % 9:032x}",
            "organ": f"organ {n % 2}",
            "device": None if n == 3 else f"device {n % 3}",
            "image": encode_png(pixels),
            "colour": colour and n == 4,
        }
        for n, pixels in enumerate(drawn)
    ]
    pool = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(store.pool(), pool, stage="ingest", fingerprint={}, rows_per_part=4)
    wanted = [rows[n]["image_id"] for n in (8, 3, 4, 0)]
    staged = stage_images(store.open_pool(), store.root, 14, wanted)
    assert staged.image_ids == sorted(wanted)
    assert staged.pixels.shape == (4, 3 if colour else 1, staged_side(14), staged_side(14))
    for place, image_id in enumerate(staged.image_ids):
        n = next(n for n, row in enumerate(rows) if row["image_id"] == image_id)
        square = to_square(drawn[n], staged_side(14))[: staged.pixels.shape[1]]
        np.testing.assert_array_equal(staged.pixels[place], square)
        assert staged.organs[place] == rows[n]["organ"]
        assert staged.devices[place] == (rows[n]["device"] or "")
    again = stage_images(store.open_pool(), store.root, 14, wanted[::-1])
    assert again.pixels.filename == staged.pixels.filename  # staged once
    with pytest.raises(EchostillError, match="1 of 2 images are not in the pool"):
        stage_images(store.open_pool(), store.root, 14, [wanted[0], "absent"])
    assert not list(tmp_path.rglob("*.tmp"))
