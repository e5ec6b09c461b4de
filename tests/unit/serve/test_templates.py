"""Conversations with tools and arguments of the chat template, against the template of transformers' kind itself."""

import json
import shutil

import jinja2
import pytest
from kit.paths import STARTER
from kit.served import served

from llmctl.card.answers import CALL_FORMS

TEMPLATE = (
    "{% if tools %}{{ tools | map(attribute='function') | map(attribute='name') | join(' ') }} {% endif %}"
    "{% if enable_thinking %}think {% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments.city }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Rome"})}}
MESSAGES = [
    {"role": "user", "content": "Tom lives in Rome."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "The red kite."},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(STARTER / "model", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    with served(folder=folder) as client:
        yield client


def prompt(client, **more):
    tokens = client.post("/tokenize", json={"messages": MESSAGES, **more}).json()["tokens"]
    return client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}, {"chat_template_kwargs": {"enable_thinking": True}}])
def test_the_template_writes_tools_calls_and_arguments(client, more):
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [MESSAGES[0], {"role": "assistant", "tool_calls": [call]}, MESSAGES[2]]
    given = {"tools": more.get("tools"), **more.get("chat_template_kwargs", {})}
    expected = jinja2.Template(TEMPLATE).render(messages=messages, add_generation_prompt=True, **given)
    assert prompt(client, **more).split() == expected.split()


def test_thoughts_of_earlier_turns_reach_the_template(client, monkeypatch):
    seen = []
    template = client.service.model.tokenizer.chat_template
    monkeypatch.setattr(type(template), "text", lambda self, talk: seen.append(talk.messages) or "x")
    call = {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Rome"}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [thought, call]},
             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]}]  # fmt: skip
    items = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
             {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"city": "Rome"}'},
             {"type": "function_call_output", "call_id": "1", "output": "x"}]  # fmt: skip
    assert client.post("/v1/messages", json={"messages": turns, "max_tokens": 1}).status_code == 200
    assert client.post("/v1/responses", json={"input": items, "max_output_tokens": 1}).status_code == 200
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    for name in ("reasoning_content", "reasoning", "thinking"):
        said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, name: "Hm.", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "1", "content": "x"}]  # fmt: skip
        asked = client.post("/v1/chat/completions", json={"messages": said, "max_tokens": 1})
        assert asked.status_code == 200, asked.text
    for messages in seen:
        assert [message.role for message in messages] == ["user", "assistant", "tool"]
        assert messages[1].more["reasoning_content"] == "Hm." and messages[1].more["tool_calls"]
    assert len(seen) == 5


def test_thinking_of_a_message_is_what_the_template_calls_enable_thinking(client):
    sizes = [
        client.post("/v1/messages/count_tokens", json={"messages": MESSAGES[:1], **more}).json()["input_tokens"]
        for more in ({}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "enabled", "budget_tokens": 9}})
    ]
    assert sizes[0] == sizes[1] < sizes[2]


def test_the_effort_of_reasoning_is_for_templates_that_read_it(client, monkeypatch):
    body = {"messages": MESSAGES[:1], "max_tokens": 1}
    refusal = client.post("/v1/chat/completions", json={**body, "reasoning_effort": "low"}).json()["error"]
    assert refusal["param"] == "reasoning_effort" and "does not read" in refusal["message"]
    seen, model = [], client.service.model
    template = type(model.tokenizer.chat_template)
    monkeypatch.setattr(template, "text", lambda self, talk: seen.append(talk.variables) or "x")
    for names in ((), ("reasoning_effort",)):
        monkeypatch.setattr(template, "reads", lambda self, name, more=names: name in ("enable_thinking", *more))
        for effort in ("none", *(["low"] if names else [])):
            assert client.post("/v1/chat/completions", json={**body, "reasoning_effort": effort}).status_code == 200
            made = client.post(
                "/v1/responses", json={"input": "Hi", "max_output_tokens": 1, "reasoning": {"effort": effort}}
            )
            assert made.json()["reasoning"] == {"effort": effort, "summary": None}
    expected = [{"enable_thinking": False}, {"reasoning_effort": "none"}, {"reasoning_effort": "low"}]
    assert seen == [one for one in expected for _ in range(2)]


def test_tool_choice_none_leaves_tools_out(client):
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 2}
    sizes = {
        choice: client.post("/v1/chat/completions", json={**body, "tool_choice": choice}).json()["usage"][
            "prompt_tokens"
        ]
        for choice in ("auto", "none")
    }
    assert sizes["auto"] > sizes["none"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_calls_that_must_be_made_are_in_the_form_of_the_card(client, choice):
    body = {
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 200,
    }
    made = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert client.service.model.form == CALL_FORMS["object"] == client.service.model.calls
    assert made["finish_reason"] == "length" or made["message"]["tool_calls"][0]["function"]["name"] == "weather"
