"""The server's log, a line for each event: never a prompt, an answer or a key."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """Writes records as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record: that of a request has its parts as keys."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        row = getattr(record, "row", None)
        return json.dumps(
            {"time": moment, "level": record.levelname.lower(), **(row or {"message": record.getMessage()})}
        )


def set_up(form: str, quiet: bool) -> None:
    """Sends the log to standard error.

    Args:
        form: One of ``FORMATS``.
        quiet: Whether only warnings are written.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("llmctl.serve").setLevel(logging.WARNING if quiet else logging.INFO)


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """Standard error whose lines are lost where they cannot be written, such as on a full disk, instead of ending the server."""
    stream = sys.stderr
    sys.stderr = _Lossy(stream)
    try:
        yield
    finally:
        sys.stderr = stream
        try:
            stream.flush()
        except OSError:  # what is left would make Python end with an exit code of its own
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


class _Lossy:
    """A text stream that never fails.

    Args:
        stream: Where it writes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or loses it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is held back, if that works."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
