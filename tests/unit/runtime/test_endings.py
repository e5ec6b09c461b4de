"""What a command says of an error that ends it."""

import errno
import os

import pytest

from llmctl.errors import DataError
from llmctl.runtime import streams
from llmctl.runtime.endings import ending


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (DataError("line 3 is empty"), "error: line 3 is empty", 2),
        (MemoryError(), "error: not enough memory", 2),
        (MemoryError("9 TiB"), "error: not enough memory: 9 TiB", 2),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), "", 141),
        (OSError(errno.ENOSPC, "disk full"), "error: standard output cannot be written: disk full", 1),
    ],
)
def test_an_error_has_a_message_and_an_exit_code(error, said, code, monkeypatch):
    dropped = []
    monkeypatch.setattr(streams, "drop_output", lambda: dropped.append(True))
    assert ending(error) == (said, code)
    assert bool(dropped) == isinstance(error, OSError)


@pytest.mark.parametrize("error", [ValueError("boom"), OSError(errno.ENOSPC, "disk full", "/a")])
def test_other_errors_have_none(error):
    assert ending(error) is None
