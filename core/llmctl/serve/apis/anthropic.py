"""``/v1/messages`` as Anthropic has it: a thin layer over chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from llmctl.io.json_object import parse_json
from llmctl.serve.apis.blocks import Block, Blocks, Change
from llmctl.serve.apis.fields import COUNT_TOKENS, MESSAGES, need, read
from llmctl.serve.apis.openai import Asked, parse_chat
from llmctl.serve.problems import TYPES, Problem, shown
from llmctl.serve.service import Service

PATH, COUNT_PATH = "/v1/messages", "/v1/messages/count_tokens"

SAME = ("model", "temperature", "top_p", "top_k", "stream", "timeout", "chat_template_kwargs")
"""Fields that mean the same in a chat completion."""

KINDS = {"thoughts": "thinking", "text": "text", "call": "tool_use"}


def parse(body: Any, service: Service) -> Asked:
    """The job of a body. Encodes text: not for the event loop.

    Raises:
        Problem: The body cannot be answered.
    """
    values = read(body, MESSAGES)
    need(values, "messages", "max_tokens")
    return parse_chat(_chat(values, service), service)


def count(body: Any, service: Service) -> dict[str, Any]:
    """How many tokens the prompt of a body has. Encodes text: not for the event loop.

    Raises:
        Problem: The body cannot be answered.
    """
    values = read(body, COUNT_TOKENS)
    need(values, "messages")
    service.model.adapter(values.get("model"))
    return {"input_tokens": len(service.model.conversation(_chat(values, service)))}


def _chat(values: Mapping[str, Any], service: Service) -> dict[str, Any]:
    """The body of a chat completion that asks for the same."""
    messages = [message for index, given in enumerate(values["messages"]) for message in _messages(given, index)]
    system = _texts(values.get("system", ""), "system")
    thinks = _thinks(values.get("thinking", {}))
    chat: dict[str, Any] = {name: values[name] for name in SAME if name in values}
    chat["messages"] = [{"role": "system", "content": system}] * bool(system) + messages
    if "max_tokens" in values:
        chat["max_tokens"] = values["max_tokens"]
    if "stop_sequences" in values:
        chat["stop"] = values["stop_sequences"]
    if messages and messages[-1]["role"] == "assistant":
        chat["continue_final_message"] = True
    if values.get("tools"):
        chat["tools"] = [_tool(row, index) for index, row in enumerate(values["tools"])]
    if "tool_choice" in values:
        chat.update(_choice(values["tool_choice"]))
    if "thinking" in values and service.model.reads("enable_thinking"):
        chat["chat_template_kwargs"] = {"enable_thinking": thinks, **values.get("chat_template_kwargs", {})}
    if form := _form(values.get("output_config", {})):
        chat["response_format"] = form
    return chat


def _thinks(thinking: Mapping[str, Any]) -> bool:
    """Whether thoughts are wanted.

    Raises:
        Problem: It is unclear.
    """
    kind = thinking.get("type", "adaptive")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise Problem(f"thinking: type is {shown(kind)}; allowed are enabled, adaptive, disabled", param="thinking")
    return bool(kind != "disabled")


def _form(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The form of answers that a configuration of the output asks for, as chat completions have it."""
    for name, value in config.items():
        if name != "format" and value is not None:
            raise Problem(f"output_config: {shown(name)} is not supported; known: format", param="output_config")
    form = config.get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or "schema" not in form:
        raise Problem("output_config.format must be an object with type json_schema and schema", param="output_config")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}


def _messages(message: Any, index: int) -> list[dict[str, Any]]:
    """A message as those of a chat completion: results of calls are messages of their own."""
    where = f"messages[{index}]"
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("user", "assistant"):
        raise Problem(f"{where}: role is {shown(role)}; allowed are user, assistant", param="messages")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise Problem(f"{where}: content must be text or a list of blocks", param="messages")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_text(block.get("text"), where))
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result" and role == "user":
            result = _texts(block.get("content") or "", where)
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
        elif kind == "thinking" and role == "assistant":
            thoughts.append(_text(block.get("thinking"), where))
        elif kind not in ("thinking", "redacted_thinking"):
            raise Problem(f"{where}: a block is of type {shown(kind)}; the model reads text only", param="messages")
    said: dict[str, Any] = {"role": role, "content": "".join(texts) if texts or not calls else None}
    if calls:
        said["tool_calls"] = calls
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    return results if results and not texts else [*results, said]


