# /// script
# dependencies = ["langchain-openai>=1,<2"]
# ///
"""langchain-openai: messages, streams, bound functions and structured outputs."""

import asyncio
import sys
from importlib.metadata import version
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
QUESTION = "Deny this: Tom has a red kite."
ask = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}


class Weather(BaseModel):
    """Weather of a city."""

    city: Literal["Rome", "Oslo"]


model = ChatOpenAI(**ask, max_tokens=60, stream_usage=True)
made = model.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
parts = [*model.stream([SystemMessage("Be brief."), HumanMessage(QUESTION)])]
grown = sum(parts[1:], parts[0])
assert len(parts) > 5 and grown.content == made.content
assert made.usage_metadata["total_tokens"] == grown.usage_metadata["total_tokens"]
assert made.response_metadata["finish_reason"] == grown.response_metadata["finish_reason"]

texts = [QUESTION, "Ask about this: Mia likes tea."]
assert [one.content for one in model.batch(texts)] == [model.invoke(one).content for one in texts]
assert asyncio.run(model.ainvoke(QUESTION)).content == model.invoke(QUESTION).content

for choice in ("any", "Weather"):
    bound = model.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
    made, parts = bound.invoke(QUESTION), [*bound.stream(QUESTION)]
    grown = sum(parts[1:], parts[0])
    (call,) = made.tool_calls
    assert call["name"] == "Weather" and Weather(**call["args"]) and not made.invalid_tool_calls
    assert [one["args"] for one in grown.tool_calls] == [call["args"]] and not grown.invalid_tool_calls
    assert sum(bool(one.tool_call_chunks) for one in parts) > 3, "arguments come piece by piece"
turns = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id=call["id"])]
assert isinstance(model.bind_tools([Weather]).invoke(turns), AIMessage)

for method in ("json_schema", "function_calling"):
    assert isinstance(model.with_structured_output(Weather, method=method).invoke(QUESTION), Weather)

plain = OpenAI(**ask, max_tokens=6)
assert "".join(plain.stream("Tom has")) == plain.invoke("Tom has")
responses = ChatOpenAI(**ask, max_tokens=60, use_responses_api=True)
assert responses.invoke(QUESTION).text == model.invoke(QUESTION).text
print("langchain-openai", version("langchain-openai"), "ok")
