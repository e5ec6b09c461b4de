"""Progress: silent for what ends soon, then a line that is redrawn on a terminal, or lines far apart elsewhere."""

import io
import time

import pytest

from llmctl.io.progress import Progress, silent


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def said(monkeypatch, clock, stream, total, term="xterm", quiet=False):
    """What is said of ten steps that take 15 seconds."""
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", term)
    with silent(quiet), Progress("reading a.jsonl", total) as progress:
        for _ in range(10):
            clock[0] += 1.5
            progress(100)
    return stream.getvalue()


def test_what_takes_less_than_two_seconds_is_silent(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("reading", 10) as progress:
        for _ in range(9):
            clock[0] += 0.2
            progress(1)
    assert stream.getvalue() == ""


def test_a_terminal_shows_one_line_that_is_gone_at_the_end(monkeypatch, clock):
    text = said(monkeypatch, clock, Terminal(), 1000)
    parts = text.split("\r\x1b[K")
    assert parts[1] == "reading a.jsonl: 20%, 12 s left" and parts[-2] == "reading a.jsonl: 100%, 0 s left"
    assert text.endswith("\r\x1b[K") and "\n" not in text


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_where_nothing_can_be_redrawn_there_are_few_lines(monkeypatch, clock, stream, term):
    text = said(monkeypatch, clock, stream, 1000, term)
    assert text == "reading a.jsonl: 20%, 12 s left\nreading a.jsonl: 90%, 1 s left\n"


def test_an_unknown_total_is_counted_and_a_quiet_run_says_nothing(monkeypatch, clock):
    assert said(monkeypatch, clock, io.StringIO(), 0).startswith("reading a.jsonl: 200 in 3 s\n")
    assert said(monkeypatch, clock, io.StringIO(), 1000, quiet=True) == ""
