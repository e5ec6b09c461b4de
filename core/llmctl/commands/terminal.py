"""A chat at a terminal: lines are edited and remembered, Ctrl-C stops an answer, messages may have several lines."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from llmctl.commands.messages import Messages
from llmctl.errors import DataError

if TYPE_CHECKING:
    from llmctl.infer.sampling import SamplingParams
    from llmctl.infer.text.generator import TextGenerator

FENCE = '"""'
KEPT = 1000
"""Lines of the history that are kept."""


def chat(generator: TextGenerator, params: SamplingParams, system: str | None, say: Messages) -> None:
    """Chats until the user leaves.

    Args:
        generator: Answers.
        params: How tokens are chosen.
        system: System prompt, if any.
        say: Prints notes.
    """
    from llmctl.infer.text.chat import Chat

    if generator.tokenizer.chat_template is None:
        say.note("The model has no chat template: each message is answered without the ones before it.")
    interactive = sys.stdin.isatty()
    if interactive:
        say.note("/help lists commands, Ctrl-D ends the chat.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # So that bytes which are no text are seen by `checked`.
        sys.stdin.reconfigure(errors="surrogateescape")

    def speed(tokens: int, rate: float, cut: bool) -> None:
        end = "; cut at --max-new-tokens" if cut and tokens == params.max_new_tokens else "; cut" if cut else ""
        say.note(f"[{tokens} tokens, {rate:.1f} tokens/s{end}]")

    with _editing() if interactive else contextlib.nullcontext(), _Stop() as stop:
        reader = Reader(_read_line, lambda text: click.echo(text, err=True))

        def ask() -> str | None:
            stop.answering = stop.stopped = False
            try:
                return reader.message()
            finally:
                stop.answering = True

        Chat(
            generator, params, system, ask, lambda piece: click.echo(piece, nl=False),
            lambda text: click.echo(text, err=True), lambda: stop.stopped, speed if interactive else None,
        ).run()  # fmt: skip
    if interactive:
        click.echo(err=True)


class Reader:
    '''Reads messages: a line, lines that end in a backslash with the next one, or lines between two """.

    Args:
        read: Reads a line after a prompt; None = end of input.
        notice: Says what is wrong with a message.
    '''

    def __init__(self, read: Callable[[str], str | None], notice: Callable[[str], None]) -> None:
        self._read, self._notice = read, notice

    def message(self) -> str | None:
        """The next message; None at the end of input."""
        while True:
            try:
                text = self._lines()
                return text if text is None else checked(text, "the message")
            except KeyboardInterrupt:
                self._notice("\n(Ctrl-D or /exit ends the chat)")
            except DataError as error:
                self._notice(str(error))

    def _lines(self) -> str | None:
        line = self._read("> ")
        if line is not None and line.lstrip().startswith(FENCE):
            return self._fenced(line.lstrip().removeprefix(FENCE))
        lines = []
        while line is not None and line.endswith("\\"):
            lines.append(line[:-1])
            line = self._read(". ")
        if line is None and not lines:
            return None
        return "\n".join([*lines, line or ""])

    def _fenced(self, first: str) -> str:
        lines, line = [], first
        while not line.rstrip().endswith(FENCE):
            lines.append(line)
            following = self._read(". ")
            if following is None:
                return "\n".join(lines)
            line = following
        return "\n".join([*lines, line.rstrip().removesuffix(FENCE)]).lstrip("\n").rstrip()


def checked(text: str, where: str) -> str:
    """The text, if its bytes were valid UTF-8.

    Args:
        text: The text.
        where: What it is, for the message.

    Raises:
        DataError: They were not.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where} is not valid UTF-8; convert it, e.g. with iconv") from None
    return text


def _read_line(prompt: str) -> str | None:
    """A line of standard input without its end; None at the end of input. A pipe gets no prompt."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return input(prompt)
        except EOFError:
            return None
    if sys.stdin.isatty():
        click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


class _Stop:
    """What Ctrl-C does while the block is entered.

    Attributes:
        answering: Whether an answer is being given, which Ctrl-C stops; else it interrupts what is read.
        stopped: Whether the answer was stopped. Ctrl-C once more ends the chat.
    """

    answering = stopped = False

    def __enter__(self) -> _Stop:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.answering or self.stopped:
            raise KeyboardInterrupt
        self.stopped = True


@contextlib.contextmanager
def _editing() -> Iterator[None]:
    """Line editing by readline, if there is one, with the lines of earlier chats."""
    try:
        import readline
    except ImportError:
        yield
        return
    file = history_file()
    readline.set_history_length(KEPT)
    if file is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(file)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                readline.write_history_file(file)


def history_file() -> Path | None:
    """The file of the lines of earlier chats, which exists; None where there is no place that only the user can read."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(os.path.expanduser("~")) / ".local" / "state"
    folder = home / "llmctl"
    file = folder / "chat_history"
    if not home.is_absolute():
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not through a link, and not what another user has put there.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        mine = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
        return file if mine else None
    finally:
        os.close(descriptor)
