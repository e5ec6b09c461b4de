"""``/api/chat`` as PaddleNLP's server has it: a query with its history, answered line by line in JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from llmctl.io.json_object import parse_json
from llmctl.serve.apis.fields import PADDLENLP, read
from llmctl.serve.problems import Problem, shown
from llmctl.serve.service import Ask, Job, Service

DEFAULTS = {"top_k": 0, "top_p": 0.7, "temperature": 0.95, "repetition_penalty": 1.0}


def parse(body: Any, service: Service) -> Job:
    """The job of a body. Encodes text: not for the event loop.

    Raises:
        Problem: The body cannot be answered, or is one of Ollama's.
    """
    if isinstance(body, dict) and "context" not in body and {"messages", "model"} & body.keys():
        raise Problem(
            "this is /api/chat of PaddleNLP, with context and history; what Ollama's clients ask with messages is answered at "
            "/v1/chat/completions", param="messages",
        )  # fmt: skip
    values, model = read(body, PADDLENLP), service.model
    if not values.get("context"):
        raise Problem("context is missing: what the user says", param="context")
    texts = _history(values.get("history"))
    roles = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    prompt = model.conversation({"messages": [*roles, {"role": "user", "content": values["context"]}]})
    most = values.get("src_length")
    if most is not None and len(prompt) > most:
        raise Problem(
            f"the prompt has {len(prompt)} tokens, more than src_length={most}; it is not cut", param="src_length"
        )
    given = {**DEFAULTS, **values, "min_tokens": values.get("min_length", 0)}
    params = model.params(given, prompt, values.get("max_length"))
    return Job(asks=[Ask(prompt=prompt, params=params)], seconds=service.seconds(None))


def _history(history: Any) -> list[str]:
    """The texts of earlier turns."""
    if isinstance(history, str):
        try:
            history = parse_json(history, bounded=True) if history else []
        except ValueError as error:
            raise Problem(f"history is text that is not valid JSON: {error}", param="history") from None
    if not isinstance(history or [], list):
        raise Problem(f"history is {shown(history)}; expected a list", param="history")
    texts = [turn.get("utterance") if isinstance(turn, Mapping) else turn for turn in history or []]
    strange = next((text for text in texts if not isinstance(text, str)), "")
    if strange != "":
        raise Problem(f"history has {shown(strange)}; expected texts, or objects with utterance", param="history")
    if len(texts) % 2:
        raise Problem(
            f"history has {len(texts)} texts; users and bots take turns, so it must be an even number", param="history"
        )
    return [str(text) for text in texts]


async def lines(job: Job, service: Service) -> AsyncGenerator[dict[str, Any], None]:
    """The lines of an answer.

    Raises:
        Problem: It cannot be given; maybe after some lines.
    """
    async with aclosing(service.pieces(job)) as bundles:
        async for bundle in bundles:
            for _, piece in bundle:
                if text := piece.said("text"):
                    said = {"role": "bot", "utterance": text}
                    yield {"error_code": 0, "error_msg": "Success", "result": {"response": said}}


def failure(problem: Problem) -> dict[str, Any]:
    """The line that says why there is no answer."""
    return {"error_code": 1, "error_msg": problem.message}
