import pyarrow as pa

from echostill.curation.ingestion.patients.devices import other_spellings, settle_devices
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage

SCHEMA = pa.schema([pa.field("device", pa.string(), nullable=False), ("value", pa.int64())])


def test_the_spelling_of_most_images_stays_and_of_equally_many_the_first():
    images = {"": 4, "LOGIQ E9": 2, "Logiq E9": 3, "LogiqE9": 1, "CX50": 2, "cx50": 2, "EPIQ": 1}
    assert other_spellings(images) == {
        "LOGIQ E9": "Logiq E9", "LogiqE9": "Logiq E9", "cx50": "CX50",
    }  # fmt: skip
    assert other_spellings({"A": 1, "B": 2, "": 3}) == {}


def test_a_device_has_one_spelling_in_all_shards_and_a_shard_without_others_stays(tmp_path):
    stage = ShardedStage(
        "toy",
        Storage(str(tmp_path / "toy")),
        Storage(str(tmp_path / "quarantine")),
        SCHEMA,
        Fingerprint({"a": 1}, "1", {}, {}),
        1.0,
    )
    shards = [["GE Logiq", "EPIQ", ""], ["ge logiq", "GE Logiq"], ["EPIQ", "GE LOGIQ", "EPIQ"]]
    records = {}
    for index, devices in enumerate(shards):
        rows = pa.table({"device": devices, "value": range(len(devices))}, SCHEMA)
        records[index] = stage.write(index, Outcome(rows, QUARANTINE_SCHEMA.empty_table()))
    before = dict(records)
    for _ in range(2):  # what is settled stays
        settle_devices(stage, records)
        assert records[0] == before[0]
        found = [stage.read(records[index]).rows for index in records]
        assert [part["device"].to_pylist() for part in found] == [
            ["GE Logiq", "EPIQ", ""], ["GE Logiq", "GE Logiq"], ["EPIQ", "GE Logiq", "EPIQ"],
        ]  # fmt: skip
        assert [part["value"].to_pylist() for part in found] == [[0, 1, 2], [0, 1], [0, 1, 2]]
