"""Jinja under lock: templates of a checkpoint render text and can reach nothing else."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from typing import Any

from llmctl.errors import TokenizerError, require


def compile_template(source: str, where: str, keep_trailing_newline: bool = False) -> Any:
    """A template ready to render.

    Args:
        source: Jinja text.
        where: Its file, for messages.
        keep_trailing_newline: Whether a newline that ends the source is text.

    Raises:
        TokenizerError: It is not valid jinja.
    """
    jinja2 = require("jinja2", "cpu", "a chat template")
    try:
        return _environment(keep_trailing_newline).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{where}: the chat template is not valid jinja, line {error.lineno}: {error}") from None


def render(template: Any, where: str, **values: Any) -> str:
    """The rendered text.

    Raises:
        TokenizerError: The template refuses the conversation, fails, or reaches for what is forbidden.
    """
    import jinja2

    try:
        return str(template.render(**values))
    except jinja2.exceptions.SecurityError as error:
        raise TokenizerError(f"{where}: the chat template is refused: {error}") from None
    except Exception as error:
        # A template may fail in any way that an expression can.
        raise TokenizerError(f"{where}: the chat template cannot render this conversation: {error}") from None


@cache
def _environment(keep_trailing_newline: bool) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
        extensions=[loopcontrols, _generation()],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _generation() -> Any:
    """Lets ``{% generation %}`` stand around answers, as some templates mark them; it changes no text."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _refuse(message: str) -> None:
    raise ValueError(message)
