import inspect
import json

import pytest

from echostill.jobs.stages import HOMES, find_stage, retry_stage
from echostill.platform.config import SHARED_KEYS, StageConfig
from echostill.platform.errors import UsageError
from echostill.platform.shards.events import read_events
from echostill.platform.stages import BESIDE, IN_RUN, STAGES
from echostill.platform.tables.store import Store


def test_the_table_of_stages_is_whole():
    assert set(HOMES) == {**STAGES, **BESIDE}.keys()
    assert [name for name in STAGES if name not in IN_RUN] == ["pretrain"]
    written = {info.writes for info in STAGES.values()} | {"leaks", "pins"}
    for info in (*STAGES.values(), *BESIDE.values()):
        assert set(info.reads) <= written
        assert info.example.startswith(f"echostill {info.name} ")
        assert info.name not in SHARED_KEYS


@pytest.mark.parametrize("name", HOMES)
def test_a_record_is_at_home_and_complete(name, tmp_path):
    stage = find_stage(name)
    assert stage.info is {**STAGES, **BESIDE}[name]
    assert stage.run.__module__ == HOMES[name]
    assert issubclass(stage.config, StageConfig)
    assert list(inspect.signature(stage.run).parameters)[:2] == ["config", "overwrite"]
    assert (stage.retry is not None) == (name in ("ingest", "score"))


@pytest.mark.parametrize("name", [name for name in HOMES if name not in ("ingest", "sweep")])
def test_every_call_logs_for_itself(name, tmp_path):
    """Whoever calls a stage, and however: a failure on an empty store is in its log."""
    stage = find_stage(name)
    values = {"store": str(tmp_path)}
    if name == "evaluate":
        values["tasks"] = [{"name": "x", "kind": "classification", "manifest": "none.csv"}]
    with pytest.raises(UsageError):
        stage.run(stage.config.model_validate_json(json.dumps(values)))
    kinds = [event["event"] for event in read_events(Store(str(tmp_path)).events(), name)]
    assert kinds == ["started", "failed"]


def test_unknown_stages_and_those_without_quarantine_are_named():
    with pytest.raises(UsageError, match=r"no stage 'selct'.*select"):
        find_stage("selct")
    with pytest.raises(UsageError, match="'select' keeps no quarantine"):
        retry_stage("select", None, [])
