"""Answers to a file that survive an interruption: the same command continues after the last answer that was written.

Until all answers are there they are in ``.NAME.answers`` next to the output NAME: a line on the input and the options, then a
line for each answer as it ends. However the process ends, all lines but the last are complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from llmctl.errors import ConfigError
from llmctl.io.atomic import atomic_file, explain_os_errors
from llmctl.io.lock import try_flock
from llmctl.io.typed import Count
from llmctl.io.written import parse_written


class ResumableOutput:
    """The answers so far. Use it in a ``with`` statement, which closes it.

    Args:
        output: The file to be written.
        settings: What must be the same when a run continues, by name; JSON values.

    Attributes:
        rows: Index of a prompt -> its row.

    Raises:
        ConfigError: There are answers of another input or other options, the file of answers is damaged, or it is in use.
        FileError: It cannot be written.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.output, self.path = output, output.with_name(f".{output.name}.answers")
        self.rows: dict[int, dict[str, Any]] = {}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that what could not be written does not fail again when it is closed.
            self._stream = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"--output {output}: {error.filename} cannot be written: {error.strerror}; name another file"
            ) from None
        try:
            with explain_os_errors(self.path):
                self._lock()
                self._read(json.loads(json.dumps(dict(settings))))
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> ResumableOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Keeps the answer to a prompt.

        Raises:
            FileError: It cannot be written.
        """
        self.rows[index] = row
        with explain_os_errors(
            self.path, f"; the {len(self.rows) - 1} answers before are kept, repeat the command to continue"
        ):
            self._write([index, row])

    def finish(self) -> None:
        """Writes the output in the order of the prompts, and removes the file of answers so far.

        Raises:
            FileError: It cannot be written.
        """
        with atomic_file(self.output) as path, path.open("w", encoding="utf-8") as stream:
            stream.writelines(line(self.rows[index]) for index in sorted(self.rows))
        self.path.unlink()

    def _lock(self) -> None:
        if try_flock(self._stream.fileno()) is False:
            raise ConfigError(f"{self.path} is in use: another run is writing {self.output}")

    def _read(self, settings: dict[str, Any]) -> None:
        self._stream.seek(0)
        content = self._stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._stream.truncate(len(whole))
        self._stream.seek(0, 2)
        if not whole:
            self._write(settings)
            return
        try:
            before, *lines = whole.decode("utf-8").splitlines()
            before = parse_written(before, dict[str, Any])
            rows = [parse_written(line, tuple[Count, dict[str, Any]]) for line in lines]
            self.rows = {index: row for index, row in rows}
            changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        except ValueError as error:
            raise ConfigError(
                f"{self.path} is not what llmctl writes ({error}); remove it, or name another --output"
            ) from None
        if changed and not rows:
            self._stream.truncate(0)
            self._write(settings)
        elif changed:
            what = "; ".join(f"{key}: {before.get(key)!r} then, {settings.get(key)!r} now" for key in changed)
            raise ConfigError(
                f"{self.path} holds {len(rows)} answers of an interrupted run with other settings ({what}). Repeat that run to "
                "finish it, or remove that file to start again"
            )

    def _write(self, content: Any) -> None:
        left = memoryview(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        while left:
            left = left[self._stream.write(left) :]


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of a file."""
    return json.dumps(row, ensure_ascii=False) + "\n"
