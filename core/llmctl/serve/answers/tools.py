"""Functions that a model may call: their check, the grammar of their calls, and how a prompt tells of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.card.answers import CallForm
from llmctl.serve.answers.formats import schema_text
from llmctl.serve.answers.grammars import WHITESPACE
from llmctl.serve.problems import Problem, shown
from llmctl.tokenizers.conversation import Message

TOOLS = 128
CALLS = 16
"""Most calls of an answer that is bound to calls."""

PLAIN = CallForm(begin="<tool_call>\n", end="\n</tool_call>")
"""The form of models whose card has none; the prompt tells of it."""

SPACE = r"( |\r?\n( {0,16}|\t{0,6}))"
"""What may stand between tokens of JSON in a call that the model has begun: a space, or a line break and an indentation."""

TIGHT = {"whitespace_pattern": WHITESPACE}
FREE = {"whitespace_pattern": SPACE + "?", "json_allow_general_unicode_escapes": True}
"""How the grammar engine writes the JSON of arguments in answers that are calls, and in calls that the model has begun."""

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""Parameters of a function that says none."""

TOLD = """You may call these functions:
{functions}
To call one, write its name and arguments as JSON between marks, and nothing else:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""
"""What a system message says where the chat template has no place for functions."""


@dataclass(frozen=True)
class Tools:
    """The functions of a request.

    Attributes:
        rows: As the body has them.
        required: Whether the answer must be calls.
        named: The one function that must be called; empty = any.
        many: Whether an answer may have several calls.
    """

    rows: tuple[Mapping[str, Any], ...]
    required: bool = False
    named: str = ""
    many: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions."""
        return tuple(row["function"]["name"] for row in self.rows)


