"""``/v1/responses`` by OpenAI's client and ``/v1/messages`` by its events: the answers of chat completions, whole and streamed."""

import json
import re

import openai
import pytest
from kit.served import QUESTION, chat, refused, served

GREEDY = {"temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"day": {"enum": ["Mon", "Tue"]}},
    "required": ["day"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client():
    # The starter model has room for few tokens.
    with pytest.MonkeyPatch.context() as patch, served() as client:
        patch.setattr("llmctl.serve.answers.tools.TOLD", "Call.")
        yield client


@pytest.fixture
def ours(client):
    return openai.OpenAI(base_url="http://localhost/v1", api_key="none", http_client=client, max_retries=0)


def said(client, **more):
    return chat(client, **GREEDY, **more).json()["choices"][0]["message"]["content"]


def test_a_response_is_the_answer_of_chat_completions_whole_and_streamed(client, ours):
    made = ours.responses.create(model="starter", input=QUESTION, **GREEDY)
    assert made.output_text == said(client) and made.status == "completed" and made.store is False
    assert made.usage.total_tokens == chat(client, **GREEDY).json()["usage"]["total_tokens"]
    events = [
        *ours.responses.create(model="starter", input=[{"role": "user", "content": QUESTION}], stream=True, **GREEDY)
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == made.output_text
    assert events[-1].type == "response.completed" and events[-1].response.output_text == made.output_text
    cut = ours.responses.create(model="starter", input=QUESTION, max_output_tokens=3, **GREEDY)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_instructions_forms_and_turns_of_a_response(client, ours):
    form = {"format": {"type": "json_schema", "name": "day", "schema": SCHEMA}}
    made = ours.responses.create(model="starter", input=QUESTION, instructions="Be brief.", text=form, temperature=1)
    assert json.loads(made.output_text)["day"] in ("Mon", "Tue")
    first = ours.responses.create(model="starter", input=QUESTION, **GREEDY)
    turns = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "Why?"}]
    assert ours.responses.create(model="starter", input=turns, max_output_tokens=3, **GREEDY).usage.input_tokens > 20


def test_calls_of_a_response(client, ours):
    tool = {"type": "function", "name": "set_day", "parameters": SCHEMA, "strict": True}
    asked = {"model": "starter", "input": QUESTION, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False,
             "temperature": 1, "extra_body": {"seed": 4}}  # fmt: skip
    (call,) = ours.responses.create(**asked).output
    assert call.type == "function_call" and json.loads(call.arguments)["day"] in ("Mon", "Tue")
    events = [*ours.responses.create(**asked, stream=True)]
    (done,) = (event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == call.arguments
    turns = [
        {"role": "user", "content": QUESTION},
        call,
        {"type": "function_call_output", "call_id": call.call_id, "output": "ok"},
    ]
    assert ours.responses.create(model="starter", input=turns, max_output_tokens=3).output_text is not None


@pytest.mark.parametrize("more, part, param", [
    ({"previous_response_id": "resp_1"}, "nothing is stored", "previous_response_id"), ({"input": 3}, "list of objects", "input"),
    ({"input": [{"type": "input_image"}]}, "input[0]: type", "input"), ({"tools": [{"type": "web_search"}]}, "no tools of its own", "tools"),
    ({"tools": [{"type": "function", "name": "f", "strict": 1}]}, "strict must be", "tools"),
    ({"max_tokens": 3}, "max_output_tokens", "max_tokens"), ({"background": True}, "nothing is stored", "background"),
])  # fmt: skip
def test_responses_that_cannot_be_given(client, more, part, param):
    refused(client.post("/v1/responses", json={"input": QUESTION, **more}), 400, part, param)


def message(client, messages, **more):
    """The message to a conversation, and the same put together from the events of a stream."""
    asked = {"max_tokens": 60, "messages": messages, **GREEDY, **more}
    response = client.post("/v1/messages", json=asked)
    assert response.status_code == 200, response.text
    whole, grown = response.json(), from_events(client.post("/v1/messages", json={**asked, "stream": True}).text)
    for one in (whole, grown):
        for block in one["content"]:
            block.pop("id", None)
        del one["id"]
        one["usage"]["input_tokens"] += one["usage"].pop("cache_read_input_tokens")
    assert grown == whole
    return whole


def from_events(text):
    """A message from the events of https://docs.anthropic.com/en/docs/build-with-claude/streaming."""
    made, parts, opened = {}, [], None
    for lines in filter(None, text.split("\n\n")):
        name, data = lines.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and (made or event["type"] == "message_start")
        if event["type"] == "message_start":
            made = event["message"]
        elif event["type"] == "content_block_start":
            assert opened is None and event["index"] == len(made["content"])
            opened, parts = event["index"], []
            made["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            (text,) = (value for key, value in event["delta"].items() if key != "type")
            parts.append(text)
        elif event["type"] == "content_block_stop":
            block, opened = made["content"][-1], None
            value = "".join(parts)
            block.update({"input": json.loads(value)} if block["type"] == "tool_use" else {block["type"]: value})
        elif event["type"] == "message_delta":
            made.update(event["delta"], usage=event["usage"])
        else:
            assert event == {"type": "message_stop"}
    return made


USER = [{"role": "user", "content": QUESTION}]


def test_a_message_is_the_answer_of_chat_completions_whole_and_streamed(client):
    made = message(client, USER)
    assert [block["type"] for block in made["content"]] == ["text"] and made["stop_reason"] == "end_turn"
    text = made["content"][0]["text"]
    assert text == said(client, max_tokens=60)
    count = client.post("/v1/messages/count_tokens", json={"messages": USER}).json()["input_tokens"]
    assert made["usage"]["input_tokens"] == count
    stopped = message(client, USER, stop_sequences=[text[4:8], "zzz"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", text[4:8])
    assert message(client, USER, max_tokens=2)["stop_reason"] == "max_tokens"


def test_a_message_that_is_begun_goes_on(client):
    text = said(client)
    at = text.index(" ", 3)
    begun = [*USER, {"role": "assistant", "content": text[:at]}]
    assert text[:at] + message(client, begun)["content"][0]["text"] == text
    body = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False, **GREEDY}
    assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == text[at:]
    refused(
        client.post("/v1/chat/completions", json={**body, "messages": begun[:1]}), 400, "assistant's text", "messages"
    )
    refused(
        client.post("/v1/chat/completions", json={**body, "add_generation_prompt": True}),
        400,
        "false with",
        "add_generation_prompt",
    )


def test_calls_in_messages_and_their_results(client):
    tool = {"name": "set_day", "description": "Sets a day.", "input_schema": SCHEMA}
    turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    made = message(client, turns, tools=[tool], tool_choice={"type": "tool", "name": "set_day"}, max_tokens=90)
    (call,) = made["content"]
    assert call["type"] == "tool_use" and call["input"]["day"] in ("Mon", "Tue") and made["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": "abcdefghi", "content": [{"type": "text", "text": "ok"}]}
    turns += [{"role": "assistant", "content": [{**call, "id": "abcdefghi"}]}, {"role": "user", "content": [result]}]
    assert message(client, turns, tools=[tool], tool_choice={"type": "none"}, max_tokens=3)["content"]


def test_a_message_in_a_form(client):
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    for thinking in ({"type": "adaptive"}, {"type": "disabled"}):
        made = message(client, USER, output_config=form, thinking=thinking, cache_control={"type": "ephemeral"})
        assert json.loads(made["content"][0]["text"])["day"] in ("Mon", "Tue")


def test_a_call_that_is_cut_is_none_to_make(client, ours):
    tool = {"name": "set_day", "input_schema": SCHEMA}
    asked = {"messages": USER, "tools": [tool], "tool_choice": {"type": "any"}, "temperature": 0}

    def cut(size):
        return client.post("/v1/messages", json={**asked, "max_tokens": size})

    size = next(size for size in range(5, 99) if cut(size).json()["content"][0]["text"].startswith("set_day {"))
    made = cut(size).json()
    assert made["stop_reason"] == "max_tokens" and len(made["content"]) == 1
    grown = client.post("/v1/messages", json={**asked, "max_tokens": size, "stream": True}).text
    written = "".join(json.loads(f'"{part}"') for part in re.findall(r'"partial_json":"((?:[^"\\]|\\.)*)"', grown))
    assert made["content"][0]["text"] == f"set_day {written}" and '"stop_reason":"max_tokens"' in grown
    function = {"type": "function", "name": "set_day", "parameters": SCHEMA}
    body = {"model": "starter", "input": QUESTION, "tools": [function], "tool_choice": "required", **GREEDY}
    (call,) = ours.responses.create(**body, max_output_tokens=size).output
    assert (call.type, call.status) == ("function_call", "incomplete") and call.arguments.startswith("{")


def test_errors_of_messages_have_anthropic_s_form(client):
    for more, status, part in (
        ({"max_tokens": 0}, 400, "at least 1"), ({"model": "other"}, 404, "there are: starter"), ({"messages": [{"role": "user"}]}, 400, "list of blocks"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "allowed are user"), ({"thinking": {"type": "on"}}, 400, "allowed are enabled"), ({"output_config": {"effort": "low"}}, 400, "known: format"),
        ({"output_config": {"format": {"type": "json"}}}, 400, "json_schema and schema"), ({"speed": "fast"}, 400, "one speed"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "text only"), ({"tools": [{"name": "f"}]}, 400, "input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}, "strict": 1}]}, 400, "strict must be"),
    ):  # fmt: skip
        response = client.post("/v1/messages", json={"max_tokens": 5, "messages": USER, **more})
        assert response.status_code == status and response.json()["type"] == "error"
        assert part in response.json()["error"]["message"] and response.json()["error"]["type"].endswith("_error")


def test_the_key_may_come_as_anthropic_s_clients_send_it():
    with served(keys=["secret"]) as client:
        for key, status in (("secret", 200), ("wrong", 401)):
            headers = {"x-api-key": key}
            assert (
                client.post("/v1/messages/count_tokens", json={"messages": USER}, headers=headers).status_code == status
            )


def test_there_are_no_embeddings_and_why(client):
    refused(client.post("/v1/embeddings", json={"input": "a"}), 501, "no embeddings")
