"""Standard streams that are closed, full, or of an encoding that lacks characters: commands still end in an orderly way."""

from __future__ import annotations

import errno
import os
import sys

LOST = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


def prepare() -> None:
    """Opens streams that the caller closed, and writes characters that an encoding lacks as escapes."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            if not _is_open(number):
                os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_output_error(error: OSError) -> bool:
    """Whether an error says that standard output takes no more, a full disk for instance."""
    return error.errno in LOST and error.filename is None


def output_lost(error: OSError) -> str:
    """What to say of it."""
    return f"error: standard output cannot be written: {error.strerror}"


def drop_output() -> None:
    """Sends standard output nowhere; without this, Python reports a second error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    finally:
        os.close(nowhere)


def flush(code: int) -> int:
    """Writes what is buffered; returns the exit code, another one if writing fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return 141
    except OSError as error:
        drop_output()
        print(output_lost(error), file=sys.stderr)
        return 1
    except ValueError:
        pass
    return code


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
