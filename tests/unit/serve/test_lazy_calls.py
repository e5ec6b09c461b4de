"""Calls in free answers: bound from their opening to their end, whatever the model wants, and nothing else is."""

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.served import chat, chunks, refused, served, wanting
from llguidance import LLTokenizer, TokenizerWrapper

from llmctl.card.answers import CALL_FORMS
from llmctl.serve.answers.grammars import Compiled, Grammars, _Matcher, matcher_of
from llmctl.serve.answers.lazy import LazyCalls
from llmctl.serve.answers.parts import PartsReader, calls_of
from llmctl.serve.answers.tools import CALLS, PLAIN, grammar_of_begun_call, grammar_of_calls, mark_of, tools_of
from llmctl.serve.model import ServedModel

LISTED, OBJECT = CALL_FORMS["listed"], CALL_FORMS["object"]
FORMS = pytest.mark.parametrize("form", [PLAIN, LISTED, OBJECT], ids=["tagged", "listed", "object"])
THOUGHTS = ("<think>", "</think>")
PARAMETERS = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
PIECES = [
    "<tool_call>\n\n", "<tool_call>{", '\n<tool_call>\n{"name": "clock"', "<tool_call>[", '[TOOL_CALLS] [{"', '{"name":"cl', '{"name": " clock', " <think>",
]  # fmt: skip


class Vocabulary:
    """A token for each byte, and one for each piece, which crosses what is looked for."""

    tokens = [bytes([one]) for one in range(256)] + [piece.encode() for piece in PIECES] + [b"<end>"]
    special_token_ids, bos_token_id, eos_token_id = [255 + len(PIECES) + 1], None, 255 + len(PIECES) + 1

    def __call__(self, text):
        return [*(text.encode() if isinstance(text, str) else text)]


LETTERS = LLTokenizer(TokenizerWrapper(Vocabulary()), n_vocab=len(Vocabulary.tokens), slices=[])


def lazy(form, many=True, tools=(WEATHER, CLOCK), thoughts=(), thinking=False):
    found = tools_of({"tools": list(tools), "parallel_tool_calls": many})
    start = matcher_of("lark", grammar_of_begun_call(found, form, mark_of({})), LETTERS, "tools")
    return LazyCalls(
        form=form, call=Compiled(start, LETTERS.vocab_size), most=CALLS if many else 1, thoughts=thoughts, thinking=thinking,
        text_of=Vocabulary.tokens.__getitem__, tokens_of=list,
    )  # fmt: skip


def tokens(text):
    """Tokens of a text: that of a piece, else its bytes."""
    return next(([256 + at] for at, piece in enumerate(PIECES) if piece == text), [*text.encode()])


def allowed(matcher):
    """The letters that may come next; None = all."""
    words = matcher.allowed()
    bits = None if words is None else np.unpackbits(words.view(np.uint8), bitorder="little")[:256]
    return None if bits is None else {chr(at) for at in np.flatnonzero(bits)}


def written(form, *calls):
    rows = [json.dumps({form.name: name, form.arguments: arguments}) for name, arguments in calls]
    if form.listed:
        return f"{form.begin}[{', '.join(rows)}]"
    return "".join(form.begin + row + form.end for row in rows)


ROME = {"city": "Rome", "days": 3}


@FORMS
def test_only_what_follows_an_opening_is_bound(form):
    matcher = lazy(form).matcher()
    for letter in "<tool [TOOL {}" if form.begin else "":
        assert allowed(matcher) is None and matcher.accept(tokens(letter))
    text = written(form, ("weather", ROME))
    opening = text.index("weather") if form is OBJECT else len(form.begin.strip())
    for place, letter in enumerate(text):
        assert (allowed(matcher) is None) == (place < opening), text[:place]
        assert place < opening or letter in allowed(matcher)
        if place == text.index("weather"):
            assert allowed(matcher) == {"w", "c"}
        if place == text.index("3"):
            assert not {'"', "[", "{", "t"} & allowed(matcher)
        assert matcher.accept(tokens(letter)) == 1 and matcher.complete == (place + 1 == len(text) and not form.end)
    if form.end:
        assert allowed(matcher) is None and matcher.accept(tokens("So.\n" + text)) == len(text) + 4
    else:
        assert not matcher.accept(tokens(" "))


@FORMS
@pytest.mark.parametrize("name, arguments", [
    ("other", {}), ("clock", {"zone": 1}), ("weather", {"city": "Rome"}), ("weather", {"city": 1, "days": 3}),
    ("weather", {"city": "Rome", "days": 10}), ("weather", "Rome"),
])  # fmt: skip
def test_wrong_names_and_arguments_cannot_be_written(form, name, arguments):
    text = written(form, (name, arguments))
    assert lazy(form).matcher().accept(tokens(text)) < len(text)


