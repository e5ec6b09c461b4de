# /// script
# dependencies = ["openai>=3,<4"]
# ///
"""OpenAI's Python client: every answer has the types of its models, strictly, and no field that they do not know."""

import asyncio
import json
import sys
import urllib.request
from typing import Literal

import openai
from openai.types import Completion
from openai.types import completion_create_params as texts
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chats
from openai.types.responses import Response
from openai.types.responses import response_create_params as answers
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
QUESTION = [{"role": "user", "content": "Deny this: Tom has a red kite."}]
MORE = {"reasoning_content", "max_model_len", "store", "name"}
"""Fields that other servers have too, and OpenAI's types have not; `store` it answers all the same, and of
`name`, where arguments are done, its older types knew."""

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
ask = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 40, "stop": ["beans"]}


class Weather(BaseModel):
    """Weather of a city."""

    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2, 3]


class Clock(BaseModel):
    """The time of a city."""

    city: Literal["Rome", "Oslo"]


TOOLS = [openai.pydantic_function_tool(one) for one in (Weather, Clock)]


def strange(value):
    """Names of fields that a model does not know, in it and in what it holds."""
    if isinstance(value, openai.BaseModel):
        inner = [getattr(value, name) for name in value.model_fields_set if name not in (value.model_extra or {})]
        return {*(value.model_extra or {})}.union(*map(strange, inner)) - MORE
    return set().union(*map(strange, value)) if isinstance(value, list) else set()


def strict(kind, text):
    """A model from JSON, without conversions."""
    made = kind.model_validate_json(text, strict=True)
    assert not strange(made), strange(made)
    return made


