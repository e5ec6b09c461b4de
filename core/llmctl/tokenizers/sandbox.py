"""Jinja under lock: templates of a checkpoint render text, can reach nothing else, and end in bounded time and memory.

Names are looked up by jinja's own sandbox; what can repeat or grow (loops, calls, operators, filters, lists and texts) is
watched by ``template_limits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from llmctl.errors import TokenizerError, require
from llmctl.io.limits import TEMPLATE_SECONDS

TEMPLATE_SECONDS_AGAIN, MAX_TIMEOUTS = 1.0, 5
"""Limit of a template that took too long before, and how often it may: a file has many conversations."""

_TIMEOUTS: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How often a template took too long."""

OPEN, CLOSE = "\ue0f4", "\ue0f5"
"""Characters for private use around what a template marks by ``{% generation %}``."""


class RenderError(TokenizerError):
    """A template has refused a conversation, or failed at it."""


def compile_template(source: str, where: str, keep_trailing_newline: bool = False, marks: bool = False) -> Any:
    """A template ready to render.

    Args:
        source: Jinja text.
        where: Its file, for messages.
        keep_trailing_newline: Whether a newline that ends the source is text.
        marks: Whether the text in ``{% generation %}`` is written between ``OPEN`` and ``CLOSE``.

    Raises:
        TokenizerError: It is not valid jinja.
    """
    jinja2 = require("jinja2", "run", "a chat template")
    try:
        return _environment(keep_trailing_newline, marks).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{where}: the chat template is not valid jinja, line {error.lineno}: {error}") from None
    except (RecursionError, MemoryError):
        raise TokenizerError(f"{where}: the chat template is nested too deeply") from None
    except Exception as error:
        # Some mistakes are only found when Python code is made of the template, by whatever fails first.
        raise TokenizerError(f"{where}: the chat template is not valid jinja: {str(error)[:500]}") from None


def render(template: Any, where: str, values: Mapping[str, Any], now: datetime | None = None) -> str:
    """The rendered text.

    Args:
        template: From `compile_template`.
        where: Its file, for messages.
        values: The template's variables.
        now: What ``strftime_now`` writes; None = the present.

    Raises:
        RenderError: The template refuses the conversation, or fails.
        TokenizerError: It goes beyond a limit, or uses what the sandbox forbids.
    """
    import jinja2

    from llmctl.tokenizers.template_limits import LimitError, TimeLimitError, Watch

    seconds = TEMPLATE_SECONDS if template not in _TIMEOUTS else TEMPLATE_SECONDS_AGAIN
    too_long = f"{where}: the chat template is refused: it takes longer than {TEMPLATE_SECONDS:g} seconds"
    if _TIMEOUTS.get(template, 0) == MAX_TIMEOUTS:
        raise TokenizerError(too_long)
    watch = Watch(seconds)
    context = {**values, "strftime_now": (now or datetime.now()).strftime}
    try:
        with watch:
            return watch.joined(template.root_render_func(template.new_context(context)))
    except TimeLimitError:
        _TIMEOUTS[template] = _TIMEOUTS.get(template, 0) + 1
        raise TokenizerError(too_long) from None
    except (jinja2.exceptions.SecurityError, LimitError) as error:
        raise TokenizerError(f"{where}: the chat template is refused: {error}") from None
    except (RecursionError, MemoryError):
        raise TokenizerError(f"{where}: the chat template is refused: it calls itself or grows without end") from None
    except Exception as error:
        # A template may fail in any way that an expression can.
        raise RenderError(f"{where}: the chat template cannot render this conversation: {str(error)[:500]}") from None


@cache
def _environment(keep_trailing_newline: bool, marks: bool) -> Any:
    from jinja2.ext import loopcontrols

    from llmctl.tokenizers.template_limits import WatchedEnvironment

    environment = WatchedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
        extensions=[loopcontrols, _generation(marks)],
    )
    environment.globals["raise_exception"] = _refuse
    return environment


@cache
def _generation(marks: bool) -> Any:
    """The tag ``{% generation %}`` around answers."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            if not marks:
                return body
            return [nodes.Output([nodes.TemplateData(OPEN)]), *body, nodes.Output([nodes.TemplateData(CLOSE)])]

    return Generation


def _refuse(message: str) -> None:
    raise ValueError(message)
