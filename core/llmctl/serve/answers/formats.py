"""The form that a request gives its answers: ``response_format``, or ``structured_outputs`` as vLLM has it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llmctl.serve.problems import Problem, shown

DEPTH = 64
"""Deepest nesting of a schema."""

CHOICES = 1000

Grammar = tuple[str, str]
"""Kind, as ``grammars.KINDS``, and source."""


def grammar_of(values: Mapping[str, Any]) -> tuple[Grammar, str] | None:
    """The grammar of a body's answers and the field that gives it; None = they have no form.

    Args:
        values: Of the body.

    Raises:
        Problem: The form is not one of those there are, or several are given.
    """
    given = [name for name in FIELDS if name in values]
    found = [(name, grammar) for name in given if (grammar := FIELDS[name](values[name])) is not None]
    if len(found) > 1:
        raise Problem(f"{found[0][0]} and {found[1][0]} both give the answer's form; leave one out", param=found[1][0])
    if not found:
        return None
    for name in ("ignore_eos", "min_tokens"):
        if values.get(name):
            raise Problem(
                f"{name} cannot be combined with {found[0][0]}, whose form says where an answer may end", param=name
            )
    return found[0][1], found[0][0]


def schema_text(schema: Any, where: str) -> str:
    """A JSON schema as text.

    Raises:
        Problem: It is no schema, or nested too deeply.
    """
    if not isinstance(schema, (dict, bool)):
        raise Problem(f"{where} must be a JSON schema, not {shown(schema)}", param=where.partition(".")[0])
    if _depth(schema) > DEPTH:
        raise Problem(f"{where} is nested more than {DEPTH} levels", param=where.partition(".")[0])
    return json.dumps(schema, ensure_ascii=False)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _response_format(given: Any) -> Grammar | None:
    where = "response_format"
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in TYPES:
        raise Problem(f"{where}: type is {shown(kind)}; allowed are {', '.join(TYPES)}", param=where)
    return TYPES[kind](given)


def _text(given: Mapping[str, Any]) -> None:
    _check_keys(given, ("type",), "response_format")


def _json_object(given: Mapping[str, Any]) -> Grammar:
    _check_keys(given, ("type",), "response_format")
    return "json", '{"type":"object"}'


def _json_schema(given: Mapping[str, Any]) -> Grammar:
    _check_keys(given, ("type", "json_schema"), "response_format")
    inner = given.get("json_schema")
    if not isinstance(inner, dict) or "schema" not in inner:
        raise Problem("response_format.json_schema must be an object with name and schema", param="response_format")
    _check_keys(inner, ("name", "description", "schema", "strict"), "response_format.json_schema")
    return "json", schema_text(inner["schema"], "response_format.json_schema.schema")


def _regex(given: Mapping[str, Any]) -> Grammar:
    _check_keys(given, ("type", "pattern"), "response_format")
    return "regex", _string(given.get("pattern"), "response_format.pattern")


def _grammar(given: Mapping[str, Any]) -> Grammar:
    _check_keys(given, ("type", "grammar", "syntax"), "response_format")
    syntax = given.get("syntax", "lark")
    if syntax not in ("lark", "gbnf"):
        raise Problem(f"response_format.syntax is {shown(syntax)}; allowed are lark, gbnf", param="response_format")
    return syntax, _string(given.get("grammar"), "response_format.grammar")


TYPES: dict[Any, Callable[[Mapping[str, Any]], Grammar | None]] = {
    "text": _text, "json_object": _json_object, "json_schema": _json_schema, "regex": _regex, "grammar": _grammar,
}  # fmt: skip
"""Type of a ``response_format`` -> its grammar."""


def _structured_outputs(given: Any) -> Grammar:
    where = "structured_outputs"
    known = ("json", "regex", "choice", "grammar", "json_object")
    if not isinstance(given, dict) or len(given) != 1:
        raise Problem(f"{where} must be an object with one of {', '.join(known)}", param=where)
    _check_keys(given, known, where)
    ((kind, value),) = given.items()
    if kind == "json_object":
        return "json", '{"type":"object"}'
    if kind == "json":
        return "json", value if isinstance(value, str) else schema_text(value, f"{where}.json")
    if kind == "choice":
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= CHOICES
            or not all(isinstance(v, str) and v for v in value)
        ):
            raise Problem(f"{where}.choice must be 1 to {CHOICES} texts", param=where)
        return "lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
    source = _string(value, f"{where}.{kind}")
    return ("regex" if kind == "regex" else "gbnf" if "::=" in source else "lark"), source


FIELDS: dict[str, Callable[[Any], Grammar | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
}
"""Field of a body -> the grammar of its value; None = any answer."""


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise Problem(f"{where} must be text, not {shown(value)}", param=where.partition(".")[0])
    return value


def _check_keys(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise Problem(f"{where} has the unknown key {shown(key)}; {hint}", param=where.partition(".")[0])