@FORMS
@pytest.mark.parametrize("many", [True, False])
def test_an_answer_has_as_many_calls_as_it_may(form, many):
    most = 16 if many and form.begin else 1
    matcher, two = lazy(form, many).matcher(), written(form, ("clock", {}), ("clock", {}))
    assert (matcher.accept(tokens(two)) == len(two)) == (most > 1)
    assert matcher.complete == (most == 1 and not form.listed or (form.listed and many))
    matcher, full = lazy(form, many).matcher(), written(form, *[("clock", {})] * most)
    assert matcher.accept(tokens(full)) == len(full) and matcher.complete


@FORMS
@pytest.mark.parametrize("style", [
    {"separators": (",", ":")}, {"indent": 4}, {"indent": "\t"}, {"ensure_ascii": True}, {"ensure_ascii": False},
], ids=str)  # fmt: skip
def test_a_call_may_be_written_in_the_style_of_the_model(form, style):
    text = json.dumps({form.name: "weather", form.arguments: {"city": "Köln 中", "days": 3}}, **style)
    text = form.begin.strip() + (f"[{text}]" if form.listed else text) + form.end.strip()
    assert lazy(form).matcher().accept(tokens(text)) == len(text.encode())
    reader = PartsReader(form, ("weather",), ())
    (call,) = calls_of(reader.add(text) + reader.finish())
    assert json.loads(call.arguments) == {"city": "Köln 中", "days": 3}


def test_a_token_may_write_on_beyond_the_opening():
    for piece, form, follows in [
        ("<tool_call>\n\n", PLAIN, {"\n", "\t", "\r", " ", "{"}),
        ("<tool_call>{", PLAIN, {"\n", "\r", " ", '"'}), ('\n<tool_call>\n{"name": "clock"', PLAIN, {"\n", "\r", " ", ","}),
        ('[TOOL_CALLS] [{"', LISTED, {"n"}), ('{"name":"cl', OBJECT, {"o"}),
        ("<tool_call>[", PLAIN, None), ('{"name": " clock', OBJECT, None), ("<tool_call>{", OBJECT, None),
    ]:  # fmt: skip
        matcher = lazy(form).matcher()
        assert matcher.accept(tokens(piece)) == 1 and allowed(matcher) == follows, piece
    late = lazy(OBJECT).matcher()
    assert late.accept(tokens("So: ") + tokens('{"name":"cl')) == 5 and allowed(late) is None


def test_nothing_in_thoughts_is_a_call():
    for thinking, text in [(True, "Hm <tool_call>"), (False, " <think>Hm <tool_call>")]:
        matcher = lazy(PLAIN, thoughts=THOUGHTS, thinking=thinking).matcher()
        assert matcher.accept(tokens(text)) == len(text) and allowed(matcher) is None
        assert matcher.accept(tokens("</think>\n<tool_call>")) == 20 and "{" in allowed(matcher)
    matcher = lazy(PLAIN, thoughts=THOUGHTS).matcher()
    assert matcher.accept(tokens("Say <think> <tool_call>")) == 23 and "{" in allowed(matcher)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    form=st.sampled_from([PLAIN, LISTED, OBJECT]), data=st.data(),
    before=st.lists(st.sampled_from([*PIECES, *"<to[T{ \n", "x" * 70, "</think>"]), max_size=4),
)  # fmt: skip
def test_what_is_taken_back_leaves_no_trace(form, data, before):
    ids = [token for text in [*before, written(form, ("weather", ROME)), " "] for token in tokens(text)]
    stay = data.draw(st.integers(0, len(ids)))
    matcher, plain = (lazy(form, thoughts=THOUGHTS).matcher() for _ in range(2))
    stay = plain.accept(ids[:stay])
    assert matcher.accept(ids[:stay]) == stay
    matcher.prepare()
    tried = matcher.accept(ids[stay : stay + data.draw(st.integers(0, 30))])
    matcher.undo(tried)
    for token in ids[stay:]:
        assert matcher.complete == plain.complete and allowed(matcher) == allowed(plain)
        assert matcher.accept([token]) == plain.accept([token])


@pytest.fixture(scope="module")
def client():
    with pytest.MonkeyPatch.context() as patch, served() as client:
        patch.setattr("llmctl.serve.answers.tools.TOLD", "Call.")
        yield client


@pytest.fixture(scope="module")
def drafting():
    with pytest.MonkeyPatch.context() as patch, served(speculate=6) as client:
        patch.setattr("llmctl.serve.answers.tools.TOLD", "Call.")
        yield client


QUESTION = "How is Rome? Rome is Rome is Rome is Rome."


