"""Lines of progress where there is no terminal; the clock is the test's."""

import pytest

from echostill.platform import progress
from echostill.platform.progress import LINE_EVERY_SECONDS, Progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(progress.console, "print", lambda text, **_: said.append(text))
    return said


def test_lines_come_by_time_also_while_nothing_is_finished(clock, lines):
    bar = Progress("ingest", 3)
    for _ in range(4):  # what the thread does, of which no test waits for the clock
        clock[0] += LINE_EVERY_SECONDS
        bar._print_line()
        bar._print_line()
    assert lines == [f"ingest: 0/3, {seconds} s so far" for seconds in (15, 30, 45, 60)]


def test_a_finished_unit_says_what_is_left(clock, lines):
    bar = Progress("ingest", 3)
    bar.advance(note="first")  # pays for start-up
    clock[0] += LINE_EVERY_SECONDS
    bar.advance(note="7 rows")
    assert lines[0].startswith("ingest: 2/3, 15 s so far, about 15 s left (")
    assert lines[0].endswith("7 rows")
    bar.advance(note="too soon")
    assert len(lines) == 1


def test_nothing_is_printed_where_nobody_asked(clock, lines):
    bar = Progress("ingest", 3, enabled=False)
    with bar:
        clock[0] += 100
        bar.advance()
    assert lines == []


def test_messages_are_printed_as_the_pipeline_asks_for_them(capsys):
    messages = progress.Messages()
    messages.print("[bold]score[/bold]  1.0 s  ", end="")
    messages.print("[2 rows]", markup=False, soft_wrap=True)
    assert capsys.readouterr().err == "score  1.0 s  [2 rows]\n"
