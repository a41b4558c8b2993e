"""A store whose results name what they were made from."""

import itertools
import json

import pyarrow as pa
import pytest

from echostill.platform.tables.fingerprint import FINGERPRINT, Fingerprint
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import CONFIGURATION, Store, finish_run
from echostill.platform.tables.table import Table, write_table


class LinkedStores:
    """Makes stores: a pool, coresets of it, a run made from one, and a report on the run."""

    def __init__(self, folders):
        self._folders = folders

    def __call__(self, folder=None):
        store = Store(str(folder or next(self._folders)))
        self.remake_pool(store, "first")
        self.add_coreset(store, "default")
        self.add_coreset(store, "half")
        self.add_run(store, "default", "student-0")
        model = sha256(store.run("student-0").read("model.safetensors"))
        wanted = Fingerprint({"name": "default"}, "1", {"student": model}, {})
        report = store.report("default")
        report.write(FINGERPRINT, json.dumps(wanted.as_dict()).encode())
        report.write("evaluation.json", b"{}")
        return store

    @staticmethod
    def fingerprint(name, inputs):
        return Fingerprint({"name": name}, "1", {}, inputs)

    def remake_pool(self, store, value="second"):
        rows = pa.table({"image_id": ["a", "b"], "source": [value, value]})
        write_table(
            store.pool(), rows, stage="ingest", fingerprint={}, extra={"rows_in": rows.num_rows}
        )

    def add_coreset(self, store, name):
        pool = Table.open(store.pool(), "ingest").digest
        wanted = self.fingerprint(name, {"pool": pool, "scores": "0" * 64}).as_dict()
        storage = store.coreset(name)
        storage.write(CONFIGURATION, json.dumps({"name": name, "seed": 0}).encode())
        storage.write(FINGERPRINT, json.dumps(wanted).encode())
        rows = pa.table({"image_id": ["a", "b"], "selected": [True, False], "name": [name, name]})
        write_table(storage, rows, stage="select", fingerprint=wanted, extra={"budget": 1})

    def add_run(self, store, coreset, name):
        storage = store.run(name)
        digest = store.open_coreset(coreset).digest
        wanted = Fingerprint({"seed": 0}, "1", {}, {"coreset": digest})
        storage.write(FINGERPRINT, json.dumps(wanted.as_dict()).encode())
        storage.write("model.safetensors", f"weights of {name} from {digest}".encode())
        finish_run(storage, stage="distill", files=["model.safetensors"], fingerprint=wanted)


@pytest.fixture
def linked_store(tmp_path):
    return LinkedStores(tmp_path / f"store {number}" for number in itertools.count())