def tools_of(values: Mapping[str, Any]) -> Tools | None:
    """The functions of a body; None = there are none, or none may be called.

    Raises:
        Problem: One is not as it should be, or the choice names none of them.
    """
    rows, choice = values.get("tools") or [], values.get("tool_choice", "auto")
    if len(rows) > TOOLS:
        raise Problem(f"tools has {len(rows)} entries; allowed are {TOOLS}", param="tools")
    for index, row in enumerate(rows):
        _check(row, f"tools[{index}]")
    names = [row["function"]["name"] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Problem(f"tools has the function {twice} twice", param="tools")
    if choice != "none" and not rows and "tool_choice" in values:
        raise Problem("tool_choice needs tools", param="tool_choice")
    many = values.get("parallel_tool_calls", True)
    if choice == "none" or not rows:
        return None
    if choice in ("auto", "required"):
        return Tools(tuple(rows), choice == "required", "", many)
    return Tools(tuple(rows), True, _named(choice, names), False)


def _named(choice: Any, names: Sequence[str]) -> str:
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise Problem(
            "tool_choice must be none, auto, required, or an object with type function and a function with a name",
            param="tool_choice",
        )
    if name not in names:
        raise Problem(f"tool_choice names {shown(name)}; tools has {', '.join(names)}", param="tool_choice")
    return name


def _check(row: Any, where: str) -> None:
    function = row.get("function") if isinstance(row, dict) and row.get("type") == "function" else None
    if not isinstance(function, dict):
        raise Problem(f"{where} must be an object with type function and a function", param="tools")
    name, text = function.get("name"), function.get("description", "")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise Problem(
            f"{where}: name is {shown(name)}; allowed are up to 64 letters, digits, _, . and -", param="tools"
        )
    if not isinstance(text, str | None):
        raise Problem(f"{where}: description must be text", param="tools")
    if not isinstance(function.get("strict"), bool | None):
        raise Problem(f"{where}: strict must be true or false", param="tools")
    schema_text(function.get("parameters") or {}, f"tools.{name}.parameters")


def grammar_of_calls(tools: Tools, form: CallForm, mark: Callable[[str], str]) -> str:
    """The Lark grammar of answers that consist of calls.

    Args:
        tools: The functions.
        form: How calls are written.
        mark: Text of a mark -> how the grammar writes it.
    """
    more = f"{{0,{CALLS - 1}}}"
    if form.listed:
        calls = f'"[" call (", " call){more} "]"' if tools.many else '"[" call "]"'
        lines = [f"start: {mark(form.begin)} {calls} {mark(form.end)}", "call: object"]
    else:
        several = tools.many and form.begin
        lines = [f"start: call ({_quoted(form.between)} call){more}" if several else "start: call"]
        lines += [f"call: {mark(form.begin)} object {mark(form.end)}"]
    head = _quoted(f'{{"{form.name}": "')
    return "\n".join(
        [*lines, f"object: {head} function", *_functions(tools, form, _quoted(": "), _quoted(", "), "", TIGHT)]
    )


def grammar_of_begun_call(tools: Tools, form: CallForm, mark: Callable[[str], str], schemas: bool = True) -> str:
    """The Lark grammar of what follows the opening of a call in a free answer.

    Keywords of schemas that the grammar engine does not know bind nothing, unless the function is ``strict``.

    Args:
        tools: The functions.
        form: How calls are written; without a mark before them, the opening reaches into the name.
        mark: As for ``grammar_of_calls``.
        schemas: False = arguments are any object.
    """
    more = f'(space? "," space? object){{0,{CALLS - 1}}}' if tools.many else ""
    calls = f'"[" space? object {more} space? "]"' if form.listed else "object"
    end = f"space? {mark(form.end.strip())}" if form.end else ""
    key = _quoted(json.dumps(form.name))
    lines = [
        f"start: after? {calls} {end}" if form.begin else "start: function",
        r"after: /[ \t\r\n]{1,8}/",  # of one token with the end of the opening, maybe
        f"space: /{SPACE}/",
        f'object: "{{" space? {key} space? ":" space? "\\"" function',
    ]
    between = ('space? ":" space?', 'space? "," space?', "space?")
    return "\n".join([*lines, *_functions(tools, form, *between, {**FREE, "lenient": True}, schemas)])


def _functions(
    tools: Tools,
    form: CallForm,
    colon: str,
    comma: str,
    space: str,
    options: Mapping[str, Any],
    schemas: bool = True,
) -> list[str]:
    """Rules of what follows the quotation mark before a function's name, up to the brace that ends the object.

    Args:
        tools: The functions.
        form: How calls are written.
        colon: Between a key and its value, as the grammar writes it.
        comma: Between a value and the next key.
        space: Before the brace.
        options: Of the grammar engine, for schemas.
        schemas: As for ``grammar_of_begun_call``.
    """
    rows = [row["function"] for row in tools.rows if tools.named in ("", row["function"]["name"])]
    lines = ["function: " + " | ".join(f"function_{index}" for index in range(len(rows)))]
    for index, row in enumerate(rows):
        name, key = _quoted(row["name"] + '"'), _quoted(json.dumps(form.arguments))
        lines.append(f'function_{index}: {name} {comma} {key} {colon} arguments_{index} {space} "}}"')
        schema = _closed(row.get("parameters") or NOTHING) if schemas else {"type": "object"}
        own = {**options, "lenient": False} if row.get("strict") else options
        lines.append(f"arguments_{index}: %json {json.dumps({**schema, 'x-guidance': own}, ensure_ascii=False)}")
    return lines


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of arguments without others than it lists, unless it says so itself: a function would not take them."""
    return {"additionalProperties": False, **schema} if "properties" in schema else schema


def mark_of(special: Mapping[str, int]) -> Callable[[str], str]:
    """How a grammar writes the text of a mark, which may be a special token with spaces around it.

    Args:
        special: Name -> id of special tokens.
    """

    def written(text: str) -> str:
        name = text.strip()
        if name not in special:
            return _quoted(text)
        before, _, after = text.partition(name)
        return f"{_quoted(before)} <[{special[name]}]> {_quoted(after)}"

    return written


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def told(tools: Tools | None, messages: Sequence[Message], system: bool = True) -> list[Message]:
    """Messages for a chat template without a place for functions: a system message tells of them, and calls and their results
    are text.

    Args:
        tools: The functions; None = there are none.
        messages: As the body has them.
        system: False = the first message tells of them, since the template has no place for a system message.
    """
    found: list[Message] = []
    for message in messages:
        calls = (message.more or {}).get("tool_calls", ())
        if message.role == "tool":
            result = f"<tool_response>\n{message.content or ''}\n</tool_response>"
            if found and found[-1].role == "user" and (found[-1].content or "").endswith("</tool_response>"):
                found[-1] = found[-1]._replace(content=f"{found[-1].content}\n{result}")
            else:
                found.append(Message("user", result))
        elif calls:
            texts = [message.content] * bool(message.content) + [_written(call["function"]) for call in calls]
            found.append(Message("assistant", "\n".join(map(str, texts))))
        else:
            found.append(message)
    if tools is None:
        return found
    text = TOLD.format(functions="\n".join(json.dumps(row["function"], ensure_ascii=False) for row in tools.rows))
    if found and (found[0].role == "system" or not system):
        head = [found[0].content, text] if found[0].role == "system" else [text, found[0].content]
        return [found[0]._replace(content="\n\n".join(map(str, head))), *found[1:]]
    return [Message("system", text), *found]


def _written(function: Mapping[str, Any]) -> str:
    body = {"name": function["name"], "arguments": function.get("arguments", {})}
    return f"{PLAIN.begin}{json.dumps(body, ensure_ascii=False)}{PLAIN.end}"
