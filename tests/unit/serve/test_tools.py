"""Calls of functions and thoughts: found in any division of an answer's text, bound by grammar on any model."""

import json
import shutil

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.paths import STARTER
from kit.served import chat, chunks, refused, served, wanting
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llmctl.card.answers import CALL_FORMS
from llmctl.serve.answers.parts import PartsReader, calls_of
from llmctl.serve.answers.tools import PLAIN, TOLD, told, tools_of
from llmctl.tokenizers.conversation import Message

LISTED, OBJECT = CALL_FORMS["listed"], CALL_FORMS["object"]
THOUGHTS = ("<think>", "</think>")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"], "additionalProperties": False,
            "$defs": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}},
        },
    },
}  # fmt: skip
CLOCK = {"type": "function", "function": {"name": "clock"}}


def read(pieces, form=PLAIN, marks=THOUGHTS, thinking=False):
    reader = PartsReader(form, ("weather", "clock"), marks, thinking)
    parts = [part for found in [*map(reader.add, pieces), reader.finish()] for part in found]
    said, thought = ("".join(part.text for part in parts if part.kind == kind) for kind in ("text", "thoughts"))
    return said, thought, [(call.name, call.arguments) for call in calls_of(parts)]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
ROME = '{"city": "Rome"}'
LATER = CALL.replace('"name": "weather", ', "").replace('"}}', '"}, "name": "weather"}')
TEXTS = [
    ("plain  text\n", PLAIN, ("plain  text\n", "", [])),
    ("  two a < b <tool", PLAIN, ("two a < b <tool", "", [])),
    (f"<think>\nHm, so.\n</think>\n\nYes.\n{CALL}\n{CALL}\n", PLAIN, ("Yes.", "Hm, so.", [("weather", ROME)] * 2)),
    ("<think>never ends", PLAIN, ("", "never ends", [])),
    (f"{CALL} So.", PLAIN, ("So.", "", [("weather", ROME)])),
    (LATER, PLAIN, ("", "", [("weather", ROME)])),
    (CALL.replace("weather", "other"), PLAIN, (CALL.replace("weather", "other"), "", [])),
    ("<tool_call>{oops}</tool_call> more", PLAIN, ("<tool_call>{oops}</tool_call> more", "", [])),
    ('<tool_call>\n{"name": "clock", "arguments": {}', PLAIN, ("", "", [("clock", "{}")])),
    ('<tool_call>\n{"name": "clock", "arguments": {}, "id": "[}"}\n Well.', PLAIN, ("Well.", "", [("clock", "{}")])),
    ('<tool_call>\n{"name": "clock", "argu', PLAIN, ('<tool_call>\n{"name": "clock", "argu', "", [])),
    ('<tool_call>\n{"name": "clock", "arguments": {"a": "}</tool_call>\\" {[" }}</tool_call> Yes', PLAIN,
     ("Yes", "", [("clock", '{"a": "}</tool_call>\\" {[" }')])),
    # Neither what is cut nor what is no JSON can be taken back once it has been passed on.
    ('<tool_call>\n{"name": "clock", "arguments": {"a": [1, "</to', PLAIN, ("", "", [("clock", '{"a": [1, "</to')])),
    ('<tool_call>{"name": "clock", "arguments": {"a": "\n"}, [}</tool_call>Yes', PLAIN,
     ("Yes", "", [("clock", '{"a": "\n"}, [}')])),
    ('<tool_call>{"name": "clock", "arguments": {"a": [1}}}</tool_call>', PLAIN, ("", "", [("clock", '{"a": [1}}}')])),
    ('Well. [TOOL_CALLS] [{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"a": "[1]"}, "id": "x"} ]',
     LISTED, ("Well.", "", [("clock", "{}"), ("weather", '{"a": "[1]"}')])),
    ('[TOOL_CALLS] {"name": "clock", "arguments": {}}', LISTED, ("", "", [("clock", "{}")])),
    ('{"name": "weather", "parameters": {"city": "Rome"}}', OBJECT, ("", "", [("weather", ROME)])),
    ('{"name": 1}', OBJECT, ('{"name": 1}', "", [])),
    ('Say {"name": "clock"}', OBJECT, ('Say {"name": "clock"}', "", [])),
]  # fmt: skip


@pytest.mark.parametrize("text, form, expected", TEXTS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_parts_are_found_however_the_text_is_divided(text, form, expected, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces, form) == read([*text], form) == expected


SHREDS = [
    *"{}[]\",\\ \na<", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<think>", "</think>", '{"name": "clock"', ', "arguments": {',
    ', "parameters": {', '{"name": "other", "arguments": {}}',
]  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    form=st.sampled_from([PLAIN, LISTED, OBJECT]), shreds=st.lists(st.sampled_from(SHREDS), max_size=14), data=st.data()
)
def test_whatever_is_written_its_division_does_not_matter(form, shreds, data):
    text = "".join(shreds)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces, form) == read([text], form) == read([*text], form)


