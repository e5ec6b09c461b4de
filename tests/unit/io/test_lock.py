import contextlib
import errno
import json
import multiprocessing
import os
import socket

import pytest

from llmctl.io import lock


def hold_until_told(path, pipe):
    with lock.hold(path):
        pipe.send("held")
        pipe.recv()


@contextlib.contextmanager
def another_process(path):
    """A process that holds the lock file."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_until_told, args=(path, theirs))
    process.start()
    try:
        assert ours.recv() == "held"
        yield process, ours
    finally:
        process.kill()
        process.join()


def test_a_lock_names_its_holder_and_is_deleted_afterwards(tmp_path):
    path = tmp_path / ".lock"
    with lock.hold(path):
        who = json.loads(path.read_text())
        assert (who["pid"], who["host"]) == (os.getpid(), socket.gethostname()) and who["started"] and who["command"]
    assert not path.exists()


def test_another_process_is_refused_and_told_who_holds_the_lock(tmp_path):
    path = tmp_path / ".lock"
    with another_process(path) as (process, _):
        with pytest.raises(lock.Busy, match=rf"process {process.pid} on {socket.gethostname()} \(since 20.*\)"):
            with lock.hold(path):
                pass
        assert path.exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    path = tmp_path / ".lock"
    with another_process(path) as (process, _):
        process.kill()
        process.join()
        assert path.exists()
        with lock.hold(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_waiting_ends_when_the_holder_does(tmp_path):
    path, told = tmp_path / ".lock", []
    with another_process(path) as (process, pipe):

        def on_wait(holder):
            told.append(holder)
            pipe.send("end")

        with lock.hold(path, wait=60, on_wait=on_wait):
            pass
    assert len(told) == 1 and f"process {process.pid}" in told[0]


def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_flock_the_creator_of_the_file_holds_the_lock(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    monkeypatch.setattr(lock.fcntl, "flock", no_flock)
    with lock.hold(path):
        with pytest.raises(lock.Busy, match=f"if that process has ended, delete {path}"):
            with lock.hold(path):
                pass
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00" * 9])
def test_a_damaged_description_is_another_process(tmp_path, monkeypatch, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    monkeypatch.setattr(lock.fcntl, "flock", no_flock)
    with pytest.raises(lock.Busy, match="another process"):
        with lock.hold(path):
            pass
