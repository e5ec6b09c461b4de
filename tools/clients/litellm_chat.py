# /// script
# dependencies = ["litellm>=1.80,<2"]
# ///
"""litellm: chat, text, streams with usage, functions, structured outputs, responses, and errors by their kind."""

import os
import sys
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks GitHub

import litellm  # noqa: E402

URL, MODEL = sys.argv[1:3]
TURNS = [{"role": "user", "content": "Deny this: Tom has a red kite."}]
SCHEMA = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}}
to = {"api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0, "temperature": 0}
ask = {**to, "model": f"openai/{MODEL}", "messages": TURNS, "max_tokens": 60}

made = litellm.completion(**ask)
parts = [*litellm.completion(**ask, stream=True, stream_options={"include_usage": True})]
grown = litellm.stream_chunk_builder(parts, messages=TURNS)
assert grown.choices[0].message.content == made.choices[0].message.content and len(parts) > 5
assert grown.usage.total_tokens == made.usage.total_tokens == parts[-1].usage.total_tokens

text = {**to, "model": f"text-completion-openai/{MODEL}", "prompt": "Tom has", "max_tokens": 6}
whole = litellm.text_completion(**text).choices[0].text
assert "".join(one.choices[0].text or "" for one in litellm.text_completion(**text, stream=True)) == whole

for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
    asked = {**ask, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    (call,) = litellm.completion(**asked).choices[0].message.tool_calls
    parts = [*litellm.completion(**asked, stream=True)]
    (same,) = litellm.stream_chunk_builder(parts, messages=TURNS).choices[0].message.tool_calls
    assert (same.function.name, same.function.arguments) == (call.function.name, call.function.arguments)
    assert sum(bool(one.choices[0].delta.tool_calls) for one in parts) > 3, "arguments come piece by piece"

form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
assert "city" in litellm.completion(**ask, response_format=form).choices[0].message.content
response = litellm.responses(
    **to, model=f"openai/{MODEL}", input="Deny this: Tom has a red kite.", max_output_tokens=60
)
assert response.output[0].content[0].text == made.choices[0].message.content

for kind, more in ((litellm.BadRequestError, {"top_p": 7}), (litellm.NotFoundError, {"model": "openai/other"})):
    try:
        litellm.completion(**{**ask, **more})
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")
print("litellm", version("litellm"), "ok")
