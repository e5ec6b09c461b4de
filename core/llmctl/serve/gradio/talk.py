"""A conversation with the server's own API, of which pieces are shown as they come; no Gradio here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx

from llmctl.io.json_object import parse_json
from llmctl.serve.words import translated

SHOWN_SECONDS = 0.05
"""How often an answer that grows is shown."""

STREAMED = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

Message = dict[str, Any]
Step = tuple[list[Message], str, Any]
"""The conversation, a line about it, and the raw context."""


class Refused(Exception):
    """The server does not answer; the arguments say why: a text of ``words``, or the server's own, and its values."""


class Api:
    """The server's own API.

    Args:
        socket: Where it listens.
        scheme: ``http`` or ``https``; certificates are for others, who do not come by this socket.
    """

    def __init__(self, socket: Path, scheme: str) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=httpx.Limits(max_connections=None))
        self._client = httpx.AsyncClient(
            transport=transport, base_url=f"{scheme}://localhost", timeout=httpx.Timeout(10, read=None)
        )

    async def names(self, key: str) -> list[str]:
        """The model and its adapters.

        Raises:
            Refused: The server does not tell.
        """
        try:
            answer = await self._client.get("/v1/models", headers=_headers(key))
        except httpx.HTTPError as error:
            raise Refused("The server cannot be reached") from error
        if answer.status_code != 200:
            raise Refused(*_reason(answer))
        return [row["id"] for row in answer.json()["data"]]

    async def chunks(self, key: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a chat completion.

        Raises:
            Refused: The server does not answer, or not to the end.
        """
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=_headers(key)) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise Refused(*_reason(answer))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = parse_json(line[6:])
                    if "error" in chunk:
                        raise Refused(chunk["error"]["message"])
                    yield chunk
        except httpx.HTTPError as error:
            raise Refused("The server cannot be reached") from error


def _headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _reason(answer: httpx.Response) -> tuple[Any, ...]:
    if answer.status_code == 401:
        return ("The API key is missing or wrong; type it above",)
    try:
        return (str(answer.json()["error"]["message"]),)
    except (ValueError, KeyError, TypeError):
        return "The server answers with {}", answer.status_code


async def answered(
    api: Api,
    messages: list[Message],
    key: str,
    model: str,
    system: str,
    max_tokens: float,
    top_k: float,
    top_p: float,
    temperature: float,
    repetition_penalty: float,
    *,
    language: str = "",
) -> AsyncGenerator[Step, None]:
    """The conversation with an answer that grows, if the server gives one.

    Args:
        api: The server.
        messages: The conversation, which ends with a text of the user.
        key: API key; empty = none.
        model: The model or an adapter.
        system: What the model is told first; empty = nothing.
        max_tokens: Most tokens of the answer; 0 = what there is room for.
        top_k: Only the likeliest tokens; 0 = all.
        top_p: Likewise, by their share.
        temperature: 0 takes the likeliest token.
        repetition_penalty: 1 = none.
        language: As for ``translated``.
    """
    told = [{"role": "system", "content": system}] if system.strip() else []
    asked = [
        {"role": message["role"], "content": _text(message)} for message in messages if not message.get("metadata")
    ]
    body: dict[str, Any] = {
        "model": model, "messages": told + asked, "temperature": temperature, "top_k": int(top_k), "top_p": top_p,
        "repetition_penalty": repetition_penalty, **({"max_tokens": int(max_tokens)} if max_tokens else {}),
    }  # fmt: skip
    begun, shown, thought, said, tokens = time.monotonic(), 0.0, "", "", 0

    def grown() -> list[Message]:
        thoughts = [{**_assistant(thought), "metadata": {"title": translated(language, "Thoughts")}}] if thought else []
        return [*messages, *thoughts, *([_assistant(said)] if said or not thought else [])]

    yield messages, translated(language, "Waiting for the model"), body
    try:
        async with aclosing(api.chunks(key, body | STREAMED)) as chunks:
            async for chunk in chunks:
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk["choices"]:
                    said += choice["delta"].get("content") or ""
                    thought += choice["delta"].get("reasoning_content") or ""
                if time.monotonic() - shown > SHOWN_SECONDS:
                    shown = time.monotonic()
                    yield grown(), translated(language, "{} tokens", tokens), body
    except Refused as refused:
        yield (grown() if said or thought else messages), translated(language, *refused.args), body
        return
    seconds = time.monotonic() - begun
    speed = tokens, f"{seconds:.{1 if seconds >= 1 else 2}f}", f"{tokens / seconds:.0f}"
    line = translated(language, "{} tokens in {} s, {} a second", *speed)
    yield grown(), line, {**body, "messages": [*body["messages"], _assistant(said)]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _text(message: Message) -> str:
    """The text of a message, which Gradio gives as parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def before_answers(messages: list[Message]) -> list[Message]:
    """A conversation without the answer at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def undone(messages: list[Message]) -> tuple[list[Message], str]:
    """A conversation without the last text of the user and what follows it; and that text."""
    asked = before_answers(messages)
    return asked[:-1], _text(asked[-1]) if asked else ""


def sent(text: str, messages: list[Message]) -> tuple[str, list[Message]]:
    """The emptied box of the text, and the conversation with it; a text that was not answered gives way to it."""
    if not text.strip():
        return text, messages
    end = len(messages)
    while end and messages[end - 1]["role"] == "user":
        end -= 1
    return "", [*messages[:end], {"role": "user", "content": text}]
