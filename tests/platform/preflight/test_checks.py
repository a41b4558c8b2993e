"""What a stage depends on outside of its process: dead, silent, forbidden or something else."""

import os
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from echostill.platform import stages
from echostill.platform.config import StageConfig
from echostill.platform.errors import UsageError
from echostill.platform.preflight import answers, clusters
from echostill.platform.preflight.checks import check_stage, check_writable
from echostill.platform.preflight.clusters import check_dashboard, check_ray
from echostill.platform.preflight.folders import unwritable
from echostill.platform.preflight.tracking import check_tracking
from echostill.platform.processes import Process
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store

BAR = 10.0  # seconds, of the promise that a dead thing is said


def refusal(call, *arguments):
    """The text of the UsageError: one line that ends as a sentence does."""
    with pytest.raises(UsageError) as info:
        call(*arguments)
    text = str(info.value)
    assert "\n" not in text
    assert text.endswith((".", ")"))
    return text


def calls(port):
    """Every kind of thing at a port, and how its message begins."""
    bucket = f"s3://ward{port}/store?endpoint_override=127.0.0.1:{port}&scheme=http"
    google = f"gs://anonymous@ward{port}/s?endpoint_override=127.0.0.1:{port}&scheme=http"
    return {
        "cannot reach Ray at": (check_ray, f"127.0.0.1:{port}"),
        "cannot reach Ray": (check_ray, f"ray://127.0.0.1:{port}"),
        "no Ray dashboard answers": (check_dashboard, f"http://127.0.0.1:{port}"),
        "cannot record runs in MLflow": (check_tracking, f"http://127.0.0.1:{port}", "store"),
        "cannot reach the object store": (Storage, bucket),
        "cannot reach the object store of 'gs://": (Storage, google),
    }


def test_what_is_dead_is_said_within_the_bar(closed_port):
    for begins, call in calls(closed_port).items():
        started = time.monotonic()
        text = refusal(*call)
        assert time.monotonic() - started < BAR
        assert text.startswith(begins)
        assert "nothing listens there" in text
        assert str(closed_port) in text


def test_credentials_in_a_uri_are_not_said(closed_port):
    text = refusal(
        Storage,
        f"s3://AKIA17:secret17@ward/s?endpoint_override=127.0.0.1:{closed_port}&scheme=http",
    )
    assert "'s3://ward/s'" in text
    assert "17@" not in text


@pytest.mark.slow  # waits for answers that never come, all of them at once
def test_what_never_answers_is_said_within_the_bar(silent_port):
    started = time.monotonic()
    kinds = calls(silent_port)
    with ThreadPoolExecutor(len(kinds)) as pool:
        texts = list(pool.map(lambda call: refusal(*call), kinds.values()))
    assert time.monotonic() - started < BAR
    for begins, text in zip(kinds, texts, strict=True):
        assert text.startswith(begins)
        assert answers.SILENT in text


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("head", "no address of a head node"),
        ("head:", "no address of a head node"),
        ("http://127.0.0.1:8265", "the dashboard's, for `echostill submit`"),
        ("no-such-host.invalid:6379", "no host of that name"),
    ],
)
def test_a_malformed_address_of_ray(address, words):
    assert words in refusal(check_ray, address)


def test_the_address_comes_from_the_configuration_or_the_environment(monkeypatch, closed_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    assert "(RAY_ADDRESS)" in refusal(check_ray)
    assert "(address)" in refusal(check_ray, "127.0.0.1:9")
    check_ray("local")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # inside of a job, Ray's own
    check_ray()


def test_a_cluster_that_answers_is_asked_once_and_one_that_refuses_again(monkeypatch):
    import grpc

    asked = []

    def answer(request, context):
        token = dict(context.invocation_metadata()).get("authorization")
        asked.append(token)
        if token != "Bearer right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        return b""

    head = grpc.method_handlers_generic_handler(
        "ray.rpc.NodeInfoGcsService", {"CheckAlive": grpc.unary_unary_rpc_method_handler(answer)}
    )
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[head])
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        for token in ("wrong", "wrong", "right", "right", "wrong", "right"):
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
            if token == "right":
                check_ray(address)
            else:
                assert "refuses the token" in refusal(check_ray, address)
        server.stop(None).wait()
    assert asked == ["Bearer wrong", "Bearer wrong", "Bearer right", "Bearer wrong"]


def test_auto_is_a_ray_of_this_machine(monkeypatch):
    here = [Process(1, "init", 0, 0)]
    monkeypatch.setattr(clusters, "all_processes", lambda: iter(here))
    assert "no Ray runs on this machine" in refusal(check_ray, "auto")
    here.append(Process(7, "raylet", 1, 9))
    check_ray("auto")


def test_something_else_at_the_port(web_server):
    host = web_server.address.removeprefix("http://")
    assert "what answers there is not Ray" in refusal(check_ray, host)
    for status, page, words in (
        (200, b"<html></html>", "another page"),
        (404, b"", "HTTP status 404"),
        (500, b"", "HTTP status 500"),
    ):
        web_server.reply = status, page
        assert words in refusal(check_dashboard, web_server.address)
    web_server.reply = 200, b'{"ray_version": "2.60.0"}'
    check_dashboard(web_server.address)
    check_dashboard(host)


