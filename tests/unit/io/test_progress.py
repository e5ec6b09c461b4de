"""Progress: silent for what ends soon, then a line that is redrawn on a terminal, or lines far apart elsewhere."""

import io
import sys
import threading
import time

import pytest

from llmctl.io import progress
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
    with silent(quiet), Progress("reading a.jsonl", total) as done:
        for _ in range(10):
            clock[0] += 1.5
            done(100)
    return stream.getvalue()


def test_what_takes_less_than_two_seconds_is_silent(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with Progress("reading", 10) as done:
        for _ in range(9):
            clock[0] += 0.2
            done(1)
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


@pytest.fixture
def standard_error(monkeypatch):
    """Makes a stream of a kind standard error; there is no patience."""
    monkeypatch.setattr(progress, "LINE", 0.0)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")

    def stream(kind=io.StringIO):
        made = kind()
        monkeypatch.setattr(sys, "stderr", made)
        return made

    return stream


def wait_until_said(stream):
    """Enters ``waiting``, and leaves it when it has said something."""
    spoken, write = threading.Event(), stream.write
    stream.write = lambda text: (write(text), spoken.set())
    with progress.waiting("thinking"):
        assert spoken.wait(10)


def test_parts_are_counted(standard_error):
    stream = standard_error()
    assert list(progress.tracked([1, 2], "doing", 2)) == [1, 2]
    assert stream.getvalue().splitlines()[0] == "doing: 50%, 0 s left"


def test_a_line_is_redrawn_on_a_terminal_that_can(standard_error, monkeypatch):
    stream = standard_error(Terminal)
    list(progress.tracked([1, 2], "doing", 2))
    assert stream.getvalue().startswith("\r\x1b[Kdoing: 50%") and stream.getvalue().endswith("\r\x1b[K")
    monkeypatch.setenv("TERM", "dumb")
    stream = standard_error(Terminal)
    list(progress.tracked([1, 2], "doing", 2))
    assert "\x1b" not in stream.getvalue() and stream.getvalue().startswith("doing: 50%")


def test_what_is_waited_for_is_named_once_and_wiped_on_a_terminal(standard_error):
    for kind, expected in ((io.StringIO, "thinking ...\n"), (Terminal, "thinking ...\r\x1b[K")):
        stream = standard_error(kind)
        wait_until_said(stream)
        assert stream.getvalue() == expected


def test_nothing_is_said_of_what_ends_soon_or_where_it_is_not_wanted(standard_error, monkeypatch):
    stream = standard_error()
    with progress.silent():
        list(progress.tracked([1, 2], "doing", 2))
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    monkeypatch.setattr(progress, "LINE", 60.0)
    list(progress.tracked([1, 2], "doing", 2))
    with progress.waiting("thinking"):
        pass
    assert stream.getvalue() == ""
