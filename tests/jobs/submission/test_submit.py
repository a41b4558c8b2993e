"""What is sent with a job, from any folder. No cluster."""

from pathlib import Path

import pytest

from echostill.jobs.submission.submit import (
    JobRequest,
    entrypoint,
    environment,
    named_files,
    read_configuration,
    store_of,
    uploaded,
)
from echostill.platform.errors import UsageError


def sent(*arguments, **request):
    """The files of the folder that is sent, and the arguments in there."""
    given = JobRequest("select", arguments, **request)
    with uploaded(given, read_configuration(given)) as (folder, inside):
        if "://" in folder:
            return folder, inside
        return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*")), inside


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with much in it that nobody asked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/key").touch()
    (tmp_path / "auto").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "plain.yaml").write_text("store: runs/a\nteacher: {model: auto}\n")
    (tmp_path / "sub/names.yaml").write_text("ingest: {source: [sub/list.csv]}\n")
    (tmp_path / "sub/list.csv").touch()
    return tmp_path


def test_a_configuration_that_names_no_files_is_sent_alone(home):
    assert sent("--config", "plain.yaml") == (["plain.yaml"], ["--config", "plain.yaml"])
    assert sent(f"--config={home}/plain.yaml")[1] == ["--config=plain.yaml"]
    assert sent("budget=3") == (["empty"], ["budget=3"])


def test_the_current_folder_is_sent_where_the_configuration_names_files_in_it(home):
    files, inside = sent("-c", "sub/names.yaml")
    assert ".ssh/key" in files
    assert inside == ["-c", "sub/names.yaml"]
    assert "sub/list.csv" in sent("--config", "plain.yaml", "ingest.source=sub/list.csv")[0]


def test_a_folder_that_is_given_is_sent_and_the_configuration_named_as_in_there(home):
    given = sent("--config", "sub/names.yaml", working_dir="sub")
    assert given == (["list.csv", "names.yaml"], ["--config", "names.yaml"])
    assert sent("--config", "names.yaml", working_dir="sub")[1] == ["--config", "names.yaml"]
    remote = sent("--config", "in/there.yaml", working_dir="s3://b/code.zip")
    assert remote == ("s3://b/code.zip", ["--config", "in/there.yaml"])
    with pytest.raises(UsageError, match="no folder 'none'"):
        sent(working_dir="none")
    with pytest.raises(UsageError, match="no configuration file"):
        sent("--config", "none.yaml")


def test_what_counts_as_a_file(home):
    values = {"store": "sub/list.csv", "a": ["auto", "sub/list.csv", "s3://sub/list.csv", 3]}
    assert named_files(values) == ["sub/list.csv"]
    assert named_files([f"x={home}/plain.yaml", "x=plain.yaml", "plain", ""]) == ["plain.yaml"]


def test_the_store_is_absolute_and_said_once(home):
    assert store_of(["budget=3"], {"store": "runs/a"}) == f"{home}/runs/a"
    assert store_of(["store=b"], {"store": "runs/a"}) == f"{home}/b"
    assert store_of(["store=s3://b/s"], {}) == "s3://b/s"
    made = entrypoint("select", ["store=b", "name=it's"], "/b")
    assert made == "python -m echostill.jobs.cli.main select 'name=it'\"'\"'s' store=/b"


def test_a_runtime_environment_is_yaml_or_json(home):
    (home / "env.yaml").write_text("env_vars: {A: b}\n")
    assert environment("env.yaml", None) == environment(None, '{"env_vars": {"A": "b"}}')
    assert environment(None, None) == {}
    for file, text in (("env.yaml", "{}"), ("none.yaml", None), (None, "[1]"), (None, "{")):
        with pytest.raises(UsageError, match="runtime"):
            environment(file, text)
