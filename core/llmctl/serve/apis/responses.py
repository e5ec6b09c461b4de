"""OpenAI's ``/v1/responses``, without a store: a thin layer over chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from llmctl.serve.apis.blocks import Block, Blocks, Change
from llmctl.serve.apis.fields import RESPONSES, need, read
from llmctl.serve.apis.openai import Asked, parse_chat
from llmctl.serve.problems import Problem, shown
from llmctl.serve.service import Service

PATH = "/v1/responses"

SAME = (
    "model", "temperature", "top_p", "stream", "parallel_tool_calls", "top_k", "min_p", "seed", "stop", "timeout",
    "chat_template_kwargs",
)  # fmt: skip
"""Fields that mean the same in a chat completion."""

ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
"""Fields that a response repeats; null where they were left out."""


class Response:
    """How one response is written.

    Args:
        body: What was asked.
        asked: The same, understood.
    """

    def __init__(self, body: Mapping[str, Any], asked: Asked) -> None:
        self._body, self.asked = body, asked
        self.blocks = Blocks()
        self._number = 0

    def whole(self, status: str) -> dict[str, Any]:
        """The response as it is now.

        Args:
            status: ``in_progress`` while it grows; else it is complete, or cut.
        """
        cut = self.blocks.finish == "length" and status != "in_progress"
        done = status != "in_progress"
        body = {name: self._body.get(name) for name in ECHOED}
        return {
            "id": f"resp_{self.asked.id}", "object": "response", "created_at": self.asked.created,
            "status": "incomplete" if cut else status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None, "model": self.asked.name, **body,
            "metadata": body["metadata"] or {}, "output": [self._item(block, True) for block in self.blocks.rows] if done else [],
            "parallel_tool_calls": self._body.get("parallel_tool_calls", True), "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(self._body.get("reasoning") or {})}, "store": False, "background": False, "truncation": "disabled",
            "text": self._body.get("text") or {"format": {"type": "text"}}, "tools": self._body.get("tools") or [],
            "tool_choice": self._body.get("tool_choice", "auto"), "usage": self._usage() if done else None,
        }  # fmt: skip

    def events(self, change: Change) -> Iterator[dict[str, Any]]:
        """The events of a change."""
        kind, block, text = change
        at = {"output_index": block.index}
        named = {**at, "item_id": self._id(block)}
        if kind == "begin":
            yield self.event("response.output_item.added", **at, item=self._item(block, False))
            if block.kind == "text":
                yield self.event("response.content_part.added", **named, content_index=0, part=_part(""))
        elif kind == "more":
            names = {"text": "output_text", "call": "function_call_arguments", "thoughts": "reasoning_text"}
            more: dict[str, Any] = {} if block.kind == "call" else {"content_index": 0}
            more = {**more, "logprobs": []} if block.kind == "text" else more
            yield self.event(f"response.{names[block.kind]}.delta", **named, **more, delta=text)
        else:
            yield from self._ended(block, named)
            yield self.event("response.output_item.done", **at, item=self._item(block, True))

    def _ended(self, block: Block, named: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if block.call is not None:
            yield self.event(
                "response.function_call_arguments.done", **named, name=block.call.name, arguments=block.text
            )
        elif block.kind == "thoughts":
            yield self.event("response.reasoning_text.done", **named, content_index=0, text=block.text)
        else:
            yield self.event("response.output_text.done", **named, content_index=0, text=block.text, logprobs=[])
            yield self.event("response.content_part.done", **named, content_index=0, part=_part(block.text))

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        """An event with the next number."""
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _id(self, block: Block) -> str:
        kinds = {"text": "msg", "thoughts": "rs", "call": "fc"}
        return f"{kinds[block.kind]}_{self.asked.id}_{block.index}"

    def _item(self, block: Block, done: bool) -> dict[str, Any]:
        """A block as an item of the output, as it begins or complete."""
        cut = self.blocks.finish == "length" and block is self.blocks.rows[-1]
        status = "in_progress" if not done else "incomplete" if cut else "completed"
        head = {"id": self._id(block), "status": status}
        text = block.text if done else ""
        if block.call is not None:
            call = block.call
            return {**head, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": text}
        if block.kind == "thoughts":
            content = [{"type": "reasoning_text", "text": text}] if done else []
            return {**head, "type": "reasoning", "summary": [], "content": content}
        return {**head, "type": "message", "role": "assistant", "content": [_part(text)] if done else []}

    def _usage(self) -> dict[str, Any]:
        usage: Any = self.asked.job.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip


def parse(body: Any, service: Service) -> Response:
    """The response that a body asks for. Encodes text: not for the event loop.

    Raises:
        Problem: The body cannot be answered.
    """
    values = read(body, RESPONSES)
    need(values, "input")
    chat: dict[str, Any] = {name: values[name] for name in SAME if name in values}
    said = values.get("instructions")
    chat["messages"] = [{"role": "system", "content": said}] if said else []
    chat["messages"] += _messages(values["input"])
    if "max_output_tokens" in values:
        chat["max_tokens"] = values["max_output_tokens"]
    if values.get("tools"):
        chat["tools"] = [_tool(row, index) for index, row in enumerate(values["tools"])]
    if "tool_choice" in values:
        chat["tool_choice"] = _choice(values["tool_choice"])
    if (effort := _effort(values.get("reasoning", {}))) is not None:
        chat["reasoning_effort"] = effort
    if (form := _form(values.get("text"))) is not None:
        chat["response_format"] = form
    return Response(values, parse_chat(chat, service))


def _messages(given: Any) -> list[dict[str, Any]]:
    """The messages of an input."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[dict[str, Any]] = []
    thoughts: dict[str, str] = {}
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            mine = thoughts if item.get("role") == "assistant" else {}
            found.append({"role": item.get("role"), "content": _content(item.get("content"), where), **mine})
            thoughts = {}
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if found and found[-1].get("tool_calls"):
                found[-1]["tool_calls"].append(call)
            else:
                found.append({"role": "assistant", "content": None, "tool_calls": [call], **thoughts})
            thoughts = {}
        elif kind == "function_call_output":
            result = _content(item.get("output"), where)
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": result})
        elif kind == "reasoning":
            thoughts = {"reasoning_content": _content(item.get("content") or "", where)}
        else:
            raise Problem(
                f"{where}: type is {shown(kind)}; the model reads messages and calls of functions", param="input"
            )
    return found


