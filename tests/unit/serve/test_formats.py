"""Answers in a form: random JSON schemas against jsonschema, expressions and grammars, streamed, in batches and with drafts."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.served import chat, chunks, refused, served

from llmctl.serve.answers.grammars import KEPT, Grammars
from llmctl.serve.apis.fields import CHAT, COMPLETIONS


@pytest.fixture(scope="module")
def client():
    with served() as client:
        yield client


@pytest.fixture(scope="module")
def drafting():
    with served(speculate=6) as client:
        yield client


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def said(client, **more):
    choice = chat(client, "Tell me of Tom.", **more).json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


NAMES = st.sampled_from(["name", "age", "likes", "red kite", "b"])
LEAVES = st.one_of(
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-99, 99), st.integers(0, 50)),
    st.builds(lambda length: {"type": "string", "maxLength": length}, st.integers(0, 9)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "kite"}, {"type": "string", "pattern": "^[A-C]{2,3}$"}]),
    st.builds(lambda values: {"enum": values}, st.lists(st.sampled_from(["Tom", "Mia", 3, None, True, "a b"]), min_size=1, max_size=4)),
)  # fmt: skip


def _larger(inner):
    objects = st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(
        lambda of: {"type": "object", "properties": of, "required": sorted(of)[:2], "additionalProperties": False}
    )
    lists = st.builds(
        lambda of, low, more: {"type": "array", "items": of, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 2), st.integers(0, 1),
    )  # fmt: skip
    return st.one_of(objects, lists, st.lists(inner, min_size=1, max_size=2).map(lambda of: {"anyOf": of}))


SCHEMAS = st.recursive(LEAVES, _larger, max_leaves=5)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 99))
def test_answers_fit_random_schemas(client, schema, seed):
    text, why = said(client, response_format=form(schema), temperature=1.5, seed=seed, max_tokens=300)
    if why == "stop":
        jsonschema.validate(json.loads(text), schema)
    else:
        assert why == "length"


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 99))
def test_streamed_with_drafts_and_in_a_crowd_they_are_the_same(client, drafting, schema, seed):
    asked = {"response_format": form(schema), "temperature": 1, "seed": seed, "max_tokens": 80}
    whole = said(client, **asked)
    pieces = chunks(chat(client, "Tell me of Tom.", **asked, stream=True))
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in pieces) == whole[0]
    assert said(drafting, **asked) == whole
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(said, client, temperature=1, seed=seed + n, max_tokens=30) for n in range(3)]
        assert [pool.submit(said, client, **asked).result() for _ in range(2)] == [whole] * 2
        assert all(other.result()[1] for other in others)


@pytest.mark.parametrize("more, pattern", [
    ({"response_format": {"type": "regex", "pattern": "(Tom|Mia) has [0-9]{2} kites?"}}, "(Tom|Mia) has [0-9]{2} kites?"),
    ({"response_format": {"type": "grammar", "grammar": 'start: "yes" | "no" " way"'}}, "yes|no way"),
    ({"response_format": {"type": "grammar", "syntax": "gbnf", "grammar": 'root ::= "a" [0-9] ("b" | "c")'}}, "a[0-9][bc]"),
    ({"structured_outputs": {"choice": ["red kite", 'a "word"']}}, 'red kite|a "word"'),
    ({"structured_outputs": {"regex": "[a-c]{3}"}}, "[a-c]{3}"), ({"structured_outputs": {"json": {"const": 5}}}, "5"),
    ({"structured_outputs": {"grammar": 'root ::= "x" "y"'}}, "xy"), ({"structured_outputs": {"grammar": 'start: "z"'}}, "z"),
])  # fmt: skip
def test_expressions_choices_and_grammars(client, more, pattern):
    for seed in range(3):
        text, why = said(client, **more, temperature=1.5, seed=seed, max_tokens=60)
        assert re.fullmatch(pattern, text) and why == "stop"
    made = client.post("/v1/completions", json={"prompt": "Tom", **more, "max_tokens": 60, "temperature": 0}).json()
    assert re.fullmatch(pattern, made["choices"][0]["text"])


def test_a_json_object_and_the_log_probabilities_of_the_model(client):
    asked = {"response_format": {"type": "json_object"}, "temperature": 1, "seed": 1, "max_tokens": 60}
    row = chat(client, **asked, logprobs=True, top_logprobs=1).json()["choices"][0]
    assert row["message"]["content"].startswith("{")
    first = row["logprobs"]["content"][0]
    assert first["logprob"] < first["top_logprobs"][0]["logprob"] and first["token"].startswith("{")
    assert said(client, response_format={"type": "text"}, temperature=0) == said(client, temperature=0)


@pytest.mark.parametrize("more, part, param", [
    ({"response_format": {"type": "xml"}}, "allowed are text, json_object", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "object with name and schema", "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strickt": 1}}}, "did you mean strict", "response_format"),
    ({"response_format": form({"type": "nothing"})}, "cannot be used", "response_format"),
    ({"response_format": form({"type": "string", "format": "no-such"})}, "cannot be used", "response_format"),
    ({"response_format": {"type": "regex", "pattern": "(a"}}, "cannot be used", "response_format"),
    ({"response_format": {"type": "regex", "pattern": "(?=a)b"}}, "cannot be used", "response_format"),
    ({"response_format": {"type": "grammar", "grammar": "start: nothing"}}, "cannot be used", "response_format"),
    ({"response_format": {"type": "grammar", "grammar": "x", "syntax": "abnf"}}, "lark, gbnf", "response_format"),
    ({"response_format": {"type": "regex", "pattern": "a" * 70_000}}, "65536 characters", "response_format"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "one of json", "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "1 to 1000 texts", "structured_outputs"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "both", "structured_outputs"),
    ({"response_format": {"type": "json_object"}, "min_tokens": 5}, "cannot be combined with response_format", "min_tokens"),
    ({"guided_json": {}}, "structured_outputs, and there json", "guided_json"),
])  # fmt: skip
def test_forms_that_cannot_be_used_are_refused_with_the_reason(client, more, part, param):
    refused(chat(client, **more), 400, part, param)


def test_a_grammar_that_becomes_too_complex_ends_its_request_only(client, monkeypatch):
    monkeypatch.setattr("llmctl.serve.answers.grammars.LIMITS", {"max_lexer_states": 40})
    asked = {"response_format": {"type": "regex", "pattern": "(a|b)*a(a|b){500}c"}, "temperature": 0}
    refused(chat(client, **asked), 400, "too complex", None)
    assert said(client, temperature=0, max_tokens=3)[1] == "length"


def test_a_schema_that_is_nested_too_deeply_is_refused(client):
    schema = {}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    refused(chat(client, response_format=form(schema)), 400, "more than 64 levels", "response_format")


def test_without_a_grammar_engine_the_reason_is_told(monkeypatch):
    monkeypatch.setattr("llmctl.serve.server.find_spec", lambda name: None)
    with served() as client:
        refused(chat(client, response_format={"type": "json_object"}), 400, "no llguidance", "response_format")


def test_compiled_grammars_are_kept_up_to_a_limit(client):
    tokenizer = client.service.model.tokenizer
    grammars = Grammars(tokenizer, 757)
    first = grammars.compiled("regex", "a", "x")
    assert grammars.compiled("regex", "a", "x") is first
    for number in range(KEPT):
        grammars.compiled("regex", f"b{number}", "x")
    assert len(grammars._found) == KEPT and grammars.compiled("regex", "a", "x") is not first


def test_every_type_of_a_form_is_told():
    from llmctl.serve.answers.formats import FIELDS, TYPES

    for fields in (CHAT, COMPLETIONS):
        rows = {row.name: row.note for row in fields}
        assert all(f"`{kind}`" in rows["response_format"] for kind in TYPES) and set(FIELDS) <= set(rows)
