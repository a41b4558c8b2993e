import pyarrow as pa
import pytest
import yaml

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.jobs.cli.damaged import damaged_files, describe
from echostill.jobs.cli.main import main
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet

KEY = "sixteen bytes or more"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is hashed, with files of which two are damaged."""
    monkeypatch.setenv("ECHOSTILL_KEY", KEY)
    (tmp_path / "files").mkdir()
    pseudonymiser = Pseudonymiser(KEY.encode(), hidden=True)
    rows = []
    for name, kind in (
        *(("Doe.png", "DecodeError"), ("Roe.png", "DecodeError"), ("ct.dcm", "NoImageError")),
        ("held.png", "NeedsReview"),
    ):
        (tmp_path / "files" / name).write_bytes(b"damaged")
        said = {"error_class": kind, "message": "is damaged or truncated"}
        hashed = pseudonymiser.name(name)
        rows.append({"stage": "ingest", "id": hashed, "source": hashed, **said})
    store = Store(str(tmp_path / "store"))
    part = pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)
    store.quarantine("ingest").write("part-00000.parquet", encode_parquet(part))
    text = yaml.safe_dump({"ingest": {"source": str(tmp_path / "files"), "store": store.root}})
    (tmp_path / "c.yaml").write_text(text)
    return store


def test_damaged_files_are_listed_by_name(store, tmp_path):
    config = str(tmp_path / "c.yaml")
    assert [row["source"] for row in damaged_files(store.root, config)] == ["Doe.png", "Roe.png"]
    everything = damaged_files(store.root, config, everything=True)
    assert [row["source"] for row in everything] == ["Doe.png", "Roe.png", "ct.dcm", "held.png"]
    assert all(len(row["source"]) == 32 for row in damaged_files(store.root))
    said = describe(damaged_files(store.root, config))
    assert said.splitlines() == [
        "Doe.png  DecodeError: is damaged or truncated",
        "Roe.png  DecodeError: is damaged or truncated",
        "2 listed: 2 DecodeError",
    ]


def test_the_command_prints_them(store, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["quarantine", store.root])
    assert ended.value.code == 0
    assert "2 listed: 2 DecodeError" in capsys.readouterr().out


def test_why_answers_from_the_quarantine_before_any_selection(store, capsys):
    """Nothing was selected, and the pool is not even finished."""
    name = damaged_files(store.root)[0]["source"]
    with pytest.raises(SystemExit) as ended:
        main(["why", name, "--store", store.root])
    assert ended.value.code == 0
    assert "it went to quarantine at ingest, DecodeError" in capsys.readouterr().out
