import pytest

from echostill.platform import stages
from echostill.platform.config import StageConfig
from echostill.platform.errors import UsageError
from echostill.platform.shards.events import read_events, stage_run
from echostill.platform.stage import Stage, StageResult, logged
from echostill.platform.stages import StageInfo
from echostill.platform.tables.store import Store

INFO = StageInfo("toy", "Make a toy.", "echostill toy", reads=(), writes="toys")
RESULT = StageResult("toy", ("toys",), "/somewhere/toys", {"toys": 3}, "3 toys: /somewhere/toys")


def events(root):
    return read_events(Store(str(root)).events(), "toy")


@logged(INFO)
def make(config, *, overwrite=False, fails=None):
    """Make a toy."""
    Store(config.store).storage.write("toys/one", b"")
    if fails is not None:
        raise fails
    return RESULT


def test_a_call_logs_its_start_its_end_and_what_it_made(tmp_path):
    config = StageConfig(store=str(tmp_path / "store"))
    assert make(config, overwrite=True) is RESULT
    started, finished = events(tmp_path / "store")
    assert (started["event"], started["mode"]) == ("started", "run")
    assert finished["event"] == "finished"
    assert finished["run"] == started["run"]
    assert finished["toys"] == 3
    assert finished["made"] == ["toys"]
    assert finished["message"] == str(RESULT)
    assert finished["seconds"] >= 0
    assert make.__doc__ == "Make a toy."


@pytest.mark.parametrize(
    ("error", "ending"),
    [(ValueError("no wood"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_every_end_is_logged(tmp_path, error, ending):
    with pytest.raises(type(error)):
        make(StageConfig(store=str(tmp_path)), fails=error)
    last = events(tmp_path)[-1]
    assert last["event"] == ending
    assert last.get("message") == ("no wood" if ending == "failed" else None)


def test_wrong_usage_makes_no_store(tmp_path):
    @logged(INFO)
    def refuse(config):
        raise UsageError("no such source")

    with pytest.raises(UsageError):
        refuse(StageConfig(store=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError):
        refuse(StageConfig(store=str(tmp_path / "there")))
    assert [event["event"] for event in events(tmp_path / "there")] == ["started", "failed"]


def test_a_run_inside_a_run_of_the_same_stage_is_that_run(tmp_path):
    @logged(INFO)
    def outer(config):
        log = Store(config.store).events()
        with stage_run(log, "toy", shards=2) as run:
            run.add("shard", shard=0)
            run.outcome["rows_in"] = 7
        with stage_run(log, "other"):  # another stage logs for itself
            pass
        return RESULT

    (tmp_path / "store").mkdir()
    outer(StageConfig(store=str(tmp_path / "store")))
    found = events(tmp_path / "store")
    assert [event["event"] for event in found] == ["started", "planned", "shard", "finished"]
    assert len({event["run"] for event in found}) == 1
    assert (found[1]["shards"], found[-1]["rows_in"]) == (2, 7)
    others = read_events(Store(str(tmp_path / "store")).events(), "other")
    assert [event["event"] for event in others] == ["started", "finished"]


def test_a_stage_loads_its_own_section(tmp_path):
    stage = Stage(stages.SCORE, StageConfig, make, make)
    file = tmp_path / "config.yaml"
    file.write_text("store: runs/one\nscore: {seed: 3}\nselect: {seed: 4}\n")
    assert stage.load(str(file), ("progress=false",)) == StageConfig(
        store="runs/one", seed=3, progress=False
    )
    assert stages.CACHE.section == "distill"
