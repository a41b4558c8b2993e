"""Whatever is done to a store, in any order, it stays sound, and what was withdrawn stays out.

Random sequences of growing, scoring, selecting, growing a coreset, renaming, deleting, gc,
withdrawing, ingesting everything anew and exporting. Scores are numbers made from the id, since a
teacher would take minutes; all else is what the commands call.
"""

import hashlib
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from PIL import Image

from echostill.curation import IngestConfig, ingest
from echostill.curation.datasets.writing import export_dataset
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.selection.stage import SelectConfig, select
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.errors import UsageError
from echostill.platform.tables.holdings import holdings
from echostill.platform.tables.housekeeping import (
    collect_waste,
    delete_result,
    find_waste,
    rename_result,
)
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    encode_parquet,
    part_record,
    write_manifest,
)
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import (
    VERSIONS,
    Growth,
    made_from_pool,
    version_entries,
    versions,
)

KEY = b"a key of thirty-two characters, ok"
PATIENTS, DIMENSION = 4, 4
NAMES = st.sampled_from(["a", "b", "c d"])
FORMS = st.sampled_from(["csv", "folder", "parquet"])


class LivingStore(RuleBasedStateMachine):
    """One store, the files that it is made from, and what of them should be in it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = str(self.folder / "store")
        self.files, self.gone, self.patients_gone = [], set(), set()
        self.needles, self.exports = [], 0

    @initialize()
    def begin(self):
        self._ingest([0, 1, 2, 3, 4, 5])
        self.score()
        self.pick("a")

    @property
    def store(self):
        return Store(self.root)

    def expected(self):
        """The images that should be in the pool."""
        stay = {f"{n}.png" for n in self.files if n % PATIENTS not in self.patients_gone}
        return stay - self.gone

    def rows(self):
        columns = ["image_id", "group_id", "source", "image"]
        return sorted(self.store.open_pool().read(columns).to_pylist(), key=lambda r: r["source"])

    def _ingest(self, added, **keys):
        for number in added:
            pixels = np.random.default_rng(number).integers(0, 255, (16, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(self.folder / f"{number}.png")
        self.files += added
        lines = ["file,patient"] + [f"{n}.png,patient {n % PATIENTS}" for n in self.files]
        (self.folder / "list.csv").write_text("\n".join(lines) + "\n")
        hidden = DeidentifySettings(pixels="off", sources="names")
        config = IngestConfig(
            store=self.root, source=(str(self.folder / "list.csv"),), deidentify=hidden,
            files_per_shard=3, max_error_rate=1.0, progress=False,
        )  # fmt: skip
        ingest(config, **keys)
        assert {row["source"] for row in self.rows()} == self.expected()

    @precondition(lambda self: len(self.files) < 16)
    @rule(count=st.integers(1, 3))
    def grow(self, count):
        self._ingest(list(range(len(self.files), len(self.files) + count)))

    @rule()
    def ingest_again(self):
        self._ingest([])

    @rule()
    def ingest_anew(self):
        """Everything from the files, as someone does who does not know what was withdrawn."""
        self._ingest([], overwrite=True)
        self.store.scores().delete("")
        self.score()
        for one in holdings(self.store, "coresets"):
            delete_result(self.store, one.place, force=True)

    @rule()
    def score(self):
        """Score what is not scored yet: a further part, as the stage leaves it."""
        pool, storage = self.store.open_pool(), self.store.scores()
        kept = Table.open(storage, "score") if storage.exists(MANIFEST) else None
        known = set() if kept is None else set(kept.read(["image_id"])["image_id"].to_pylist())
        ids = pool.read(["image_id"])["image_id"].to_pylist()
        data = encode_parquet(scores_of([one for one in ids if one not in known]))
        if kept is not None and len(known) == len(ids):
            return
        parts = [] if kept is None else kept.manifest["parts"]
        name = f"part-{len(parts):05d}.parquet"
        storage.write(name, data)
        earlier = [] if kept is None else versions(kept)
        history = [
            *(
                Growth(one.parts, one.made_from or {"pool": made_from_pool(kept)})
                for one in earlier
            ),
            Growth(len(parts) + 1, {"pool": pool.digest}),
        ]
        parts = [*parts, part_record(name, len(ids) - len(known), data)]
        extra = {"rows_in": len(ids), "quarantined": 0}
        if entries := version_entries(parts, history):
            extra[VERSIONS] = entries
        first = {"weights": {}, "digest": pool.digest, "inputs": {"pool": pool.digest}}
        made = first if kept is None else kept.manifest["fingerprint"]
        schema = scores_schema(DIMENSION, 1)
        write_manifest(
            storage, stage="score", schema=schema, parts=parts, fingerprint=made, extra=extra
        )

    @rule(name=NAMES)
    def pick(self, name):
        self._select(name=name)

    @rule(name=NAMES, of=NAMES)
    def grow_coreset(self, name, of):
        self._select(name=name, grow=of)

    def _select(self, **keys):
        keys = {"budget": 0.6, "clusters": 2, "progress": False, **keys}
        try:
            select(SelectConfig(store=self.root, **keys))
        except UsageError:
            return  # of other scores, too few images, no such coreset
        chosen = self.store.open_coreset(keys["name"]).read(["image_id", "selected"]).to_pylist()
        known = {row["image_id"] for row in self.rows()}
        assert {row["image_id"] for row in chosen} <= known

    @rule(name=NAMES, to=NAMES)
    def rename(self, name, to):
        try:
            rename_result(self.store, f"coresets/{name}", to)
        except UsageError:
            return
        assert {one.name for one in holdings(self.store, "coresets")} >= {to}

    @rule(name=NAMES, force=st.booleans())
    def delete(self, name, force):
        try:
            delete_result(self.store, f"coresets/{name}", force=force)
        except UsageError:
            return
        assert name not in {one.name for one in holdings(self.store, "coresets")}

    @rule()
    def gc(self):
        collect_waste(self.store, find_waste(self.store))
        assert find_waste(self.store) == []

    @rule(name=NAMES, form=FORMS)
    def export(self, name, form):
        self.exports += 1
        to = self.folder / f"export {self.exports}"
        try:
            done = export_dataset(self.root, name, str(to), form)
        except UsageError:
            return
        images = self.store.open_coreset(name).read(["selected"])["selected"].to_pylist()
        assert sum(done.images.values()) == sum(images)

    @precondition(lambda self: len(self.expected()) > 1)
    @rule(kind=st.sampled_from(["image", "group", "patient"]), place=st.integers(0, 20))
    def withdraw(self, kind, place):
        rows = self.rows()
        row = rows[place % len(rows)]
        number = int(row["source"].partition(".")[0]) % PATIENTS
        value = {"image": row["image_id"], "group": row["group_id"], "patient": f"patient {number}"}
        same = [one for one in rows if one["group_id"] == row["group_id"]]
        left = [row] if kind == "image" else same
        if len(left) == len(rows):
            return  # a pool without rows is for test_withdrawing
        request = WithdrawalRequest(kind, value[kind])
        planned = withdraw(self.root, request, reason="asked", key=KEY, dry_run=True)
        before = {one.place: one.made_from for one in holdings(self.store)}
        receipt = withdraw(self.root, request, reason="asked", key=KEY)
        assert before == {one.place: one.made_from for one in holdings(self.store)}
        assert receipt.counts == planned.counts
        assert receipt.counts["images"] == len(left)
        self.gone |= {one["source"] for one in left}
        if kind != "image":
            self.patients_gone.add(number)
        for one in left:
            self.needles += [one["image_id"].encode(), one["image"]]
        assert {one["source"] for one in self.rows()} == self.expected()

    @invariant()
    def sound(self):
        found = verify_store(self.root)
        assert found.sound, found

    @invariant()
    def what_was_withdrawn_is_nowhere(self):
        if self.needles:
            for path in Path(self.root).rglob("*"):
                if path.is_file():
                    text = contents(path)
                    assert not any(needle in text for needle in self.needles), path

    def teardown(self):
        shutil.rmtree(self.folder)


def scores_of(ids):
    """Scores made from the ids."""
    digests = [list(hashlib.sha256(one.encode()).digest()[: DIMENSION + 1]) for one in ids]
    values = np.array(digests, dtype=np.float32).reshape(-1, DIMENSION + 1) / 255
    feature = pa.array(values[:, :DIMENSION].astype(np.float16).ravel())
    gradient = pa.array(values[:, DIMENSION])
    return pa.table(
        [
            pa.array(ids, pa.string()),
            pa.FixedSizeListArray.from_arrays(feature, DIMENSION),
            gradient,
            pa.array(values[:, DIMENSION] * 0),
            pa.FixedSizeListArray.from_arrays(gradient, 1),
            pa.array(values[:, 0]),
        ],
        schema=scores_schema(DIMENSION, 1),
    )


def contents(path):
    """A file's name and bytes, and those of a table's values."""
    data = path.read_bytes()
    found = [path.name.encode(), data]
    if path.suffix == ".parquet":
        for column in pq.read_table(io.BytesIO(data)).columns:
            for value in column.to_pylist():
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str | bytes):
                        found.append(one.encode() if isinstance(one, str) else one)
    return b"\0".join(found)


@pytest.mark.slow
def test_any_order_of_operations_leaves_a_sound_store(ingest_in_process, monkeypatch, tmp_path):
    monkeypatch.setenv("ECHOSTILL_KEY", KEY.decode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = LivingStore.TestCase
    case.settings = settings(
        max_examples=5,
        stateful_step_count=10,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # to shrink a failure takes minutes
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    case().runTest()
