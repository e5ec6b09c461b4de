"""Requests that can never be answered are refused at once, with what would have to change."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import ConfigError
from llmctl.infer.engine.block_manager import Tables
from llmctl.infer.engine.positions import Context, Places
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.request import Request


def step_tokens_for(graph: DecoderSpec, most_rows: int = 64, enough: int = 512) -> int:
    """Tokens of a step that are enough for a model: contexts that are read in both directions go into one step."""
    if not graph.prefix_lm:
        return max(enough, most_rows + 1)
    return max(enough, (graph.max_positions or 2048) + most_rows)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request must keep to.

    Attributes:
        places: The model.
        tables: The cache.
        adapters: Adapters of the executor.
        step_tokens: The most tokens of a step.
        most_rows: Rows that run together.
    """

    places: Places
    tables: Tables
    adapters: int
    step_tokens: int
    most_rows: int

    def check(self, request: Request) -> Context | None:
        """The context of a request's prompt, when it can be answered.

        Raises:
            ConfigError: The prompt is empty, has ids that the model does not know or is too long, or an option asks for
                what there is not.
            DataError: The prompt lacks tokens that mark a context.
        """
        graph, prompt = self.places.graph, request.prompt
        if not len(prompt):
            raise ConfigError("the prompt is empty, and the tokenizer has no token to begin with; write something")
        strange = next((token for token in prompt if not 0 <= token < graph.vocab), None)
        if strange is not None:
            raise ConfigError(f"the prompt has the token {strange}; the model knows those from 0 to {graph.vocab - 1}")
        if not -1 <= request.adapter < self.adapters:
            raise ConfigError(f"adapter {request.adapter} is none of the {self.adapters} that are loaded; -1 is none")
        width = request.beams.beams if request.beams else 1
        if width > self.most_rows:
            raise ConfigError(f"beams={width} is more than the {self.most_rows} rows that run together; use fewer")
        self._length(request, width)
        context, room = self.places.context([*prompt]), self.step_tokens - self.most_rows + 1
        if context and context.length > room:
            raise ConfigError(
                f"the prompt's context has {context.length} tokens; it is computed in one step, which has room for {room}. "
                f"Shorten it, or set step_tokens to {self.step_tokens + context.length - room} or more"
            )
        if context and request.score_from is not None and request.score_from <= context.length:
            raise ConfigError(
                f"score_from={request.score_from} must be above {context.length}: tokens of the context see those after them"
            )
        return context

    def _length(self, request: Request, width: int) -> None:
        graph, virtual = self.places.graph, self.places.virtual
        stable = graph.rope.max_stable_length if graph.rope else None
        if stable is not None:
            other = "; longer sequences need the dynamic engine"
            _within(request, stable - virtual, "positions for which the model's rotation is fixed", other)
        elif graph.max_positions is not None:
            _within(request, graph.max_positions - virtual, "positions of the model")
        prompt, total = len(request.prompt), len(request.prompt) + _new(request) - 1
        there = self.tables.blocks.count - -(-virtual // BLOCK)
        needed = self.tables.most(total, prompt, width)
        if needed > there:
            new = f"; with max_new_tokens={_new(request)}" if _new(request) else ";"
            raise ConfigError(
                f"the prompt has {prompt} tokens{new}{f' and beams={width}' if width > 1 else ''} it needs {needed} blocks of "
                f"{BLOCK} tokens, and the cache has {there}. Shorten it, lower max_new_tokens, or give the cache more memory"
            )


def remedy(prompt: int, limit: int) -> str:
    """What to do about a prompt that leaves no room for its answer, both in tokens."""
    if prompt >= limit:
        return f"Shorten it to fewer than {limit} tokens"
    return f"Shorten it, or set max_new_tokens to {limit - prompt} or less"


def _within(request: Request, limit: int, what: str, other: str = "") -> None:
    """Raises ConfigError where prompt and answer together are over a limit."""
    prompt, new = len(request.prompt), _new(request)
    if prompt + new > limit and not new:
        raise ConfigError(f"the text has {prompt} tokens; that is over the {limit} {what}. Shorten it{other}")
    if prompt + new > limit:
        raise ConfigError(
            f"the prompt has {prompt} tokens; with max_new_tokens={new} that is over the {limit} {what}. "
            f"{remedy(prompt, limit)}{other}"
        )


def _new(request: Request) -> int:
    """Most tokens that are generated."""
    return 0 if request.score_from is not None else request.options.max_new_tokens
