"""From prompts of token ids to answers as text, over any backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.backend import Backend
from llmctl.infer.engine.limits import remedy
from llmctl.infer.options import EngineOptions
from llmctl.infer.request import BeamOptions, Event, Generation, OnEvent, Request
from llmctl.infer.sampling import SamplingParams, TokenLogprob
from llmctl.infer.text.stream import TextStream
from llmctl.tokenizers import Tokenizer

OnText = Callable[[int, str], None]
"""Called with the index of a request and a piece of its answer."""


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt and of its answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class TextOutput:
    """An answer as text.

    Attributes:
        text: The text, without the stop string that ended it.
        token_ids: Its tokens, those of a stop string among them, without the end token.
        finish_reason: Why it ended: ``end`` (the model's end token), ``length`` (of ``max_new_tokens``), ``stop`` (a stop string),
            ``cancelled`` or ``error``.
        prompt_token_ids: Tokens of the prompt.
        logprobs: Log-probabilities of each token, if the request asks for them.
        others: The next best texts of beam search.
        error: What went wrong.
        cause: The exception that an error comes from.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_token_ids: list[int]
    logprobs: Sequence[TokenLogprob] = ()
    others: Sequence[str] = ()
    error: str = ""
    cause: Exception | None = field(default=None, compare=False, repr=False)

    @property
    def usage(self) -> Usage:
        """How many tokens the prompt and the answer have."""
        return Usage(len(self.prompt_token_ids), len(self.token_ids))


@dataclass(frozen=True)
class TextRequest:
    """A prompt to be answered with text.

    Attributes:
        prompt: Token ids.
        params: How tokens are chosen, and stop strings.
        index: Place among all prompts, for the draws.
        adapter: Index of its adapter; -1 = none.
        refused: Why it has no prompt and is answered with this error; empty if it has one.
    """

    prompt: Sequence[int]
    params: SamplingParams = SamplingParams()
    index: int = 0
    adapter: int = -1
    refused: str = ""


@dataclass(frozen=True)
class TextGenerator:
    """Answers prompts with text.

    Attributes:
        backend: Gives the tokens.
        tokenizer: The model's.
        max_positions: Maximum number of tokens of prompt and answer together; 0 = no limit.
        draft: Maximum number of draft tokens per step; 0 = no speculative decoding.
        beams: Beam search; None = token by token.
    """

    backend: Backend
    tokenizer: Tokenizer
    max_positions: int = 0
    draft: int = 0
    beams: BeamOptions | None = None

    def generate(
        self,
        requests: Sequence[TextRequest],
        on_text: OnText | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> list[TextOutput]:
        """Answers, in the order of the requests.

        Args:
            requests: What to answer.
            on_text: Called with pieces of text as they are known.
            stopped: Asked after each token whether all answers shall end here.

        Raises:
            ConfigError: A prompt is empty or too long; nothing is computed then.
        """
        for number, request in enumerate(requests, 1):
            self.check(request, f"prompt {number}" if len(requests) > 1 else "the prompt")
        found = dict(self.outputs(requests, on_text, stopped))
        return [found[index] for index in range(len(requests))]

    def outputs(
        self,
        requests: Sequence[TextRequest],
        on_text: OnText | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[int, TextOutput]]:
        """Each request's index and its answer, in the order in which answers end. What is wrong with one is its output.

        Args:
            requests: What to answer.
            on_text: Called with pieces of text as they are known.
            stopped: As for ``generate``.
        """
        streams: dict[int, TextStream] = {}
        checked: list[int] = []
        for index, request in enumerate(requests):
            try:
                self.check(request)
                checked.append(index)
            except ConfigError as error:
                yield index, _output(request, Generation([], "error", str(error), cause=error))

        def started() -> Iterator[Request]:
            for index in checked:
                request = requests[index]
                show = partial(on_text, index) if on_text else lambda piece: None
                streams[index] = TextStream(self.tokenizer, request.params.stop, show)
                on_event = streams[index].on_event
                yield self._request(request, partial(_stoppable, on_event, stopped) if stopped else on_event)

        for number, made in self.backend.run(started()):
            index = checked[number]
            yield index, self._text(requests[index], made, streams.pop(index, None))

    def stream(self, request: TextRequest) -> Iterator[str]:
        """Pieces of the answer's text as they are known; closing the iterator cancels the request.

        Args:
            request: What to answer.

        Raises:
            LlmctlError: The request was refused or failed.
        """
        self.check(request)
        pieces: list[str] = []
        stream = TextStream(self.tokenizer, request.params.stop, pieces.append)
        with closing(self.backend.stream(self._request(request))) as events:
            for event in events:
                if event.done is not None:
                    self._finish(event.done, stream, pieces)
                stopped = stream.on_event(event)
                if pieces:
                    yield "".join(pieces)
                    pieces.clear()
                if stopped:
                    return

    def _finish(self, made: Generation, stream: TextStream, pieces: list[str]) -> None:
        """Adds the rest of a text whose tokens have ended."""
        if made.finish_reason == "error":
            raise made.cause or LlmctlError(made.error)
        if self.beams:
            pieces.append(self.tokenizer.decode(made.ids))
        else:
            stream.finish()

    def check(self, request: TextRequest, name: str = "the prompt") -> None:
        """Checks that the prompt holds something and leaves room for its answer.

        Args:
            request: The request.
            name: Name of the prompt in messages.

        Raises:
            ConfigError: It does not, or the request was refused before.
        """
        if request.refused:
            raise ConfigError(request.refused)
        check_length(request.prompt, request.params, self.max_positions, name)

    def _request(self, request: TextRequest, on_event: OnEvent | None = None) -> Request:
        return Request(
            prompt=request.prompt, options=request.params, index=request.index, adapter=request.adapter, draft=self.draft,
            beams=self.beams, on_event=on_event,
        )  # fmt: skip

    def _text(self, request: TextRequest, made: Generation, stream: TextStream | None) -> TextOutput:
        if made.finish_reason == "error" or stream is None:
            return _output(request, made)
        if self.beams:
            others = [self.tokenizer.decode(other.ids) for other in made.others]
            return _output(request, made, self.tokenizer.decode(made.ids), others=others)
        reason = "stop" if stream.finish() else made.finish_reason
        return _output(request, made, stream.text, finish_reason=reason)


def generator_of(backend: Backend, max_positions: int, tokenizer: Tokenizer, options: EngineOptions) -> TextGenerator:
    """A text generator over a backend, with speculative decoding or beam search as the engine's options say."""
    beams = None
    if options.beams is not None:
        penalty = 1.0 if options.length_penalty is None else options.length_penalty
        beams = BeamOptions(beams=options.beams, length_penalty=penalty)
    return TextGenerator(backend, tokenizer, max_positions, options.speculate or 0, beams)


def _stoppable(on_event: OnEvent, stopped: Callable[[], bool], event: Event) -> bool:
    """Takes a token; True = the answer ends here."""
    ended = on_event(event)
    return bool(ended or stopped())


def _output(request: TextRequest, made: Generation, text: str = "", **changes: Any) -> TextOutput:
    given = {"finish_reason": made.finish_reason, "logprobs": made.logprobs, "error": made.error, "cause": made.cause}
    return TextOutput(text=text, token_ids=made.ids, prompt_token_ids=list(request.prompt), **{**given, **changes})


def check_length(prompt: Sequence[int], params: SamplingParams, max_positions: int, name: str) -> None:
    """Checks that a prompt holds something and leaves room for its answer.

    Args:
        prompt: Token ids.
        params: Sampling parameters of the request.
        max_positions: Maximum number of tokens of prompt and answer together; 0 = no limit.
        name: Name of the prompt in messages.

    Raises:
        ConfigError: The prompt is empty or too long.
    """
    if not prompt:
        raise ConfigError(f"{name} is empty, and the tokenizer has no token to begin with; write something")
    if max_positions and len(prompt) + params.max_new_tokens > max_positions:
        raise ConfigError(
            f"{name} has {len(prompt)} tokens; with max_new_tokens={params.max_new_tokens} that is over the "
            f"{max_positions} positions of the model. {remedy(len(prompt), max_positions)}"
        )
