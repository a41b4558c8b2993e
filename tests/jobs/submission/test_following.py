"""Following a job against a client that loses its connection, or never answers again."""

import io
from types import SimpleNamespace

import pytest

from echostill.jobs.submission import following
from echostill.jobs.submission.following import Follower, JobLog
from echostill.platform.errors import EchostillError, UsageError

LINES = ["one\n", "two\n", "three\n", "four\n"]


class Status(str):
    @property
    def value(self):
        return str(self)

    def is_terminal(self):
        return self not in ("PENDING", "RUNNING")


class Client:
    """As Ray's: a plan says how many lines each connection gives before it breaks (None: all)."""

    def __init__(self, plan, dead_after=None):
        self.plan, self.asked, self.opened, self.dead_after = list(plan), 0, 0, dead_after
        self.ended = False

    def get_job_info(self, name):
        self.asked += 1
        if self.dead_after is not None and self.asked > self.dead_after:
            raise ConnectionError("[Errno 111] Connection refused: " + "urllib3 " * 100)
        state = "SUCCEEDED" if self.ended else "PENDING" if self.asked == 1 else "RUNNING"
        return SimpleNamespace(status=Status(state), message="It may wait for CPUs.")

    async def tail_job_logs(self, name):
        lines = self.plan[min(self.opened, len(self.plan) - 1)]
        self.opened += 1
        for line in LINES[:lines]:
            yield line
        if lines is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        self.ended = True


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(following, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(following, "STATUS_SECONDS", 0.02)
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.2)


def follow(client):
    sink = io.StringIO()
    return Follower(client, "job", "http://head:8265", sink).follow(), sink.getvalue()


def test_each_line_is_shown_once_however_often_the_connection_is_lost(capsys):
    client = Client([1, 3, 2, None])
    info, shown = follow(client)
    assert info.status == "SUCCEEDED"
    assert shown == "".join(LINES)
    assert client.opened == 4
    said = capsys.readouterr().err
    assert "job waits to be started: It may wait for CPUs." in said
    assert "job runs" in said
    assert "the dashboard at http://head:8265 did not answer" in said


def test_a_dashboard_that_has_ended_is_one_line(capsys):
    with pytest.raises(EchostillError) as ended:
        follow(Client([1], dead_after=2))
    assert ended.value.exit_code == 1
    line = str(ended.value)
    assert "did not answer for 0.2 s (nothing listens there)" in line
    assert "`echostill submit --follow job --address http://head:8265`" in line
    assert "urllib3" not in line + capsys.readouterr().err


def test_a_job_that_the_cluster_does_not_know():
    client = Client([None])
    client.get_job_info = lambda name: (_ for _ in ()).throw(
        RuntimeError("Request failed with status code 404: Job job does not exist")
    )
    with pytest.raises(UsageError, match="knows no job of that id"):
        follow(client)


def test_pieces_of_a_log_may_be_cut_anywhere():
    sink = io.StringIO()
    log = JobLog(sink)
    text = "".join(LINES)
    for cut in range(len(text)):
        log.opened()
        log.add(text[: cut // 2])
        log.add(text[cut // 2 : cut])
        assert sink.getvalue() == text[:cut]
