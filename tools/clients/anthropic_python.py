# /// script
# dependencies = ["anthropic>=1,<3"]
# ///
"""Anthropic's client on ``/v1/messages``: answers, streams, functions and their results, counts of tokens, errors."""

import sys
import urllib.request

import anthropic
from anthropic.types import Message
from anthropic.types.message_create_params import MessageCreateParamsBase

URL, MODEL = sys.argv[1:3]
TURNS = [{"role": "user", "content": "Deny this: Tom has a red kite."}]
SCHEMA = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
ask = {"model": MODEL, "max_tokens": 60, "messages": TURNS, "extra_body": {"temperature": 0}}


def strange(value):
    """Names of fields that a model does not know, in it and in what it holds."""
    if isinstance(value, anthropic.BaseModel):
        inner = [getattr(value, name) for name in value.model_fields_set if name not in (value.model_extra or {})]
        return set(value.model_extra or {}).union(*map(strange, inner))
    return set().union(*map(strange, value)) if isinstance(value, list) else set()


raw = client.messages.with_raw_response.create(**ask)
made = Message.model_validate_json(raw.http_response.text, strict=True)
assert not strange(made), strange(made)
with client.messages.stream(**{**ask, "system": "Be brief."}) as stream:
    text = "".join(stream.text_stream)
    assert stream.get_final_message().content[0].text == text
with client.messages.stream(**ask) as stream:
    assert not set().union(*map(strange, stream))
    grown = stream.get_final_message()
assert grown.content[0].text == made.content[0].text and grown.stop_reason == made.stop_reason
assert grown.usage.output_tokens == made.usage.output_tokens
assert client.messages.count_tokens(model=MODEL, messages=TURNS).input_tokens > 5

tool = {"name": "weather", "description": "Weather of a city.", "input_schema": SCHEMA}
asked = {**ask, "tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
(call,) = client.messages.create(**asked).content
with client.messages.stream(**asked) as stream:
    pieces = [event for event in stream if event.type == "input_json"]
    (same,) = stream.get_final_message().content
assert same.input == call.input and call.input["city"] in ("Rome", "Oslo") and len(pieces) > 3
result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
turns = [*TURNS, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
assert client.messages.create(**{**ask, "messages": turns, "tools": [tool], "tool_choice": {"type": "none"}}).content

schema = {"format": {"type": "json_schema", "schema": SCHEMA}}
assert "city" in client.messages.create(**ask, output_config=schema, thinking={"type": "disabled"}).content[0].text

with urllib.request.urlopen(f"{URL}/docs") as response:
    page = response.read().decode()
unknown = {name for name in MessageCreateParamsBase.__annotations__ if f"<code>{name}</code>" not in page}
assert not unknown, f"the server knows nothing of {unknown}"

for kind, more in ((anthropic.BadRequestError, {"max_tokens": 0}), (anthropic.NotFoundError, {"model": "other"})):
    try:
        client.messages.create(**{**ask, **more})
    except kind as problem:
        assert problem.body["error"]["message"]
        continue
    raise AssertionError(f"no {kind.__name__}")
print("anthropic", anthropic.__version__, "ok")
