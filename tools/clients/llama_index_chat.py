# /// script
# dependencies = ["llama-index-llms-openai-like<1"]
# ///
"""llama-index with OpenAILike: chat, completions, streams, functions and structured outputs."""

import asyncio
import sys
from importlib.metadata import version
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL, MODEL = sys.argv[1:3]
TURNS = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Deny this: Tom has a red kite."),
]


class Place(BaseModel):
    """A city."""

    city: Literal["Rome", "Oslo"]


def weather(city: Literal["Rome", "Oslo"]) -> str:
    """Weather of a city."""
    return city


model = OpenAILike(
    model=MODEL, api_base=f"{URL}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True, context_window=4096,
    temperature=0, max_tokens=60, max_retries=0, should_use_structured_outputs=True,
)  # fmt: skip
made = model.chat(TURNS).message.content
parts = [*model.stream_chat(TURNS)]
assert "".join(one.delta or "" for one in parts) == made == parts[-1].message.content and len(parts) > 5
assert asyncio.run(model.achat(TURNS)).message.content == made

plain = model.model_copy(update={"is_chat_model": False})
assert "".join(one.delta for one in plain.stream_complete("Tom has")) == plain.complete("Tom has").text

tool = FunctionTool.from_defaults(weather)
made = model.chat_with_tools([tool], chat_history=TURNS, tool_required=True)
(call,) = model.get_tool_calls_from_response(made)[:1]
assert call.tool_name == "weather" and call.tool_kwargs["city"] in ("Rome", "Oslo")
*_, last = model.stream_chat_with_tools([tool], chat_history=TURNS, tool_required=True)
assert model.get_tool_calls_from_response(last)[0].tool_kwargs == call.tool_kwargs

assert isinstance(model.as_structured_llm(Place).chat(TURNS).raw, Place)
print("llama-index-llms-openai-like", version("llama-index-llms-openai-like"), "ok")
