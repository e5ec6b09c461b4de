"""Limits of a chat template that is being rendered: a time limit for what repeats, size limits for what grows.

Loops, concatenations and literals of lists, tuples and dicts are compiled with a filter of this module around them; operators,
filters and calls are intercepted by the environment. Each checks the time, and refuses a result that would be too large before
it is made. The limits are in ``io.limits``.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from llmctl.io.limits import TEMPLATE_CHARACTERS, TEMPLATE_ITEMS

REMOVED = ("urlize", "wordwrap", "striptags", "pprint", "xmlattr", "random", "filesizeformat", "forceescape")
"""Filters that chat templates do not need, and whose time or size is not bounded by that of their input."""

UNSAFE_METHODS = ("translate", "to_bytes", "from_bytes", "expandtabs")
SCALARS = (str, int, float, bool, type(None), Undefined)
_WIDTH = re.compile(r"\d{5,}|\*|:[^{}]*\{")
"""What can make a formatted text much longer than its values: long widths, and widths that are themselves values."""


class LimitError(Exception):
    """A template exceeds a limit."""


class TimeLimitError(LimitError):
    """A template takes too long."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.deadlines: list[float] = []


_ACTIVE = _Active()


class Watch:
    """The time limit of a rendering in this thread; ``with`` starts it.

    Args:
        seconds: The limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Watch:
        _ACTIVE.deadlines.append(time.monotonic() + self._seconds)
        return self

    def __exit__(self, *_: Any) -> None:
        _ACTIVE.deadlines.pop()

    def joined(self, parts: Iterable[str]) -> str:
        """The text of a rendering, from its parts."""
        return join(watched(parts))


def check_time() -> None:
    """Checks the time of the rendering.

    Raises:
        LimitError: It takes too long.
    """
    deadlines = _ACTIVE.deadlines
    if deadlines and time.monotonic() > deadlines[-1]:
        raise TimeLimitError("it takes too long")


def check_length(characters: float) -> None:
    """Checks that a text of this length may be made.

    Raises:
        LimitError: It may not.
    """
    check_time()
    if characters > TEMPLATE_CHARACTERS:
        raise LimitError(f"it makes a text of more than {TEMPLATE_CHARACTERS:,} characters")


def check_items(count: float) -> None:
    """Checks that a list of this length, or a number of this many bits, may be made.

    Raises:
        LimitError: It may not.
    """
    check_time()
    if count > TEMPLATE_ITEMS:
        raise LimitError(f"it makes a list or number of more than {TEMPLATE_ITEMS:,} items")


def watched(values: Iterable[Any]) -> Iterator[Any]:
    """The values, with a check of the time before each."""
    for value in values:
        check_time()
        yield value


def bounded(value: Any) -> Any:
    """Returns the value, after a check that it has not too many items: nested ones count too, each time they occur.

    Raises:
        LimitError: It has too many.
    """
    check_time()
    count, todo = 0, [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo += [*part, *part.values()]
        elif isinstance(part, (list, tuple, set)):
            todo += part
        count += 1
        if count > TEMPLATE_ITEMS or len(todo) > TEMPLATE_ITEMS:
            check_items(TEMPLATE_ITEMS + 1)
    return value


def text(value: Any) -> str:
    """A value as text; inside lists and dicts, only values that JSON has are allowed.

    Raises:
        LimitError: It would be too long, or holds another value.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, SCALARS):
        return str(value)
    if not isinstance(value, (list, tuple, dict)):
        return f"<{type(value).__name__}>"
    length, todo = 0, [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            todo += [*part, *part.values()]
        elif isinstance(part, (list, tuple)):
            todo += part
        elif not isinstance(part, SCALARS):
            raise LimitError(f"it writes a {type(part).__name__} inside a list")
        length += 4 + (len(part) if isinstance(part, str) else 0)
        if length > TEMPLATE_CHARACTERS or len(todo) > TEMPLATE_ITEMS:
            check_length(TEMPLATE_CHARACTERS + 1)
    return str(value)


def join(values: Iterable[Any], between: str = "") -> str:
    """The texts of values, concatenated.

    Raises:
        LimitError: They are too long.
    """
    parts: list[str] = []
    length = 0
    for value in values:
        parts.append(text(value))
        length += len(parts[-1]) + len(between)
        check_length(length)
    return between.join(parts)


def check_replace(value: str, old: str, new: str) -> None:
    """Checks that a replacement may be made."""
    check_length(len(value) + (value.count(old) if old else len(value) + 1) * len(new))


def check_format(pattern: str, values: Any) -> None:
    """Checks that values may be formatted."""
    if _WIDTH.search(pattern):
        raise LimitError("it formats text with a long width, or one that is a value")
    given = values if isinstance(values, (list, tuple, dict)) else [values]
    check_length(
        len(pattern) + len(text(list(given.values()) if isinstance(given, dict) else list(given))) * len(pattern)
    )


def tojson(
    value: Any,
    indent: int | str | None = None,
    ensure_ascii: bool = False,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON, as the ``tojson`` of transformers' templates.

    Raises:
        LimitError: It would be too long.
    """
    bounded(value)
    wide = len(indent) if isinstance(indent, str) else indent or 0
    check_items(0 if wide <= 64 else TEMPLATE_ITEMS + 1)
    made = json.dumps(
        value, indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys, default=_unknown
    )
    check_length(len(made))
    return made


def _unknown(value: Any) -> Any:
    raise LimitError(f"it writes a {type(value).__name__} as JSON")


def power(base: Any, exponent: Any) -> Any:
    """A power, after a check of its number of bits."""
    if isinstance(base, int) and isinstance(exponent, int):
        check_items(max(1, base.bit_length()) * max(0, exponent))
    return base**exponent


def times(left: Any, right: Any) -> Any:
    """A product of numbers, or a text or list repeated."""
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str) and isinstance(count, int):
            check_length(len(many) * max(count, 0))
        elif isinstance(many, (list, tuple)) and isinstance(count, int):
            check_items(len(many) * max(count, 0))
    if isinstance(left, int) and isinstance(right, int):
        check_items(left.bit_length() + right.bit_length())
    return bounded(left * right)


def plus(left: Any, right: Any) -> Any:
    """A sum, or two texts or lists concatenated."""
    if isinstance(left, str) and isinstance(right, str):
        check_length(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        check_items(len(left) + len(right))
    return left + right


def modulo(left: Any, right: Any) -> Any:
    """A remainder, or values formatted."""
    if isinstance(left, str):
        check_format(left, right)
    return left % right


def total(values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """The sum of numbers."""
    found = start
    for value in values:
        found = plus(found, value if attribute is None else value[attribute])
    return found


class _LimitInserter(NodeTransformer):
    """Puts a limiting filter around each node that can repeat or grow."""

    def _around(self, node: Any, name: str) -> Any:
        self.generic_visit(node)
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: Any) -> Any:  # noqa: N802
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_watched", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        self.generic_visit(node)
        inner = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(inner, "_joined", [], [], None, None, lineno=node.lineno)

    def visit_Tuple(self, node: Any) -> Any:  # noqa: N802
        if node.ctx != "load":
            return self.generic_visit(node)
        return self._around(node, "_bounded")

    def visit_List(self, node: Any) -> Any:  # noqa: N802
        return self._around(node, "_bounded")

    def visit_Dict(self, node: Any) -> Any:  # noqa: N802
        return self._around(node, "_bounded")


class WatchedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox with limits; jinja's optimizer is off, since it computes constants without any limit."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=text, **options)
        self.binop_table |= {"+": plus, "*": times, "**": power, "%": modulo}
        self.globals.pop("lipsum", None)
        for name in REMOVED:
            self.filters.pop(name, None)
        self.filters |= {name: _guarded(function) for name, function in self.filters.items()}
        self.filters |= {
            "_watched": watched, "_joined": join, "_bounded": bounded, "tojson": tojson, "string": text, "sum": total,
            "join": _join_filter, "replace": _replace_filter, "format": _format_filter,
        }  # fmt: skip
        self.concat = join  # type: ignore[assignment]

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_LimitInserter().visit(source), *args, **options)

    def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Calls a function of a template within the limits."""
        check_time()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if name in UNSAFE_METHODS:
            raise LimitError(f"it calls {name}, which chat templates do not need")
        if isinstance(owner, str):
            _check_method(owner, name, args)
        elif any(isinstance(arg, int) and abs(arg) > TEMPLATE_CHARACTERS for arg in (*args, *options.values())):
            raise LimitError(f"it calls {name} with a number above {TEMPLATE_CHARACTERS:,}")
        return super().call(context, function, *args, **options)

    def wrap_str_format(self, value: Any) -> Any:
        """The sandbox's ``str.format``, within the limits."""
        wrapper = super().wrap_str_format(value)
        if wrapper is None:
            return None

        @wraps(wrapper)
        def limited(*args: Any, **options: Any) -> str:
            check_format(value.__self__, [*args, *options.values()])
            return str(wrapper(*args, **options))

        return limited


def _check_method(owner: str, name: str, args: tuple[Any, ...]) -> None:
    """Checks that a method of a text may be called."""
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        check_replace(owner, args[0], args[1])
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        check_length(sum(len(part) + len(owner) for part in args[0] if isinstance(part, str)))
    for arg in args:
        if isinstance(arg, int):
            check_length(len(owner) + abs(arg))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with checks of the time, of numbers among its arguments and of the length of its text."""

    @wraps(function)
    def guarded(*args: Any, **options: Any) -> Any:
        check_time()
        numbers = [abs(arg) for arg in (*args, *options.values()) if isinstance(arg, int)]
        texts = [len(arg) for arg in args if isinstance(arg, str)]
        if numbers:
            check_items(max(numbers))
            check_length((max(numbers) + 1) * (max(texts) + 1) if texts and max(numbers) > 64 else 0)
        made = function(*args, **options)
        if isinstance(made, str):
            check_length(len(made))
        return made

    return guarded


def _join_filter(values: Iterable[Any], between: Any = "", attribute: Any = None) -> str:
    found = watched(values) if attribute is None else (_attribute(value, attribute) for value in watched(values))
    return join(found, text(between))


def _attribute(value: Any, name: Any) -> Any:
    try:
        return value[name]
    except (TypeError, LookupError):
        raise LimitError("it joins an attribute that values do not have") from None


def _replace_filter(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, old, new = text(value), text(old), text(new)
    check_replace(whole, old, new)
    return whole.replace(old, new, -1 if count is None else count)


def _format_filter(pattern: Any, *args: Any, **options: Any) -> str:
    values = options or args
    check_format(text(pattern), values)
    return str(text(pattern) % values)