def _content(content: Any, where: str) -> Any:
    """Text, or the texts of parts as those of a chat completion."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "reasoning_text", "text") or not isinstance(part.get("text"), str):
            raise Problem(
                f"{where}: content has a part of type {shown(kind)}; the model reads text only", param="input"
            )
        texts.append(part["text"])
    return "".join(texts)


def _tool(row: Any, index: int) -> dict[str, Any]:
    if not isinstance(row, dict) or row.get("type") != "function":
        raise Problem(f"tools[{index}] must be of type function; the server has no tools of its own", param="tools")
    function = {
        name: row[name] for name in ("name", "description", "parameters", "strict") if row.get(name) is not None
    }
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _effort(reasoning: Mapping[str, Any]) -> Any:
    """How much the model should think."""
    for name, value in reasoning.items():
        if name != "effort" and value is not None:
            raise Problem(f"reasoning: {shown(name)} is not supported; known: effort", param="reasoning")
    return reasoning.get("effort")


def _form(text: Any) -> Any:
    form = text.get("format") if isinstance(text, dict) else None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}
    return form


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def whole(response: Response, service: Service) -> dict[str, Any]:
    """The whole response.

    Raises:
        Problem: It cannot be given.
    """
    async with aclosing(service.pieces(response.asked.job)) as bundles:
        async for bundle in bundles:
            for _, piece in bundle:
                for _ in response.blocks.add(piece):
                    pass
    return response.whole("completed")


async def events(response: Response, service: Service) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed response.

    Raises:
        Problem: It cannot be given; maybe after some events.
    """
    begun = False
    async with aclosing(service.pieces(response.asked.job)) as bundles:
        async for bundle in bundles:
            if not begun:
                begun = True
                for kind in ("created", "in_progress"):
                    yield response.event(f"response.{kind}", response=response.whole("in_progress"))
            for _, piece in bundle:
                for change in response.blocks.add(piece):
                    for event in response.events(change):
                        yield event
    last = response.whole("completed")
    yield response.event(f"response.{last['status']}", response=last)