@pytest.mark.parametrize("form, text", [
    (PLAIN, f"Yes. {CALL}"), (LISTED, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME}}}]'),
    (OBJECT, f'{{"name": "weather", "parameters": {ROME}}}'),
])  # fmt: skip
def test_arguments_are_passed_on_as_they_are_written(form, text):
    reader, at, parts = PartsReader(form, ("weather",), ()), text.index(ROME), []
    for place, letter in enumerate(text):
        parts += reader.add(letter)
        expected = [("weather", text[at : min(place + 1, at + len(ROME))])] if place >= at else []
        assert [(call.name, call.arguments) for call in calls_of(parts)] == expected
    assert not reader.finish() and not reader.cut


def test_an_answer_may_begin_within_thoughts():
    assert read(["so it is</th", "ink>\nYes"], thinking=True) == ("Yes", "so it is", [])
    assert read(["<think>no marks</think>"], marks=())[0] == "<think>no marks</think>"


@pytest.fixture(scope="module")
def client():
    # The starter model has room for few tokens.
    with pytest.MonkeyPatch.context() as patch, served() as client:
        patch.setattr("llmctl.serve.answers.tools.TOLD", "Call.")
        yield client


def ask(client, **more):
    """The choice of a whole answer, which is the same as the streamed one."""
    asked = {"tools": [WEATHER, CLOCK], "temperature": 1.3, "max_tokens": 300, **more}
    response = chat(client, "How is Rome?", **asked)
    assert response.status_code == 200, response.text
    made = ChatCompletion.model_validate_json(response.content, strict=True).choices[0]
    state = ChatCompletionStreamState()
    begun = []
    for row in chunks(chat(client, "How is Rome?", **asked, stream=True)):
        one = ChatCompletionChunk.model_validate(row)
        for part in one.choices[0].delta.tool_calls or ():
            if part.index == len(begun):
                begun.append(part)
                assert part.id and part.type == "function" and part.function.name and part.function.arguments == ""
            else:
                assert part.index == len(begun) - 1 and part.function.arguments and not part.id
        state.handle_chunk(one)
    grown = state.current_completion_snapshot.choices[0]
    for call in (*(made.message.tool_calls or ()), *(grown.message.tool_calls or ())):
        assert len(call.id) == 9
        call.id = ""
    keys = {"finish_reason": True, "message": {"content": True, "tool_calls": {"__all__": {"id", "type", "function"}}}}
    said, streamed = (one.model_dump(include=keys, exclude_none=True) for one in (made, grown))
    for call in streamed["message"].get("tool_calls", ()):
        call["function"].pop("parsed_arguments", None)
    assert {**streamed, "message": {"content": "", **streamed["message"]}} == {
        **said, "message": {"content": "", **said["message"]}
    }  # fmt: skip
    return made


@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid_on_any_model(client, seed):
    made = ask(client, tool_choice="required", seed=seed)
    if made.finish_reason == "length":
        return
    assert made.finish_reason == "tool_calls" and made.message.content is None
    assert 1 <= len(made.message.tool_calls) <= 16
    for call in made.message.tool_calls:
        assert call.function.name in ("weather", "clock")
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


@pytest.mark.parametrize("more, most", [({"tool_choice": "required", "parallel_tool_calls": False}, 1),
                                        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, 1)])  # fmt: skip
def test_one_call_of_a_named_function(client, more, most):
    for seed in range(3):
        made = ask(client, seed=seed, **more)
        assert len(made.message.tool_calls) == most
        if isinstance(more["tool_choice"], dict):
            assert made.finish_reason == "stop" and made.message.tool_calls[0].function.name == "weather"


def test_a_function_gets_no_arguments_that_it_does_not_list(client):
    open_ended = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    made = ask(client, tools=[open_ended], tool_choice="required", parallel_tool_calls=False, seed=2)
    assert [json.loads(call.function.arguments) for call in made.message.tool_calls] == [{}]


@pytest.mark.parametrize("form, written", [
    (None, "Well.\n" + CALL), (LISTED, 'Well. [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]'),
    (OBJECT, '{"name": "weather", "parameters": {"city": "Rome"}}'),
])  # fmt: skip
def test_calls_that_a_model_chooses_to_write(client, monkeypatch, form, written):
    monkeypatch.setattr(type(client.service.model), "form", form or PLAIN)
    made = ask(client, structured_outputs={"choice": [written]})
    assert [call.function.name for call in made.message.tool_calls] == ["weather"]
    assert made.message.content == ("Well." if "Well" in written else None) and made.finish_reason == "tool_calls"
    plain = ask(client, structured_outputs={"choice": [written]}, tool_choice="none")
    assert plain.message.content == written and plain.finish_reason == "stop"


