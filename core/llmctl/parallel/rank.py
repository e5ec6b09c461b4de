"""Which of the ranks this process is, as its environment says, and what it reports when it fails. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from llmctl.errors import ConfigError, LlmctlError
from llmctl.io.json_object import as_json, parse_json
from llmctl.runtime import children, streams
from llmctl.runtime.endings import ending

NUMBER, SIZE = "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"
"""Environment variables that paddle's distributed runtime reads as well."""

LAUNCHER, REPORT, RESTARTS, NODES = "LLMCTL_LAUNCHER", "LLMCTL_REPORT", "LLMCTL_RESTARTS", "LLMCTL_NODES"
"""Environment variables of our launcher: its process, the open file for the report, how often the ranks were started again, and the
number of machines if there are several."""

WHERE = signal.SIGUSR2
"""The signal that makes a rank print where it is."""

OWN, KNOWN, LOST = CAUSES = "own", "known", "lost"
"""Why a rank failed: by itself; because of another one, for a reason that is known; because another one did not come."""


class PeerLost(RuntimeError):
    """Another rank failed or left, so that this one cannot go on.

    Args:
        text: What happened.
        code: The exit code of the other rank, which becomes that of this one.
        cause: ``KNOWN`` or ``LOST``.
    """

    def __init__(self, text: str, code: int = 1, cause: str = LOST) -> None:
        super().__init__(text)
        self.code, self.cause = code, cause


Tell = Callable[[str, int, bool], PeerLost | None]
"""(reason, exit code, whether the others are waited for until they have heard it) -> what another rank told before; None = nothing."""

ON_FAILURE: list[Tell] = []
"""Called before a rank ends because of an error."""


@contextlib.contextmanager
def other_ranks(what: str) -> Iterator[None]:
    """What fails while others are waited for comes from them, unless it is lack of memory or a wrong argument.

    Args:
        what: What they were to come to.

    Raises:
        PeerLost: Another rank did not come.
    """
    try:
        yield
    except (PeerLost, MemoryError, TypeError, ValueError):
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise PeerLost(f"another rank did not come to {what}: {text[-1] if text else type(error).__name__}") from error


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together.

    Attributes:
        number: From 0.
        size: How many there are.
    """

    number: int
    size: int


@dataclass(frozen=True)
class Report:
    """Why a rank failed.

    Attributes:
        rank: Its number.
        text: A traceback, or the message of an error that the user can fix; empty = there is nothing to say.
        code: Its exit code.
        cause: One of ``CAUSES``.
        time: When, in seconds of ``time.monotonic``.
    """

    rank: int
    text: str
    code: int
    cause: str
    time: float


def from_environment(environ: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank of this process; None = it trains alone.

    Args:
        environ: The environment.

    Raises:
        ConfigError: A variable is not a number, or out of range.
    """
    if environ.get(SIZE, "1") == "1":
        return None
    try:
        rank = Rank(int(environ[NUMBER]), int(environ[SIZE]))
    except (KeyError, ValueError):
        rank = Rank(-1, 0)
    if not 0 <= rank.number < rank.size:
        raise ConfigError(
            f"the environment has {SIZE}={environ[SIZE]!r} and {NUMBER}={environ.get(NUMBER)!r}: both must be numbers, the "
            "second below the first; unset them to train in one process"
        )
    return rank


@contextlib.contextmanager
def reporting(rank: Rank) -> Iterator[None]:
    """In a process of our launcher, what is raised is written for the launcher, which shows it once, and ends the process.

    Such a process also ends when the launcher does. In one of another launcher what comes from other ranks is one line.

    Args:
        rank: That of this process.
    """
    if LAUNCHER in os.environ:
        children.end_with_parent(int(os.environ[LAUNCHER]))
        faulthandler.register(WHERE, all_threads=False)
    try:
        yield
    except Exception as error:
        lost = _lost(error)
        if lost:
            end_with(rank, lost)
        if LAUNCHER not in os.environ:
            raise
        text, code = ending(error) or ("".join(traceback.format_exception(error)).rstrip(), 1)
        _leave(Report(rank.number, text, code, OWN, time.monotonic()))


def end_with(rank: Rank, error: PeerLost) -> None:
    """Ends this process because another rank failed.

    Args:
        rank: That of this process.
        error: What is known of it.
    """
    if LAUNCHER in os.environ:
        _leave(Report(rank.number, f"error: {error}", error.code, error.cause, time.monotonic()))
    # Where the main thread waits, and a thread calls this, Python's streams may be those that silence paddle.
    with contextlib.suppress(OSError):
        os.write(2, f"error: {error}\n".encode(errors="replace"))
    leave(error.code)


def _lost(error: Exception) -> PeerLost | None:
    """Makes the other ranks stop waiting for this one; returns what is known of another rank, if the error comes from there.

    What fails once another rank has told that it failed is taken to come from there, but for what has a message of its own.
    """
    said = ending(error)
    if isinstance(error, PeerLost):
        return _tell(str(error), error.code, False) or error
    reason = str(error) if isinstance(error, LlmctlError) else traceback.format_exception_only(error)[-1].strip()
    told = _tell(reason, said[1] if said else 1, True)
    return None if said else told


def _tell(reason: str, code: int, waits: bool) -> PeerLost | None:
    """Tells the others; returns what another rank told before."""
    told = None
    for tell in ON_FAILURE:
        with contextlib.suppress(Exception):
            told = told or tell(reason, code, waits)
    return told


def stop(text: str, code: int) -> None:
    """Makes the other ranks stop waiting for this one, which ends although it did not fail.

    Args:
        text: Why.
        code: Its exit code, which becomes theirs.
    """
    _tell(text, code, True)


def leave(code: int) -> None:
    """Ends this process at once: paddle's teardown waits for ranks that are gone."""
    flushed = streams.flush(code)
    sys.stderr.flush()
    os._exit(code or flushed)


def _leave(report: Report) -> None:
    with open(int(os.environ[REPORT]), "wb", closefd=False) as file:
        file.write(as_json(vars(report)))
    leave(report.code)


def read_reports(files: Iterable[IO[bytes]]) -> list[Report]:
    """The reports of ranks that have ended: first those of ranks that failed by themselves, the earliest first."""
    contents = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in files]
    # One that is not complete is of a rank that was killed meanwhile.
    reports = [Report(**parse_json(content)) for content in contents if content.endswith(b"}")]
    return sorted(reports, key=lambda report: (CAUSES.index(report.cause), report.time))
