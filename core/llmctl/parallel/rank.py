"""Which of the ranks this process is, as its environment says, and what it reports when it fails. Nothing here imports paddle."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import ConfigError, LlmctlError
from llmctl.io.atomic import atomic_file
from llmctl.io.json_object import parse_json
from llmctl.runtime import children, streams

NUMBER, SIZE = "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"
"""Environment variables that paddle's distributed runtime reads as well."""

LAUNCHER, REPORTS, RESTARTS, NODES = "LLMCTL_LAUNCHER", "LLMCTL_REPORTS", "LLMCTL_RESTARTS", "LLMCTL_NODES"
"""Environment variables of our launcher: its process, the folder of reports, how often the ranks were started again, and the
number of machines if there are several."""


ON_FAILURE: list[Callable[[str], object]] = []
"""Called with the reason before a rank ends because of an error."""

USER_ERROR = 2
"""Exit code of a mistake of the user, which another start would not mend."""

WHERE = signal.SIGUSR2
"""The signal that makes a rank print where it is."""


MISTAKE = "; starting again would not help"
"""What follows the reason of a rank that failed by a mistake of the user, such as one in the configuration."""


class PeerLost(RuntimeError):
    """Another rank failed or left, so that this one cannot go on."""

    @property
    def code(self) -> int:
        """The exit code: that of a mistake of the user if the other one made one, which is not to be tried again."""
        return USER_ERROR if str(self).endswith(MISTAKE) else 1


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
        text: A traceback, or the message of an error that the user can fix.
        code: Its exit code.
        peer_lost: Whether it failed because another one did.
        time: When, in seconds since the epoch.
    """

    rank: int
    text: str
    code: int
    peer_lost: bool
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
    if LAUNCHER not in os.environ:
        try:
            yield
        except PeerLost as error:
            print(f"error: {error}", file=sys.stderr)
            leave(error.code)
        except LlmctlError as error:
            _tell(f"{error}{MISTAKE}")
            raise
        except Exception as error:
            _tell(f"{type(error).__name__}: {error}")
            raise
        return
    children.end_with_parent(int(os.environ[LAUNCHER]))
    faulthandler.register(WHERE, all_threads=False)
    try:
        yield
    except Exception as error:
        own = isinstance(error, LlmctlError)
        short = own or isinstance(error, PeerLost)
        text = f"error: {error}" if short else "".join(traceback.format_exception(error)).rstrip()
        code = USER_ERROR if own else error.code if isinstance(error, PeerLost) else 1
        _tell(f"{error}{MISTAKE if own else ''}" if short else text.splitlines()[-1])
        _write(Path(os.environ[REPORTS]), Report(rank.number, text, code, isinstance(error, PeerLost), time.time()))
        leave(code)


def _tell(reason: str) -> None:
    """Makes the other ranks stop waiting for this one."""
    for tell in ON_FAILURE:
        with contextlib.suppress(Exception):
            tell(reason)


def leave(code: int) -> None:
    """Ends this process at once: paddle's teardown waits for ranks that are gone."""
    streams.flush(code)
    sys.stderr.flush()
    os._exit(code)


def _write(folder: Path, report: Report) -> None:
    with atomic_file(folder / f"{report.rank}.json") as file:
        file.write_text(json.dumps(vars(report)), encoding="utf-8")


def read_reports(folder: Path) -> list[Report]:
    """The reports in a folder: first those of ranks that failed by themselves, the earliest first."""
    reports = [Report(**parse_json(file.read_text(encoding="utf-8"))) for file in folder.glob("*.json")]
    return sorted(reports, key=lambda report: (report.peer_lost, report.time))
