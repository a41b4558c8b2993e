"""A store with a pool of three parts and a coreset: grey and colour, odd labels, copies."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from echostill.platform.imaging.images import encode
from echostill.platform.tables.schemas import POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table, write_table

ROWS = 90
LABELS = ("benign", "a/b", "..", "  ", "")


def pixels(row):
    shape = (12 + row % 5, 16, 3) if row % 4 == 0 else (12 + row % 5, 16)
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def identity(row):
    return f"{row * 0x9E3779B9 % 2**32:08x}{row:024x}"


def is_chosen(row):
    return row % 3 != 1


@pytest.fixture(scope="session")
def coreset_store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store") / "a store"))
    rows = [
        {
            "image_id": identity(row),
            "group_id": f"clip{row // 5}",
            "source": f'ward/scan, "{row}".dcm#{row % 5}',
            "organ": ("liver", "heart", "")[row % 3],
            "device": "",
            "label": LABELS[row % 5],
            "modality": "b_mode",
            "frame": row % 5,
            "image": encode(pixels(row), "png"),
            "width": 16,
            "height": 12 + row % 5,
            "original_width": 32,
            "original_height": 24,
            "colour": row % 4 == 0,
        }
        for row in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows, POOL_SCHEMA)
    write_table(store.pool(), table, stage="ingest", fingerprint={}, rows_per_part=40)
    choice = {
        "image_id": sorted(identity(row) for row in range(ROWS)),
        "selected": [is_chosen(int(name[8:], 16)) for name in sorted(map(identity, range(ROWS)))],
    }
    inputs = {"pool": Table.open(store.pool(), "ingest").digest}
    write_table(
        store.coreset("default"), pa.table(choice), stage="select", fingerprint={"inputs": inputs}
    )
    # A picture of clip 0 is in clip 7 as well.
    copies = {"image_id": [identity(0), identity(35)], "duplicate_group": ["one", "one"]}
    write_table(store.duplicates(), pa.table(copies), stage="duplicates", fingerprint={})
    chosen = [row for row in range(ROWS) if is_chosen(row)]
    return SimpleNamespace(
        store=store,
        root=store.root,
        pictures={identity(row): pixels(row) for row in chosen},  # in the order of the pool
    )