def want(patch, client, text):
    """Makes the model want a text."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "tools": [WEATHER, CLOCK]}
    wanting(patch, client, body, client.service.model.tokenizer.encode(text, add_special=False, start=False))


def answer(client, **more):
    """Text and calls of a whole answer, which are those of the streamed one."""
    asked = {"tools": [WEATHER, CLOCK], "temperature": 0, "max_tokens": 300, **more}
    response = chat(client, QUESTION, **asked)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in choice["message"].get("tool_calls", ())
    ]
    deltas = [row["choices"][0]["delta"] for row in chunks(chat(client, QUESTION, **asked, stream=True))]
    parts = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == (choice["message"]["content"] or "") and "".join(part["arguments"] for part in parts) == "".join(
        arguments for _, arguments in calls
    )
    assert [part["name"] for part in parts if "name" in part] == [name for name, _ in calls]
    assert len(parts) > 2 * len(calls) or not calls  # piece by piece
    return text, calls, choice["finish_reason"]


WRONG = [("whether", ROME), ("weather", {"city": 7, "days": "many"}), ("weather", {"town": [], "days": 3})]


@FORMS
@pytest.mark.parametrize("name, arguments", WRONG)
def test_a_model_that_wants_a_wrong_call_writes_a_right_one(client, drafting, monkeypatch, form, name, arguments):
    monkeypatch.setattr(ServedModel, "form", form)
    want(monkeypatch, client, ("Well. " if form.begin else "") + written(form, (name, arguments)))
    with monkeypatch.context() as patch:
        patch.setattr(ServedModel, "calls_constraint", lambda *_: None)
        text, free, _ = answer(client)
    assert free == ([] if name in text else [("weather", json.dumps(arguments))])
    made = answer(client)
    text, calls, why = made
    assert text == ("Well." if form.begin else "") and why == "tool_calls" and made == answer(drafting)
    for called, arguments in calls:
        jsonschema.validate(json.loads(arguments), PARAMETERS if called == "weather" else {"maxProperties": 0})
    # What is said is what `required` allows.
    required = grammar_of_calls(tools_of({"tools": [WEATHER, CLOCK]}), form, mark_of({}))
    said = written(form, *((called, json.loads(arguments)) for called, arguments in calls))
    assert matcher_of("lark", required, LETTERS, "tools").consume_tokens([*said.encode()])


@FORMS
@pytest.mark.parametrize("text, calls", [(None, [("weather", json.dumps(ROME))]), ('Say {"name": "x"} <tool', [])])
def test_right_calls_and_plain_text_are_left_as_the_model_wants_them(client, drafting, monkeypatch, form, text, calls):
    monkeypatch.setattr(ServedModel, "form", form)
    want(monkeypatch, client, text or written(form, ("weather", ROME)))
    assert answer(client) == answer(drafting) == (text or "", calls, "tool_calls" if calls else "stop")


def test_one_call_ends_an_answer_that_may_have_no_more(client, drafting, monkeypatch):
    want(monkeypatch, client, written(PLAIN, ("clock", {}), ("clock", {})))
    for one in (client, drafting):
        assert len(answer(one)[1]) == 2 and len(answer(one, parallel_tool_calls=False)[1]) == 1


def test_no_mask_is_computed_before_a_call_has_begun(client, monkeypatch):
    computed, real = [], _Matcher._computed
    monkeypatch.setattr(_Matcher, "_computed", lambda self: computed.append(self) or real(self))
    with monkeypatch.context() as patch:
        want(patch, client, "No call [] here { < at all.")
        assert answer(client)[0] and not computed
    want(monkeypatch, client, written(PLAIN, ("clock", {})))
    assert answer(client)[1] and computed


ODD = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
    "required": ["tags"],
}
BROKEN = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}


def called(client, patch, arguments, **function):
    """Arguments of the calls that are made of those that the model wants."""
    rows = [{"type": "function", "function": {"name": "tag", **function}}]
    with patch.context() as inner:
        want(inner, client, written(PLAIN, ("tag", arguments)))
        return [json.loads(arguments) for _, arguments in answer(client, tools=rows)[1]]


def test_schemas_that_no_grammar_has_bind_as_far_as_they_can_unless_they_are_strict(client, monkeypatch):
    (made,) = called(client, monkeypatch, {"tags": 5}, parameters=ODD)
    assert all(isinstance(tag, str) for tag in made["tags"])
    assert called(client, monkeypatch, {"a": "c"}, parameters=BROKEN, strict=False) == [{"a": "c"}]
    for schema in (ODD, BROKEN):
        rows = [{"type": "function", "function": {"name": "tag", "parameters": schema, "strict": True}}]
        refused(chat(client, tools=rows), 400, "tools: the grammar", "tools")
    rows[0]["function"]["strict"] = "yes"
    refused(chat(client, tools=rows), 400, "strict must be true or false", "tools")


def test_without_a_grammar_engine_calls_are_as_the_model_writes_them(client, monkeypatch):
    want(monkeypatch, client, written(PLAIN, ("clock", {"zone": 1})))
    object.__setattr__(client.service.model, "grammars", None)
    try:
        assert answer(client)[1] == [("clock", '{"zone": 1}')]
    finally:
        object.__setattr__(
            client.service.model, "grammars", Grammars(client.service.model.tokenizer, client.service.model.vocab)
        )
