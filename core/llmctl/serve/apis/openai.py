"""OpenAI's chat completions and completions: from a body to a job, from pieces to chunks, whole answers and usage."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from llmctl.infer.sampling import TokenLogprob
from llmctl.io.json_object import as_json
from llmctl.serve.answers.answer import Piece
from llmctl.serve.answers.parts import Call, Part, calls_of
from llmctl.serve.answers.tools import tools_of
from llmctl.serve.apis.fields import CHAT, COMPLETIONS, need, read
from llmctl.serve.model import ServedModel
from llmctl.serve.problems import Problem
from llmctl.serve.service import Ask, Job, Service

PROMPTS = 64
"""Most prompts of a body."""

MARK = "\0"
"""Where a template has the text."""


@dataclass(frozen=True)
class Asked:
    """A parsed body.

    Attributes:
        model: The model.
        job: What it asks for.
        name: The model's name in answers.
        stream: Whether it is answered in pieces.
        usage: Whether the last chunk tells the usage.
        usage_always: Whether every chunk does.
        top: Number of likeliest tokens with log-probabilities; None = no log-probabilities.
        echo: Texts of the prompts that go before answers; empty = none.
        no_answer: Whether only prompts are wanted.
        named: Whether the function to call was named, so that a call is no reason of its own to end.
        id: Its id.
        created: When it came, in seconds since 1970.
    """

    model: ServedModel
    job: Job
    name: str
    stream: bool = False
    usage: bool = False
    usage_always: bool = False
    top: int | None = None
    echo: tuple[str, ...] = ()
    no_answer: bool = False
    named: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


def parse_chat(body: Any, service: Service) -> Asked:
    """The job of a chat completion. Encodes text: not for the event loop.

    Raises:
        Problem: The body cannot be answered.
    """
    values, model = read(body, CHAT), service.model
    need(values, "messages")
    adapter = model.adapter(values.get("model"))
    longest = _same(values, "max_completion_tokens", "max_tokens")
    if "top_logprobs" in values and not values.get("logprobs"):
        raise Problem("top_logprobs needs logprobs: true", param="top_logprobs")
    top = values.get("top_logprobs", 0) if values.get("logprobs") else None
    stream = _stream(values)
    prompt = model.conversation(values)
    job = _job(service, values, [prompt], longest, top, adapter, chat=True)
    tools = tools_of(values)
    stream["named"] = bool(tools and tools.named)
    return Asked(model, job, values.get("model", model.name), top=top, **stream)


def parse_completion(body: Any, service: Service) -> Asked:
    """The job of a completion; as ``parse_chat``.

    Raises:
        Problem: The body cannot be answered.
    """
    values, model = read(body, COMPLETIONS), service.model
    need(values, "prompt")
    adapter = model.adapter(values.get("model"))
    prompts = _prompts(values["prompt"])
    top, echo = values.get("logprobs"), bool(values.get("echo"))
    longest = values.get("max_tokens", 16)
    if longest == 0 and not echo:
        raise Problem("max_tokens=0 needs echo: true; else there is nothing to answer", param="max_tokens")
    if echo and top is not None and model.why_no_prompt_scores():
        raise Problem(f"echo with logprobs: {model.why_no_prompt_scores()}", param="echo")
    ends: tuple[int, ...] = ()
    if echo and top is not None and not values.get("ignore_eos"):
        # lm-eval counts entries from the end, so an end token must have one: it ends the answer here, not in the engine.
        if values.get("min_tokens"):
            raise Problem("min_tokens cannot be combined with echo and logprobs", param="min_tokens")
        ends = (*model.tokenizer.eos_ids, *model.known(values.pop("stop_token_ids", ()), "stop_token_ids"))
        values["ignore_eos"] = True
    stream = _stream(values)
    ids = [model.text_prompt(prompt) for prompt in prompts]
    job = _job(service, values, ids, max(1, longest), top, adapter, ends)
    texts = tuple(model.echo(one, prompt) for one, prompt in zip(ids, prompts, strict=True)) if echo else ()
    return Asked(model, job, values.get("model", model.name), top=top, echo=texts, no_answer=longest == 0, **stream)


def _same(values: Mapping[str, Any], *names: str) -> int | None:
    """The value of fields that mean the same."""
    given = {name: values[name] for name in names if name in values}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items())
        raise Problem(f"{said} mean the same; give one of them", param=names[-1])
    return next(iter(given.values()), None)


def _stream(values: Mapping[str, Any]) -> dict[str, Any]:
    stream, options = values.get("stream", False), values.get("stream_options", {})
    if options and not stream:
        raise Problem("stream_options needs stream: true", param="stream_options")
    known = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    for name, value in options.items():
        if name not in known or type(value) is not bool:
            raise Problem(
                f"stream_options has {' and '.join(known[:2])}, each true or false",
                param="stream_options",
            )
    return {
        "stream": stream,
        "usage": options.get("include_usage", False),
        "usage_always": options.get("continuous_usage_stats", False),
    }


def _prompts(prompt: Any) -> list[Any]:
    """The prompts: texts or token ids."""
    single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts = [prompt] if single else prompt
    if not 1 <= len(prompts) <= PROMPTS:
        raise Problem(f"prompt has {len(prompts)} entries; allowed are 1 to {PROMPTS}", param="prompt")
    return list(prompts)


def _job(
    service: Service, values: Mapping[str, Any], prompts: Sequence[Sequence[int]], longest: int | None, top: int | None,
    adapter: str, ends: tuple[int, ...] = (), chat: bool = False,
) -> Job:  # fmt: skip
    asks, form = [], service.model.constraint(values)
    for prompt in prompts:
        params = replace(service.model.params(values, prompt, longest), logprobs=top)
        reader = service.model.reader(values, prompt, form is not None) if chat else None
        constraint = service.model.calls_constraint(values, prompt) if chat and form is None else form
        asks += [
            Ask(prompt=prompt, params=params, index=index, constraint=constraint, reader=reader)
            for index in range(values.get("n", 1))
        ]
    return Job(
        asks=asks, adapter=adapter, prompts=len(prompts), seconds=service.seconds(values.get("timeout")), ends=ends
    )


class ChatForm:
    """How chat completions are written.

    Args:
        asked: What is answered.
    """

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.id = f"chatcmpl-{asked.id}"
        self._calls: Counter[int] = Counter()

    def first(self, number: int) -> dict[str, Any] | None:
        """The choice that begins a streamed answer."""
        return self._delta(number, {"role": "assistant", "content": ""})

    def choice(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """The choices of chunks for a piece; why it ended stands in one of its own."""
        deltas = [delta for part in piece.parts for delta in self._deltas(number, part)]
        logprobs = self._logprobs(piece) if piece.scores else None
        if logprobs and not any("content" in delta for delta in deltas):
            deltas.append({"content": ""})
        found = []
        for delta in deltas:
            found.append(self._delta(number, delta, logprobs if "content" in delta else None))
            logprobs = None if "content" in delta else logprobs
        if piece.finish:
            found.append(self._delta(number, {}, finish=self._finish(piece, self._calls[number])))
        return found

    def _deltas(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """The deltas of a part: the first of a call names its function, the others have its arguments."""
        if part.call is not None:
            yield {"tool_calls": [{"index": self._calls[number], **_call(part.call)}]}
            self._calls[number] += 1
        if part.kind == "call":
            if part.text:
                more = {"index": self._calls[number] - 1, "function": {"arguments": part.text}}
                yield {"tool_calls": [more]}
        else:
            yield {"content" if part.kind == "text" else "reasoning_content": part.text}

    def whole(self, number: int, piece: Piece) -> dict[str, Any]:
        """The choice of a whole answer."""
        text, thoughts, calls = piece.said("text"), piece.said("thoughts"), calls_of(piece.parts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts:
            message["reasoning_content"] = thoughts
        if calls:
            message.update(content=text or None, tool_calls=[_call(call) for call in calls])
        return {
            "index": number, "message": message, "logprobs": self._logprobs(piece),
            "finish_reason": self._finish(piece, len(calls)),
        }  # fmt: skip

    def _finish(self, piece: Piece, calls: int) -> str:
        """Why an answer with so many calls has ended."""
        called = piece.finish == "stop" and calls and not piece.cut
        return "tool_calls" if called and not self.asked.named else piece.finish

    def _delta(
        self, number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        rows = [
            {**self._token(score.token, score.logprob), "top_logprobs": [self._token(*row) for row in score.top]}
            for _, score in piece.scores
        ]
        return {"content": rows, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.asked.model.tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class CompletionForm:
    """How completions are written.

    Args:
        asked: What is answered.
        prompts: Log-probabilities of the prompts' tokens from the second on, if they were asked for.
    """

    kind = chunk_kind = "text_completion"

    def __init__(self, asked: Asked, prompts: Sequence[Sequence[TokenLogprob]] = ()) -> None:
        self.asked, self._prompts = asked, prompts
        self.id = f"cmpl-{asked.id}"
        self._each = max(1, len(asked.job.asks) // asked.job.prompts)

    def first(self, number: int) -> dict[str, Any] | None:
        """The choice that begins a streamed answer; None = there is none."""
        return self._choice(number, *self._echo(number), None) if self.asked.echo else None

    def choice(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """The choices of chunks for a piece; why it ended stands in one of its own."""
        text, found = piece.said("text"), []
        if text or piece.scores or not piece.finish:
            found.append(self._choice(number, text, self._logprobs(number, piece), None))
        if piece.finish:
            found.append(self._choice(number, "", None, piece.finish))
        return found

    def whole(self, number: int, piece: Piece) -> dict[str, Any]:
        """The choice of a whole answer."""
        text, before = self._echo(number) if self.asked.echo else ("", None)
        scores = self._logprobs(number, piece)
        if before is not None and scores is not None:
            scores = {name: before[name] + scores[name] for name in scores}
        return self._choice(number, text + piece.said("text"), scores, piece.finish or "length")

    def _choice(self, number: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _echo(self, number: int) -> tuple[str, dict[str, Any] | None]:
        """The text of a prompt and what its tokens are worth, of which the first has nothing before it."""
        index = number // self._each
        text = self.asked.echo[index]
        if self.asked.top is None:
            return text, None
        ids, scores = self.asked.job.asks[number].prompt, self._prompts[index]
        names = [self._name(token) for token in ids]
        sizes = [len(self.asked.model.tokenizer.token_bytes(token).decode("utf-8", "ignore")) for token in ids]
        return text, {
            "tokens": names,
            "token_logprobs": [None, *(score.logprob for score in scores)],
            "top_logprobs": [None, *(self._top(score) for score in scores)],
            "text_offset": [min(len(text), at) for at in [0, *accumulate(sizes)][:-1]],
        }

    def _logprobs(self, number: int, piece: Piece) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        before = len(self.asked.echo[number // self._each]) if self.asked.echo else 0
        return {
            "tokens": [self._name(score.token) for _, score in piece.scores],
            "token_logprobs": [score.logprob for _, score in piece.scores],
            "top_logprobs": [self._top(score) for _, score in piece.scores],
            "text_offset": [before + start for start, _ in piece.scores],
        }

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and the chosen one, which may be one of them."""
        return {self._name(token): logprob for token, logprob in (*score.top, (score.token, score.logprob))}

    def _name(self, token: int) -> str:
        """A token as text; parts of characters as OpenAI writes them."""
        data = self.asked.model.tokenizer.token_bytes(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


Form = ChatForm | CompletionForm


async def form_of(asked: Asked, service: Service, chat: bool) -> Form:
    """How a job is written, with the log-probabilities of its prompts, if they are asked for.

    Raises:
        Problem: They cannot be computed.
    """
    if chat:
        return ChatForm(asked)
    scores = asked.echo and asked.top is not None
    return CompletionForm(
        asked, await service.prompt_scores(asked.job, asked.top or 0, not asked.no_answer) if scores else ()
    )


async def whole(form: Form, service: Service) -> dict[str, Any]:
    """The whole answer.

    Raises:
        Problem: It cannot be given.
    """
    asked = form.asked
    pieces = [Piece() for _ in asked.job.asks]
    if not asked.no_answer:
        async with aclosing(service.pieces(asked.job)) as bundles:
            async for bundle in bundles:
                for number, piece in bundle:
                    pieces[number].add(piece)
    choices = [form.whole(number, piece) for number, piece in enumerate(pieces)]
    return {**_head(form, form.kind), "choices": choices, "usage": asked.job.usage()}


async def chunks(form: Form, service: Service) -> AsyncGenerator[bytes, None]:
    """The chunks of a streamed answer, as JSON.

    Raises:
        Problem: It cannot be given; maybe after some chunks.
    """
    asked, writer = form.asked, _Writer(form)
    numbers = range(len(asked.job.asks))
    begin = [choice for choice in map(form.first, numbers) if choice is not None]
    if asked.no_answer:
        begin += [choice for number in numbers for choice in form.choice(number, Piece(finish="length"))]
    else:
        # The first chunks wait for the first token: what goes wrong before it has a status of its own.
        async with aclosing(service.pieces(asked.job)) as bundles:
            async for bundle in bundles:
                for choice in begin:
                    yield writer.chunk([choice])
                begin = []
                for number, piece in bundle:
                    for chunk in writer.chunks(number, piece):
                        yield chunk
    for choice in begin:
        yield writer.chunk([choice])
    if asked.usage:
        yield as_json({**_head(form, form.chunk_kind), "choices": [], "usage": asked.job.usage()})


class _Writer:
    """Writes the chunks of a streamed answer as JSON; those with nothing but text, as most are, by filling in a template.

    Args:
        form: How they are written.
    """

    def __init__(self, form: Form) -> None:
        self._form, self._head = form, _head(form, form.chunk_kind)
        self._plain = form.asked.top is None and not form.asked.usage_always
        self._templates: dict[int, tuple[bytes, bytes]] = {}

    def chunk(self, choices: list[dict[str, Any]]) -> bytes:
        """A chunk with these choices."""
        return as_json({**self._head, "choices": choices, **_usage(self._form.asked)})

    def chunks(self, number: int, piece: Piece) -> list[bytes]:
        """The chunks for a piece of an answer."""
        if not self._plain or piece.finish or any(part.kind != "text" for part in piece.parts):
            return [self.chunk([choice]) for choice in self._form.choice(number, piece)]
        if number not in self._templates:
            choices = self._form.choice(number, Piece([Part("text", MARK)]))
            before, _, after = self.chunk(choices).rpartition(as_json(MARK))
            self._templates[number] = before, after
        before, after = self._templates[number]
        return [before + as_json(piece.said("text")) + after]


def _usage(asked: Asked) -> dict[str, Any]:
    """The usage of chunks before the last one: null where only that one tells it."""
    if asked.usage_always:
        return {"usage": asked.job.usage()}
    return {"usage": None} if asked.usage else {}


def _head(form: Form, kind: str) -> dict[str, Any]:
    asked = form.asked
    return {
        "id": form.id, "object": kind, "created": asked.created, "model": asked.name,
        "system_fingerprint": asked.model.system_fingerprint(asked.job.adapter),
    }  # fmt: skip