def _texts(content: Any, where: str) -> str:
    """Text, or the texts of blocks one after another."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else [content]
    return "".join(_text(block.get("text") if isinstance(block, dict) else None, where) for block in blocks)


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise Problem(f"{where}: a block has no text; the model reads text only", param=where.partition("[")[0])
    return text


def _tool(row: Any, index: int) -> dict[str, Any]:
    if not isinstance(row, dict) or "input_schema" not in row or row.get("type", "custom") != "custom":
        raise Problem(f"tools[{index}] must have a name and input_schema; the server has no tools", param="tools")
    function = {"name": row.get("name"), "parameters": row["input_schema"], "description": row.get("description") or ""}
    if row.get("strict") is not None:
        function["strict"] = row["strict"]
    return {"type": "function", "function": function}


def _choice(choice: Any) -> dict[str, Any]:
    kind = choice.get("type") if isinstance(choice, dict) else None
    named = {"type": "function", "function": {"name": choice.get("name")}} if kind == "tool" else None
    known = {"auto": "auto", "any": "required", "none": "none", "tool": named}
    if kind not in known:
        raise Problem(f"tool_choice: type is {shown(kind)}; allowed are {', '.join(known)}", param="tool_choice")
    single = choice.get("disable_parallel_tool_use")
    return {"tool_choice": known[kind], **({"parallel_tool_calls": False} if single is True else {})}


async def whole(asked: Asked, service: Service) -> dict[str, Any]:
    """The whole answer.

    Raises:
        Problem: It cannot be given.
    """
    blocks = Blocks()
    async with aclosing(service.pieces(asked.job)) as bundles:
        async for bundle in bundles:
            for _, piece in bundle:
                for _ in blocks.add(piece):
                    pass
    content = [_whole_block(block) for block in blocks.rows]
    called = any(block["type"] == "tool_use" for block in content)
    return {**_head(asked), "content": content, **_end(asked, blocks, called), "usage": _usage(asked)}


async def events(asked: Asked, service: Service) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer.

    Raises:
        Problem: It cannot be given; maybe after some events.
    """
    blocks, begun = Blocks(), False
    async with aclosing(service.pieces(asked.job)) as bundles:
        async for bundle in bundles:
            if not begun:
                begun = True
                empty: dict[str, Any] = {
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": _usage(asked),
                }
                yield {"type": "message_start", "message": {**_head(asked), **empty}}
            for _, piece in bundle:
                for change in blocks.add(piece):
                    yield _event(change)
    yield {
        "type": "message_delta",
        "delta": _end(asked, blocks, any(row.call for row in blocks.rows)),
        "usage": _usage(asked),
    }
    yield {"type": "message_stop"}


def failure(problem: Problem) -> dict[str, Any]:
    """The body or event that says why there is no answer."""
    kind = {429: "rate_limit_error", 503: "overloaded_error", 500: "api_error"}.get(problem.status)
    return {
        "type": "error",
        "error": {"type": kind or TYPES.get(problem.status, "invalid_request_error"), "message": problem.message},
    }


def _event(change: Change) -> dict[str, Any]:
    kind, block, text = change
    if kind == "begin":
        return {"type": "content_block_start", "index": block.index, "content_block": _block(block, "")}
    if kind == "end":
        return {"type": "content_block_stop", "index": block.index}
    types = {
        "thoughts": ("thinking_delta", "thinking"),
        "text": ("text_delta", "text"),
        "call": ("input_json_delta", "partial_json"),
    }
    name, key = types[block.kind]
    return {"type": "content_block_delta", "index": block.index, "delta": {"type": name, key: text}}


def _whole_block(block: Block) -> dict[str, Any]:
    """A complete block; a call whose arguments are cut, or are not JSON, is text: nobody should make it."""
    if block.call is None:
        return _block(block, block.text)
    try:
        return {**_block(block, ""), "input": parse_json(block.text, bounded=True)}
    except ValueError:
        return {"type": "text", "text": f"{block.call.name} {block.text}"}


def _block(block: Block, text: str) -> dict[str, Any]:
    """A block with a text; a call as it begins, without arguments."""
    if block.call is not None:
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": {}}
    if block.kind == "thoughts":
        return {"type": "thinking", "thinking": text, "signature": ""}
    return {"type": "text", "text": text}


def _head(asked: Asked) -> dict[str, Any]:
    return {"id": f"msg_{asked.id}", "type": "message", "role": "assistant", "model": asked.name}


def _end(asked: Asked, blocks: Blocks, called: bool) -> dict[str, Any]:
    stop = asked.job.answers[0].stop_text
    called = called and not blocks.cut
    reason = (
        "max_tokens" if blocks.finish == "length" else "tool_use" if called else "stop_sequence" if stop else "end_turn"
    )
    return {"stop_reason": reason, "stop_sequence": stop or None}


def _usage(asked: Asked) -> dict[str, Any]:
    usage: Any = asked.job.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached, "output_tokens": usage["completion_tokens"],
        "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
    }  # fmt: skip
