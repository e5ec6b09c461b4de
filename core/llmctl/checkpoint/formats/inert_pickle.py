"""A pickle interpreter that only builds plain values: it imports nothing, calls nothing and sets no attributes.

Python's unpickler, even if restricted, lets a file call the globals that it may name and modify the results. This one
supports only the opcodes that weight files need. A global is replaced by a function from a table of the caller, which gets
only values built here: None, numbers, strings, ``Bytes`` (a range of the file, not read), tuples, lists, dicts with string
or integer keys, and results of other such functions. Time and memory are bounded by the number of opcodes and the file size.

References: the opcodes are described in Python's ``Lib/pickletools.py``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmctl.errors import CheckpointError
from llmctl.io.limits import PICKLE_ALL_TEXT, PICKLE_INTEGER, PICKLE_OPCODES, PICKLE_TEXT

Reader = Callable[..., Any]


class Bytes(NamedTuple):
    """A range of bytes in the file; ``text`` if the pickle stores them as a UTF-8 string."""

    offset: int
    length: int
    text: bool = False


class Built:
    """Base class of results whose state follows in the pickle; ``build`` receives it, once."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Receives the state of the object.

        Raises:
            ValueError: The state is not valid.
        """
        raise NotImplementedError


class _Function(NamedTuple):
    name: str
    call: Reader


class _Mark:
    __slots__ = ()


_MARK = _Mark()


class Refused(ValueError):
    """The pickle names a global that is not allowed."""


class Machine:
    """Reads one pickle.

    Args:
        stream: The stream, at the start of the pickle; left at its end.
        globals_: ``module.name`` -> replacement of a global: a value, or a function of the arguments.
        persistent: Function of a persistent id; None = not allowed.
    """

    def __init__(
        self, stream: BinaryIO, globals_: Mapping[str, Any], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self._stream = stream
        self._globals = globals_
        self._persistent = persistent
        begin = stream.tell()
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(begin)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._text = 0

    def load(self) -> Any:
        """Reads the object.

        Raises:
            ValueError: The pickle is damaged, exceeds a limit, or names a global that is not allowed.
        """
        for _ in range(PICKLE_OPCODES):
            code = self._stream.read(1)
            if code == b".":
                return self._pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise ValueError(
                    "it is truncated" if not code else f"it has the opcode {code!r}, which weights do not need"
                )
            action(self)
        raise ValueError(f"it has more than {PICKLE_OPCODES:,} opcodes")

    # Reading

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise ValueError("it is truncated")
        return data

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._read(struct.calcsize(form)))[0]
        return value

    def _range(self, form: str, text: bool = False) -> None:
        """Pushes the range of the next bytes; a short text becomes a string."""
        length, offset = self._number(form), self._stream.tell()
        if length > self._size - offset:
            raise ValueError("it is truncated")
        if text and length <= PICKLE_TEXT:
            self._text += length
            if self._text > PICKLE_ALL_TEXT:
                raise ValueError(f"its names have over {PICKLE_ALL_TEXT >> 20} MiB")
            self._stack.append(self._read(length).decode("utf-8", "surrogatepass"))
            return
        self._stream.seek(length, os.SEEK_CUR)
        self._stack.append(Bytes(offset, length, text))

    def _line(self) -> str:
        line = self._stream.readline(256)
        if not line.endswith(b"\n"):
            raise ValueError("it has a line of over 255 characters, or one without an end")
        return line[:-1].decode("utf-8")

    def _quoted(self) -> str:
        line = self._line()
        if len(line) < 2 or line[0] not in "'\"" or line[-1] != line[0] or "\\" in line:
            raise ValueError("it holds text in a form that torch and paddle do not write")
        return line[1:-1]

    # The stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("its stack is empty where a value is needed")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ValueError(f"it treats {_kind(self._stack[-1]) if self._stack else 'nothing'} as {_NAMES[kind]}")
        return self._stack[-1]

    def _after_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise ValueError("it ends a group that it did not begin")

    def _last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    # Opcodes

    def _function(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("it names a global by something else than text")
        full = f"{module}.{name}"
        if full not in self._globals:
            raise Refused(full)
        value = self._globals[full]
        self._stack.append(_Function(full, value) if callable(value) else value)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Function) or type(arguments) is not tuple:
            raise ValueError(f"it calls {function.name if isinstance(function, _Function) else _kind(function)}")
        try:
            self._stack.append(function.call(*arguments))
        except TypeError:
            raise ValueError(f"{function.name} has {len(arguments)} arguments, which is not one of its forms") from None

    def _instance(self) -> None:
        self._function(self._line(), self._line())
        raise ValueError("it makes an object by the opcode INST")

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1] if self._stack else None
        if isinstance(target, Built):
            target.build(state)
        elif type(target) is not dict or type(state) is not dict:
            raise ValueError(f"it sets attributes of {_kind(target)}")

    def _extend(self, values: list[Any]) -> None:
        self._top(list).extend(values)

    def _dict(self, pairs: list[Any]) -> None:
        self._stack.append({})
        self._set_items(pairs)

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._top(dict)
        if len(pairs) % 2:
            raise ValueError("it has a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError(f"a key is {_kind(key)}, not text")
            target[key] = value

    def _persistent_id(self) -> None:
        pid = self._pop()
        if self._persistent is None:
            raise ValueError("it refers to data outside of itself")
        self._stack.append(self._persistent(pid))

    def _long(self, form: str) -> None:
        length = self._number(form)
        if not 0 <= length <= PICKLE_INTEGER:
            raise ValueError(f"it has a whole number of {length} bytes")
        self._stack.append(int.from_bytes(self._read(length), "little", signed=True))

    def _put(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("its stack is empty where a value is needed")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"it repeats value {index}, which it did not keep")
        self._stack.append(self._memo[index])


def _kind(value: Any) -> str:
    """Kind of a value, for messages; never the value, which can be huge."""
    return "a built object" if isinstance(value, Built) else f"a {type(value).__name__.lower().strip('_')}"


_NAMES: Mapping[type, str] = {dict: "a dict", list: "a list"}


def _push(value: Callable[[], Any]) -> Callable[[Machine], None]:
    return lambda m: m._stack.append(value())


_ACTIONS: Mapping[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m._read(1),
    b"\x95": lambda m: m._read(8),
    b"(": _push(lambda: _MARK),
    b"N": _push(lambda: None),
    b"\x88": _push(lambda: True),
    b"\x89": _push(lambda: False),
    b"}": _push(dict),
    b"]": _push(list),
    b")": _push(tuple),
    b"K": lambda m: m._stack.append(m._number("<B")),
    b"M": lambda m: m._stack.append(m._number("<H")),
    b"J": lambda m: m._stack.append(m._number("<i")),
    b"G": lambda m: m._stack.append(m._number(">d")),
    b"\x8a": lambda m: m._long("<B"),
    b"\x8b": lambda m: m._long("<i"),
    b"S": lambda m: m._stack.append(m._quoted()),
    b"X": lambda m: m._range("<I", text=True),
    b"\x8c": lambda m: m._range("<B", text=True),
    b"\x8d": lambda m: m._range("<Q", text=True),
    b"B": lambda m: m._range("<I"),
    b"C": lambda m: m._range("<B"),
    b"\x8e": lambda m: m._range("<Q"),
    b"\x96": lambda m: m._range("<Q"),
    b"\x85": lambda m: m._stack.append(m._last(1)),
    b"\x86": lambda m: m._stack.append(m._last(2)),
    b"\x87": lambda m: m._stack.append(m._last(3)),
    b"t": lambda m: m._stack.append(tuple(m._after_mark())),
    b"l": lambda m: m._stack.append(m._after_mark()),
    b"d": lambda m: m._dict(m._after_mark()),
    b"a": lambda m: m._extend([m._pop()]),
    b"e": lambda m: m._extend(m._after_mark()),
    b"s": lambda m: m._set_items(list(m._last(2))),
    b"u": lambda m: m._set_items(m._after_mark()),
    b"c": lambda m: m._function(m._line(), m._line()),
    b"\x93": lambda m: m._function(*m._last(2)),
    b"i": lambda m: m._instance(),
    b"R": lambda m: m._reduce(),
    b"b": lambda m: m._build(),
    b"Q": lambda m: m._persistent_id(),
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"h": lambda m: m._get(m._number("<B")),
    b"j": lambda m: m._get(m._number("<I")),
    b"0": lambda m: m._pop(),
}


def load(
    stream: BinaryIO,
    path: Path,
    globals_: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads the next pickled object of a stream.

    Args:
        stream: The stream, at the start of the pickle; left at its end.
        path: The file, for messages.
        globals_: ``module.name`` -> replacement of a global: a value, or a function of the arguments.
        persistent: Function of a persistent id; None = not allowed.

    Raises:
        CheckpointError: The pickle is damaged, exceeds a limit, or names a global that is not allowed.
    """
    try:
        return Machine(stream, globals_, persistent).load()
    except Refused as error:
        raise CheckpointError(
            f"{path} is refused: its pickle refers to {error}, which is not needed for weights and could execute code. "
            "Nothing was executed. Use a safetensors version of the checkpoint."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: its pickle cannot be read: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path}: its pickle is damaged or needs more memory than is available") from None