def test_a_token_that_is_missing_or_wrong(monkeypatch, tmp_path, web_server):
    """At a dashboard; the head itself is asked in ``tests/jobs/test_pipeline.py``."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    web_server.reply = 401, b"Unauthorized"
    text = refusal(check_dashboard, web_server.address)
    assert "wants its token: set RAY_AUTH_MODE=token" in text
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "and there is none" in refusal(check_dashboard, web_server.address)
    web_server.reply = 403, b"Forbidden"
    for variable, value in (("RAY_AUTH_TOKEN_PATH", tmp_path / "t"), ("RAY_AUTH_TOKEN", "abc")):
        (tmp_path / "t").write_text("SECRET\n")
        monkeypatch.setenv(variable, str(value))
        where = variable if variable == "RAY_AUTH_TOKEN" else str(value)
        text = refusal(check_dashboard, web_server.address)
        assert f"refuses the token from {where}" in text
        assert "SECRET" not in text
        assert "abc" not in text


@pytest.mark.slow  # imports MLflow
@pytest.mark.parametrize(
    ("status", "page", "words"),
    [
        (500, b"oops", "HTTP status 500"),
        (503, b"busy", "HTTP status 503"),
        (200, b"<html>a page</html>", "no MLflow server"),
        (404, b"<html>a page</html>", "no MLflow server"),
        (401, b"who", "refuses the credentials"),
        (403, b"you", "refuses the credentials"),
    ],
)
def test_a_server_that_is_no_mlflow_or_a_broken_one(web_server, status, page, words):
    web_server.reply = status, page
    before = dict(os.environ)
    started = time.monotonic()
    assert words in refusal(check_tracking, web_server.address, "store")
    assert time.monotonic() - started < BAR
    assert {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_HTTP")} == {
        k: v for k, v in before.items() if k.startswith("MLFLOW_HTTP")
    }


@pytest.mark.slow  # imports MLflow
def test_an_mlflow_server_without_our_experiment_is_fine(web_server):
    web_server.reply = 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'
    check_tracking(web_server.address, "store")


@pytest.mark.slow  # imports MLflow
@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "nothing://x", "nonsense://"])
def test_what_mlflow_does_not_take(uri):
    assert refusal(check_tracking, uri, "store").startswith(
        f"cannot record runs in MLflow at '{uri}'"
    )


def test_an_sqlite_file(tmp_path):
    (tmp_path / "text").write_text("no database, although it is long enough")
    (tmp_path / "empty").touch()
    for name, words in (
        ("text", "is no sqlite file"),
        ("text/db", "is not a folder"),
        ("", "is not a file"),
    ):
        assert words in refusal(check_tracking, f"sqlite:///{tmp_path / name}", "store")
    assert "names no file" in refusal(check_tracking, "sqlite://", "store")
    check_tracking(f"sqlite:///{tmp_path / 'empty'}", "store")
    check_tracking(f"sqlite:///{tmp_path / 'new/db'}", "store")
    check_tracking(None, "store")
    assert "tracking=http://SERVER:5000" in refusal(check_tracking, None, "s3://ward/store")
    assert sorted(os.listdir(tmp_path)) == ["empty", "text"]


@pytest.mark.slow  # a real S3 server
def test_a_bucket_that_is_missing_or_forbidden(object_store, monkeypatch):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    assert "there is no bucket 'lost'" in refusal(Storage, "s3://lost/store")
    assert "there is no bucket 'gone'" in refusal(Storage, "s3://gone")
    Storage("s3://hospital/checked")

    def authorise(after):
        url = f"{object_store['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, after.encode(), plain)).close()

    authorise("0")  # from now on the server looks at credentials, and knows none
    try:
        text = refusal(Storage, "s3://hospital/store?region=eu-west-1")
    finally:
        authorise("inf")
    assert text.startswith("the object store refuses access to 's3://hospital/store'")
    assert "AWS_ACCESS_KEY_ID" in text


def test_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert unwritable(str(tmp_path / "new" / "store")) is None
    assert unwritable(str(file)) == f"'{file}' is not a folder"
    assert unwritable(str(file / "store")) == f"'{file}' is not a folder"
    assert unwritable("/sys/kernel/store") is not None or os.access("/sys/kernel", os.W_OK)
    assert not (tmp_path / "new").exists()
    store = Store(str(tmp_path / "store"))
    check_writable(store, "pool")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "pool").touch()
    assert "store/pool' is not a folder" in refusal(check_writable, store, "pool")
    check_writable(store, "scores")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_another_user(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written by this user" in refusal(check_writable, Store(str(tmp_path)))


def test_a_stage_is_checked_for_what_it_uses(tmp_path, monkeypatch, closed_port):
    dead = f"127.0.0.1:{closed_port}"
    config = StageConfig(store=str(tmp_path), address=dead, tracking=f"http://{dead}")
    for info in (*stages.STAGES.values(), *stages.BESIDE.values()):
        if info.on_ray:
            assert "cannot reach Ray" in refusal(check_stage, info, config)
        without = config.model_copy(update={"address": None})
        if info.tracked:
            assert "cannot record runs" in refusal(check_stage, info, without)
        else:
            check_stage(info, without)