def raw_chunks(path, body):
    """The chunks of a stream as they came."""
    headers = {"content-type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{URL}/v1{path}", json.dumps(body).encode(), headers)
    ) as response:
        lines = [line for line in response.read().decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [strict(ChatCompletionChunk, line.removeprefix("data: ")) for line in lines[:-1]]


def chat():
    raw = client.chat.completions.with_raw_response.create(**ask)
    made = strict(ChatCompletion, raw.text)
    assert raw.request_id and 1 < made.usage.completion_tokens <= 40
    text = made.choices[0].message.content
    body = {**ask, "stream": True, "stream_options": {"include_usage": True}}
    found = raw_chunks("/chat/completions", body)
    assert "".join(one.choices[0].delta.content or "" for one in found[:-1]) == text
    assert found[-1].choices == [] and found[-1].usage == made.usage and len({one.id for one in found}) == 1
    with client.chat.completions.stream(**ask) as stream:
        kinds = {event.type for event in stream}
        grown = stream.get_final_completion()
    assert kinds >= {"chunk", "content.delta", "content.done"} and grown.choices[0].message.content == text
    several = strict(ChatCompletion, client.chat.completions.with_raw_response.create(
        **{**ask, "temperature": 1}, n=3, logprobs=True, top_logprobs=2, seed=1).text)  # fmt: skip
    assert [one.index for one in several.choices] == [0, 1, 2]
    assert all(len(row.top_logprobs) == 2 for one in several.choices for row in one.logprobs.content)


def parsed():
    made = client.chat.completions.parse(**{**ask, "max_tokens": 60}, response_format=Weather)
    assert isinstance(made.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(**{**ask, "max_tokens": 60}, response_format=Weather) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == made.choices[0].message.parsed


def tools():
    named = {"type": "function", "function": {"name": "Clock"}}
    for choice, many, seed in [("required", True, 1), ("required", False, 2), (named, True, 3), ("auto", True, 4)]:
        asked = {**ask, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": many, "temperature": 1, "seed": seed,
                 "max_tokens": 250}  # fmt: skip
        if choice == "auto":  # the model knows no functions: what it would write
            call = {"name": "Weather", "arguments": {"city": "Oslo", "days": 2}}
            written = "Well.\n" + f"<tool_call>\n{json.dumps(call)}\n</tool_call>" * 2
            asked["extra_body"] = {"structured_outputs": {"choice": [written]}}
        if choice == "required" and many:  # as many calls as the grammar allows would not fit
            asked["stop"] = ['</tool_call>\n<tool_call>\n{"name": "W']
        made = strict(ChatCompletion, client.chat.completions.with_raw_response.create(**asked).text).choices[0]
        with client.chat.completions.stream(**asked) as stream:
            events = [*stream]
            grown = stream.current_completion_snapshot.choices[0]
        calls = made.message.tool_calls or []
        assert [one.function.name for one in grown.message.tool_calls] == [one.function.name for one in calls]
        assert [one.function.arguments for one in grown.message.tool_calls] == [one.function.arguments for one in calls]
        assert (grown.message.content or None) == made.message.content and grown.finish_reason == made.finish_reason
        deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
        assert len(deltas) > 3 * len(calls), "arguments come piece by piece"
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [isinstance(one.parsed_arguments, Weather | Clock) for one in done] == [True] * len(calls)
        assert made.finish_reason == ("tool_calls" if isinstance(choice, str) else "stop") and calls
        assert choice == "auto" and len(calls) == 2 or many and choice == "required" or len(calls) == 1


def completions():
    # The first token of an echo has no log-probability, which OpenAI answers with null and its types do not know.
    for more in ({"logprobs": 2}, {"echo": True}):
        asked = {"model": MODEL, "prompt": ["Tom has", "Mia"], "max_tokens": 6, "temperature": 0, **more}
        made = strict(Completion, client.completions.with_raw_response.create(**asked).text)
        assert made.choices[0].text.startswith("Tom has") == ("echo" in more) and bool(made.choices[0].logprobs) == (
            "logprobs" in more
        )
        texts = {0: "", 1: ""}
        for one in client.completions.create(**asked, stream=True):
            assert not strange(one)
            texts[one.choices[0].index] += one.choices[0].text
        assert [*texts.values()] == [one.text for one in made.choices]


def responses():
    asked = {"model": MODEL, "input": QUESTION, "temperature": 0}
    made = strict(Response, client.responses.with_raw_response.create(**asked).text)
    with client.responses.stream(**asked) as stream:
        assert not set().union(*map(strange, stream))
        assert stream.get_final_response().output_text == made.output_text
    called = {**asked, "tools": TOOLS[1:], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.responses.parse(**called).output
    with client.responses.stream(**called) as stream:
        events = [*stream]
        assert not set().union(*map(strange, events)) and isinstance(call.parsed_arguments, Clock)
        assert stream.get_final_response().output[0].arguments == call.arguments
    assert sum(event.type == "response.function_call_arguments.delta" for event in events) > 3
    assert isinstance(client.responses.parse(**asked, text_format=Weather).output_parsed, Weather)


def others():
    models = client.models.list()
    assert [one.id for one in models] == [MODEL] and client.models.retrieve(MODEL).id == MODEL
    assert not strange(models)
    for error, more in ((openai.BadRequestError, {"temperature": -1}), (openai.NotFoundError, {"model": "other"})):
        try:
            client.chat.completions.create(**{**ask, **more})
        except error as problem:
            assert problem.body["message"] and problem.param and problem.request_id
        else:
            raise AssertionError(f"no {error.__name__}")


def fields():
    with urllib.request.urlopen(f"{URL}/docs") as response:
        page = response.read().decode()
    theirs = (chats.CompletionCreateParamsBase, texts.CompletionCreateParamsBase, answers.ResponseCreateParamsBase)
    unknown = {name for one in theirs for name in one.__annotations__ if f"<code>{name}</code>" not in page}
    assert not unknown, f"the server knows nothing of {unknown}"


async def at_once():
    text = client.chat.completions.create(**ask).choices[0].message.content
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0) as other:
        made = await asyncio.gather(*(other.chat.completions.create(**ask) for _ in range(8)))
        assert {one.choices[0].message.content for one in made} == {text}
        stream = await other.chat.completions.create(**{**ask, "max_tokens": 300}, stream=True)
        async for _ in stream:
            break
        await stream.close()


if __name__ == "__main__":
    for check in (chat, parsed, tools, completions, responses, others, fields):
        check()
    asyncio.run(at_once())
    print("openai", openai.__version__, "ok")
