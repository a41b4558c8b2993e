"""MLflow's files in a store of any name, and in a store that was copied or moved."""

import os
import shutil
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from echostill.platform.tables.storage import Storage
from echostill.platform.training.mlflow_files import artifact_location, database_uri
from echostill.platform.training.tracking import Tracker

# Whatever a file system takes for a name: all characters but the separator and NUL.
NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40
).filter(lambda name: name not in (".", ".."))


@given(NAMES)
@example("a b#c?d=e&f;g%20h")
@example("file:x?uri=true")
@example("new\nline'\"*[a]{b}=:~-.")
@example("e\u0301\u00e9")
def test_the_addresses_lead_into_the_folder_whatever_its_name_is(name):
    folder = f"/no such store/{name}"
    uri = database_uri(folder)
    # SQLAlchemy decodes `%` since 2.1; an address in which there is none means the same to both.
    found = make_url(uri).database
    assert uri == f"sqlite:///{found}"
    assert not {"%", "?"} & set(uri)
    link, database = os.path.split(found)
    assert database == "mlflow.db"
    assert folder == (os.readlink(link) if os.path.islink(link) else link)
    artifacts = url2pathname(urlparse(artifact_location(folder)).path)
    assert os.fsencode(artifacts) == os.fsencode(f"{folder}/mlartifacts")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow  # MLflow makes its database
def test_work_in_a_copy_of_a_store_stays_in_the_copy(tmp_path):
    original, copy = tmp_path / "week #3?", tmp_path / "copy 100%20"
    file = tmp_path / "metrics.jsonl"
    file.write_text("{}")

    def start(root, name):
        return Tracker.start(None, str(root), Storage(str(root / "runs" / name)), name, {"a": 1})

    first = start(original, "student-0")
    # By hand: for as long as a process lives, MLflow remembers where it has written for a run.
    artifacts = original / "mlartifacts" / first.run_id / "artifacts"
    artifacts.mkdir(parents=True)
    shutil.copy(file, artifacts)
    shutil.copytree(original, copy)
    before = contents(original)
    second = start(copy, "student-1")
    second.artifact(str(file))
    again = start(copy, "student-0")  # the copy continues its own record of the run
    again.artifact(str(file), "more")
    again.finish()
    assert contents(original) == before
    assert again.run_id == first.run_id
    assert again.uri != first.uri

    from mlflow.tracking import MlflowClient

    shutil.rmtree(original)
    client = MlflowClient(tracking_uri=second.uri)
    for run_id, paths in ((first.run_id, {"metrics.jsonl", "more"}),
                          (second.run_id, {"metrics.jsonl"})):  # fmt: skip
        location = url2pathname(urlparse(client.get_run(run_id).info.artifact_uri).path)
        assert location == f"{copy}/mlartifacts/{run_id}/artifacts"
        assert {artifact.path for artifact in client.list_artifacts(run_id)} == paths
    assert set(os.listdir(tmp_path)) == {copy.name, file.name}  # nothing made beside
