"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from llmctl.checkpoint import atomic_file, atomic_folder
from llmctl.errors import FileError
from llmctl.io import atomic


def write(folder, text):
    (folder / "a.txt").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "b.txt").write_text(text)


def listing(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "runs" / "one"
    with atomic_folder(target) as temporary:
        write(temporary, "new")
        assert not target.exists()
    assert (target / "sub" / "b.txt").read_text() == "new"
    assert listing(target.parent) == ["one"]


def test_an_exception_leaves_the_old_folder_and_no_temporary(tmp_path):
    target = tmp_path / "one"
    with atomic_folder(target) as temporary:
        write(temporary, "old")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as temporary:
        write(temporary, "new")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["one"]


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_replaces_the_whole_folder(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    target = tmp_path / "one"
    with atomic_folder(target) as temporary:
        write(temporary, "old")
        (temporary / "only_old").touch()
    with atomic_folder(target, overwrite=True) as temporary:
        write(temporary, "new")
    assert listing(target) == ["a.txt", "sub"]
    assert (target / "a.txt").read_text() == "new"
    assert listing(tmp_path) == ["one"]


def test_an_exchange_in_two_steps_that_was_interrupted_is_undone(tmp_path):
    previous = tmp_path / ".one.previous"
    previous.mkdir()
    (previous / "a.txt").write_text("old")
    with pytest.raises(FileError, match="already exists"), atomic_folder(tmp_path / "one"):
        pass
    assert (tmp_path / "one" / "a.txt").read_text() == "old"


def test_without_overwrite_a_filled_folder_is_refused_and_an_empty_one_taken(tmp_path):
    target = tmp_path / "one"
    target.mkdir()
    with atomic_folder(target) as temporary:
        write(temporary, "new")
    with pytest.raises(FileError, match="already exists"), atomic_folder(target):
        pass


def test_a_full_disk_is_explained_and_the_previous_content_intact(tmp_path):
    target = tmp_path / "one"
    with atomic_folder(target) as temporary:
        write(temporary, "old")
    with pytest.raises(FileError, match=f"disk full while writing {target}; the previous {target} is intact"):
        with atomic_folder(target, overwrite=True) as temporary:
            write(temporary, "new")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (target / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["one"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_real_write_without_space_is_explained(tmp_path):
    with pytest.raises(FileError, match="disk full while writing"), atomic_file(tmp_path / "best.json"):
        with open("/dev/full", "w") as stream:
            stream.write("x")
    assert listing(tmp_path) == []


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write"), atomic_folder(tmp_path / "file" / "one"):
        pass


def test_other_exceptions_of_the_block_keep_their_type(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        (tmp_path / "absent").read_text()


def test_a_file_is_replaced_in_one_step(tmp_path):
    target = tmp_path / "best.json"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("newer")
        raise RuntimeError
    assert target.read_text() == "new"
    assert listing(tmp_path) == ["best.json"]


def test_a_file_takes_the_place_of_no_pipe_device_or_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(FileError, match=f"{name} is not a regular file"), atomic_file(tmp_path / name):
            pass
    assert listing(tmp_path) == ["folder", "pipe"] and (tmp_path / "pipe").is_fifo()


KILLED = """
import os, signal, sys
from llmctl.checkpoint import atomic_folder
with atomic_folder(sys.argv[1], overwrite=True) as temporary:
    (temporary / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "one"
    with atomic_folder(target) as temporary:
        write(temporary, "old")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(target)], env=dict(os.environ, PYTHONPATH=":".join(sys.path))
    )
    assert killed.returncode == -signal.SIGKILL
    assert (target / "a.txt").read_text() == "old"
    assert len(listing(tmp_path)) == 2
    with atomic_folder(target, overwrite=True) as temporary:
        write(temporary, "new")
    assert listing(tmp_path) == ["one"]


def test_the_temporary_of_a_living_writer_is_left_alone(tmp_path):
    target = tmp_path / "one"
    with atomic_folder(target) as first:
        write(first, "first")
        with atomic_folder(target) as second:
            write(second, "second")
        assert (first / "a.txt").read_text() == "first"
        (target / "a.txt").unlink()
        (target / "sub" / "b.txt").unlink()
        (target / "sub").rmdir()
    assert (target / "a.txt").read_text() == "first"


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in ("/proc/made", "/proc/of/many", tmp_path / "file" / "folder"):
        with pytest.raises(FileError, match=f"cannot write {place}"):
            atomic.check_writable(place)
        with pytest.raises(FileError, match=f"cannot write {place}"), atomic_folder(place):
            pass


def test_trying_a_place_leaves_nothing_there(tmp_path):
    atomic.check_writable(tmp_path / "runs" / "one")
    atomic.check_writable(tmp_path)
    assert not listing(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EFBIG, "File too large"),
        OSError(errno.ENOLCK, "No locks available"),
        PermissionError(errno.EACCES, "Permission denied", "a.txt"),
        OSError("12 requested and 0 written"),
    ],
)
def test_every_error_of_the_system_names_what_was_written(tmp_path, error):
    text = error.strerror or str(error)
    with pytest.raises(FileError, match=f"cannot write {tmp_path / 'one'}: {text}.*; nothing was written"):
        with atomic_folder(tmp_path / "one"):
            raise error
    assert listing(tmp_path) == []


def test_a_closed_pipe_keeps_its_type(tmp_path):
    with pytest.raises(BrokenPipeError), atomic_file(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", ["file", "link", "folder", "empty", "absent"])
def test_a_published_folder_takes_the_place_of_whatever_was_there(tmp_path, monkeypatch, exchange, kind):
    if not exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    target, work, other = tmp_path / "one", tmp_path / ".one.work", tmp_path / "other"
    work.mkdir()
    other.mkdir()
    write(work, "new")
    write(other, "other")
    if kind == "file":
        target.write_text("old")
    elif kind == "link":
        target.symlink_to(other)
    elif kind != "absent":
        target.mkdir()
    if kind == "folder":
        write(target, "old")
    atomic.publish_folder(work, target)
    assert not target.is_symlink() and (target / "a.txt").read_text() == "new"
    assert (other / "a.txt").read_text() == "other"
    assert listing(tmp_path) == ["one", "other"]