def test_a_call_that_is_cut_is_no_reason_to_make_it(client):
    written = {"structured_outputs": {"choice": [CALL]}, "max_tokens": 300}
    cut = ask(client, **written, stop="Ro")
    assert (cut.finish_reason, cut.message.tool_calls[0].function.arguments) == ("stop", '{"city": "')
    short = next(
        made for size in range(8, 99) if (made := ask(client, **{**written, "max_tokens": size})).message.tool_calls
    )
    assert short.finish_reason == "length" and not short.message.tool_calls[0].function.arguments.endswith("}")


@pytest.mark.parametrize("form", [LISTED, OBJECT])
def test_the_forms_of_cards_bind_too(client, monkeypatch, form):
    monkeypatch.setattr(type(client.service.model), "form", form)
    made = ask(client, tool_choice="required", parallel_tool_calls=False, seed=1)
    assert len(made.message.tool_calls) == 1 and made.message.content is None


def test_marks_that_are_special_tokens_are_written_and_read(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STARTER / "model", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|user|>", "<tool_call>").replace("<|assistant|>", "</tool_call>"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% if tools %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    with served(folder=folder) as client:
        object.__setattr__(client.service.model, "calls", CALL_FORMS["tagged"])
        assert set(client.service.model.marks.values()) == {"<tool_call>", "</tool_call>"}
        made = ask(client, tools=[CLOCK], tool_choice="required", max_tokens=400, seed=1)
        assert made.message.tool_calls and made.message.content is None
        made = ask(client, tools=[CLOCK], tool_choice="required", parallel_tool_calls=False, seed=2)
        assert [json.loads(call.function.arguments) for call in made.message.tool_calls] == [{}]
        plain, ids = client.service.model.plain, client.service.model.tokenizer.special.ids
        body = {"messages": [{"role": "user", "content": "How is Rome?"}], "tools": [CLOCK]}
        wrong = plain('\n{"name": "clack", "arguments": {}}\n')
        with pytest.MonkeyPatch.context() as patch:
            wanting(
                patch, client, body, [*plain("Well. "), ids["<tool_call>"], *wrong, ids["</tool_call>"], *plain("So.")]
            )
            made = ask(client, tools=[CLOCK], temperature=0, max_tokens=60)
        assert [call.function.name for call in made.message.tool_calls] == ["clock"]
        assert made.message.content.startswith("Well.")


def test_results_go_on_in_the_conversation(client):
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "How is Rome?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
    ]  # fmt: skip
    body = {"messages": messages, "tools": [WEATHER], "temperature": 0, "max_tokens": 5}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    messages[1]["tool_calls"][0]["function"]["arguments"] = "{"
    refused(client.post("/v1/chat/completions", json=body), 400, "not valid JSON", "messages")


def test_without_a_place_in_the_template_a_message_tells_of_functions(monkeypatch):
    monkeypatch.setattr("llmctl.serve.answers.tools.TOLD", TOLD)
    calls = [{"function": {"name": "clock", "arguments": {}}}]
    messages = [
        Message("user", "Hi"),
        Message("assistant", None, {"tool_calls": calls}),
        Message("tool", "3"),
        Message("tool", "4"),
    ]
    found = told(None, messages)
    assert [message.role for message in found] == ["user", "assistant", "user"]
    assert found[1].content == '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert found[2].content.count("<tool_response>") == 2
    tools = tools_of({"tools": [WEATHER]})
    assert '"name": "weather"' in told(tools, messages)[0].content
    assert told(tools, [Message("system", "Be brief."), *messages])[0].content.startswith("Be brief.\n\nYou may call")
    first = told(tools, messages, system=False)[0]
    assert first.role == "user" and first.content.startswith("You may call") and first.content.endswith("\n\nHi")


def test_thoughts_of_a_model_whose_card_has_marks():
    with served() as client:
        object.__setattr__(client.service.model, "thoughts", THOUGHTS)
        form = {"choice": ["<think>\nHm.\n</think>\n\nYes."]}
        # A form leaves no room for thoughts, so all of it is content.
        assert ask(client, tools=[], structured_outputs=form).message.content == form["choice"][0]
        reader = client.service.model.reader({}, client.service.model.plain("Hi <think>\n"), False)()
        parts = reader.add("Hm.</think> Yes") + reader.finish()
        assert [(part.kind, part.text) for part in parts] == [("thoughts", "Hm."), ("text", "Yes")]
