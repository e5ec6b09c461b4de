"""Errors of the system that no command explains are a line, whatever they are; files have the permissions that the umask allows."""

import errno
import os
import stat

import pytest

from llmctl import cli
from llmctl.commands import env
from llmctl.io.atomic import atomic_file, atomic_folder


def run(monkeypatch, error):
    def fails(*args, **settings):
        raise error

    monkeypatch.setattr(env.command, "callback", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main(["env"])
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a/b"), "error: /a/b: Permission denied\n"),
        (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), "error: No locks available\n"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/a"), "error: /a: File too large\n"),
        (MemoryError("Unable to allocate 9 TiB"), "error: not enough memory: Unable to allocate 9 TiB\n"),
        (MemoryError(), "error: not enough memory\n"),
    ],
)
def test_an_error_of_the_system_is_one_line(monkeypatch, capsys, error, message):
    assert run(monkeypatch, error) == 2
    assert capsys.readouterr().err == message


def test_strict_shows_where_it_came_from(monkeypatch):
    monkeypatch.setenv("LLMCTL_STRICT", "1")
    monkeypatch.setattr(
        env.command, "callback", lambda **settings: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks"))
    )
    with pytest.raises(OSError, match="no locks"):
        cli.main(["env"])


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_umask_allows(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "folder") as work:
            (work / "a").write_text("")
        with atomic_file(tmp_path / "file") as file:
            file.write_text("")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"folder": 0o777 & ~mask, "a": 0o666 & ~mask, "file": 0o666 & ~mask}
