"""Indices that are kept: built once, by one process, never half, never hanging."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from llmctl.data.index_cache import DESCRIPTION, Cache
from llmctl.errors import DataError

KEY = {"seed": 1}


def built(value=7):
    return lambda: {"numbers": np.arange(value)}


def never():
    raise AssertionError("the index is there already")


def test_an_entry_is_built_once_and_then_read(tmp_path):
    cache = Cache((tmp_path / "index-cache",))
    made, kept = cache.get_or_build(KEY, built())
    again, also = cache.get_or_build(KEY, never)
    assert kept == also and again["numbers"].tolist() == made["numbers"].tolist() == list(range(7))
    assert isinstance(again["numbers"], np.memmap)
    assert sorted(path.name for path in kept.iterdir()) == [DESCRIPTION, "numbers.npy"]
    assert [path.name for path in kept.parent.iterdir()] == [kept.name], "no lock is left"
    other, elsewhere = cache.get_or_build({"seed": 2}, built(3))
    assert elsewhere != kept and len(other["numbers"]) == 3


def test_an_entry_in_any_folder_is_used(tmp_path):
    Cache((tmp_path / "a",)).get_or_build(KEY, built())
    assert Cache((tmp_path / "b", tmp_path / "a")).get_or_build(KEY, never)[1].parent == tmp_path / "a"


@pytest.mark.parametrize("name", ["numbers.npy", DESCRIPTION])
@pytest.mark.parametrize("content", [None, b"\x93NUMPY half of it", b""])
def test_a_damaged_entry_is_built_again(tmp_path, name, content):
    cache = Cache((tmp_path,))
    _, kept = cache.get_or_build(KEY, built())
    (kept / name).unlink()
    if content is not None:
        (kept / name).write_bytes(content)
    assert len(cache.get_or_build(KEY, built(9))[0]["numbers"]) == 9
    assert len(cache.get_or_build(KEY, never)[0]["numbers"]) == 9


def test_a_folder_that_cannot_be_written_is_passed_over_with_a_word(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be cached in .*file"):
        _, kept = Cache((tmp_path / "file", tmp_path / "b")).get_or_build(KEY, built())
    assert kept.parent == tmp_path / "b"
    with (
        pytest.warns(UserWarning, match="the index is not cached, and the next run builds it again"),
        pytest.warns(UserWarning, match="cannot be cached"),
    ):
        found, nowhere = Cache((tmp_path / "file",)).get_or_build(KEY, built())
    assert nowhere is None and len(found["numbers"]) == 7


def test_a_full_disk_is_passed_over_with_a_word(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for module, name in ((os, "pwrite"), (np, "save")):
            patch.setattr(module, name, full)
        with (
            pytest.warns(UserWarning, match="disk full"),
            pytest.warns(UserWarning, match="the index is not cached, and the next run builds it again"),
        ):
            found, nowhere = Cache((tmp_path,)).get_or_build(KEY, built())
    assert nowhere is None and len(found["numbers"]) == 7 and not list(tmp_path.iterdir())


@pytest.fixture
def builder(tmp_path):
    """Another process in the middle of building the entry."""
    program = textwrap.dedent(f"""
        import sys, numpy as np
        from pathlib import Path
        from llmctl.data.index_cache import Cache

        def build():
            print("building", flush=True)
            sys.stdin.readline()
            return {{"numbers": np.arange(5)}}

        Cache((Path({str(tmp_path)!r}),)).get_or_build({KEY!r}, build)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout.readline() == "building\n"
    yield process
    process.kill()
    process.communicate()


def test_another_builder_is_waited_for_and_named(tmp_path, builder):
    said = []

    def say(line):
        said.append(line)
        builder.stdin.write("\n")
        builder.stdin.flush()

    found, _ = Cache((tmp_path,), notify=say).get_or_build(KEY, never)
    assert len(found["numbers"]) == 5
    assert len(said) == 1 and f"process {builder.pid} on {os.uname().nodename}" in said[0]


def test_waiting_has_an_end(tmp_path, builder):
    with pytest.raises(DataError, match=f"still being built by process {builder.pid} on .* after 0 seconds"):
        Cache((tmp_path,), wait=0).get_or_build(KEY, never)


def test_a_killed_builder_stands_in_nobodys_way(tmp_path, builder):
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert list(tmp_path.glob("*.lock")), "what it left behind is still there"
    found, kept = Cache((tmp_path,), wait=0).get_or_build(KEY, built())
    assert len(found["numbers"]) == 7 and [path.name for path in tmp_path.iterdir()] == [kept.name]
