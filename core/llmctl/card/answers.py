"""Forms in which models write calls of functions. A card names one of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a model writes calls of functions: JSON objects with a name and arguments, between marks.

    Attributes:
        begin: Text before a call, spaces around it included; empty = an answer that is one JSON object is a call.
        end: Text after a call; empty = the answer ends there.
        name: Key of the function's name.
        arguments: Key of its arguments.
        listed: Whether the calls of an answer stand in one JSON list between the marks.
        between: Text between calls.
    """

    begin: str
    end: str = ""
    name: str = "name"
    arguments: str = "arguments"
    listed: bool = False
    between: str = "\n"


CALL_FORMS = {
    "tagged": CallForm(begin="<tool_call>\n", end="\n</tool_call>"),
    "listed": CallForm(begin="[TOOL_CALLS] ", listed=True),
    "object": CallForm(begin="", arguments="parameters"),
}
"""Name on cards -> form; each comes from the chat template of a model."""
