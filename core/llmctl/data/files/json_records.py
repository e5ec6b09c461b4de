"""Records of JSON lines and of JSON lists."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from llmctl.data.files.contents import ReadBytes, open_bytes, open_lines
from llmctl.errors import DataError

CHUNK = 1 << 20
"""Characters that are read at a time of a list."""
LITERAL = 16
"""Characters at the end of what was read in which an error may be that of a literal or escape that was cut."""
_BETWEEN = re.compile(r"[ \t\r\n]*")


def lines(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[str, str | None]]:
    """The records of JSON lines.

    Raises:
        DataError: The file is one object over several lines.
    """
    found = open_lines(path, read)
    for number, text in found:
        if number == 1 and text is not None and text.strip() == "{":
            raise DataError(
                f"{path} is a JSON object over several lines; write one object a line, or a list of objects in brackets"
            )
        yield f"{path}:{number}", text


def items(path: Path, read: ReadBytes | None = None) -> Iterator[tuple[str, str | None]]:
    """The records of a JSON list, read in chunks, so that it need not fit into memory.

    Raises:
        DataError: It is no valid list.
    """
    with open_bytes(path, read) as stream:
        try:
            for number, text in enumerate(_List(io.TextIOWrapper(stream, "utf-8-sig")), 1):
                yield f"{path}:item {number}", text
        except UnicodeDecodeError:
            raise DataError(f"{path} is not valid UTF-8; convert it, e.g. with iconv") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} begins as a JSON list and is not a valid one: {error}; write it again") from None


class _List:
    """The texts of the items of a list.

    Args:
        stream: The list.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream, self._text, self._at, self._line, self._ended = stream, "", 0, 1, False

    def __iter__(self) -> Iterator[str]:
        self._expect("[")
        if self._next() == "]":
            self._at += 1
        else:
            yield self._item()
            while self._expect(",]") == ",":
                yield self._item()
        if self._next():
            raise ValueError(f"something follows the list in line {self._line_at(self._at)}")

    def _item(self) -> str:
        self._next()
        wait = 0
        while True:
            try:
                _, end = json.JSONDecoder().raw_decode(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                wait, line = max(2 * wait, CHUNK), self._line_at(error.pos)
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - LITERAL
                if not (cut and self._more(wait)):
                    raise ValueError(f"{error.msg} in line {line}") from None
        text, self._at = self._text[self._at : end], end
        return text

    def _expect(self, marks: str) -> str:
        found = self._next()
        if not found or found not in marks:
            what = f"{found!r} in line {self._line_at(self._at)}" if found else "the end of the file"
            raise ValueError(f"expected {' or '.join(marks)}, found {what}")
        self._at += 1
        return found

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _BETWEEN.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more(CHUNK):
                return self._text[self._at : self._at + 1]

    def _more(self, count: int) -> bool:
        found = self._stream.read(count)
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + found, 0
        return bool(found)

    def _line_at(self, position: int) -> int:
        return self._line + self._text.count("\n", 0, position)
