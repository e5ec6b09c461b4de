"""Requests that can never be answered are refused at once, with what would have to change."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import ConfigError
from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.positions import BidirectionalPrefix, PositionRule
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.request import Request


def step_tokens_for(spec: DecoderSpec, max_sequences: int = 64, enough: int = 512) -> int:
    """Tokens of a step that are enough for a model: a bidirectional prefix is computed in one step.

    Args:
        spec: The model.
        max_sequences: Most sequences that run together.
        enough: Tokens that make a step efficient; fewer let running answers wait less for prompts.
    """
    if not spec.prefix_lm:
        return max(enough, max_sequences + 1)
    return max(enough, (spec.max_positions or 2048) + max_sequences)


@dataclass(frozen=True, slots=True)
class Limits:
    """What every request has to respect.

    Attributes:
        rule: Positions of the model.
        manager: The KV cache.
        adapters: Number of adapters of the executor.
        step_tokens: Maximum number of tokens of a step.
        max_sequences: Maximum number of sequences that run together.
    """

    rule: PositionRule
    manager: BlockManager
    adapters: int
    step_tokens: int
    max_sequences: int

    def check(self, request: Request) -> BidirectionalPrefix | None:
        """The bidirectional prefix of a request's prompt, if the request can be answered.

        Raises:
            ConfigError: The prompt is empty, too long or not of the vocabulary, or an option is out of range.
            DataError: The prompt lacks the tokens that delimit a bidirectional prefix.
        """
        vocab, prompt = self.rule.spec.vocab, request.prompt
        if not len(prompt):
            raise ConfigError("the prompt is empty, and the tokenizer has no token to begin with; write something")
        unknown = next((token for token in prompt if not 0 <= token < vocab), None)
        if unknown is not None:
            raise ConfigError(f"the prompt has the token {unknown}; the model knows those from 0 to {vocab - 1}")
        named = (*request.options.stop_token_ids, *(token for token, _ in request.options.logit_bias))
        unknown = next((token for token in named if not 0 <= token < vocab), None)
        if unknown is not None:
            raise ConfigError(
                f"stop_token_ids or logit_bias names the token {unknown}; the model knows those from 0 to {vocab - 1}"
            )
        if not -1 <= request.adapter < self.adapters:
            raise ConfigError(
                f"adapter index {request.adapter} is out of range: {self.adapters} are loaded; -1 is none"
            )
        width = request.beams.beams if request.beams else 1
        if width > self.max_sequences:
            raise ConfigError(f"beams={width} is more than the {self.max_sequences} rows that run together; use fewer")
        self._check_length(request, width)
        prefix = self.rule.prefix([*prompt])
        if prefix:
            self._check_prefix(request, prefix)
        return prefix

    def _check_prefix(self, request: Request, prefix: BidirectionalPrefix) -> None:
        room = self.step_tokens - self.max_sequences + 1
        if prefix.length > room:
            raise ConfigError(
                f"the prompt's bidirectional prefix has {prefix.length} tokens; it is computed in one step, which has room for "
                f"{room}. Shorten it, or set step_tokens to {self.step_tokens + prefix.length - room} or more"
            )
        if request.score_from is not None and request.score_from <= prefix.length:
            raise ConfigError(
                f"score_from={request.score_from} must be above {prefix.length}: tokens of the bidirectional prefix see those "
                "after them"
            )

    def _check_length(self, request: Request, width: int) -> None:
        spec, virtual = self.rule.spec, self.rule.virtual_tokens
        stable = spec.rope.max_stable_length if spec.rope else None
        if stable is not None:
            other = "; longer sequences need the dynamic engine"
            _within(request, stable - virtual, "positions for which the model's RoPE frequencies are valid", other)
        elif spec.max_positions is not None:
            _within(request, spec.max_positions - virtual, "positions of the model")
        prompt, total = len(request.prompt), len(request.prompt) + _new(request) - 1
        available = self.manager.pool.count - -(-virtual // BLOCK)
        needed = self.manager.max_blocks(total, prompt, width)
        if needed > available:
            new = f"; with max_new_tokens={_new(request)}" if _new(request) else ";"
            raise ConfigError(
                f"the prompt has {prompt} tokens{new}{f' and beams={width}' if width > 1 else ''} it needs {needed} blocks of "
                f"{BLOCK} tokens, and the cache has {available}. Shorten it, lower max_new_tokens, or give the cache more "
                "memory"
            )


def remedy(prompt: int, limit: int) -> str:
    """What to do about a prompt that leaves no room for its answer, both in tokens."""
    if prompt >= limit:
        return f"Shorten it to fewer than {limit} tokens"
    return f"Shorten it, or set max_new_tokens to {limit - prompt} or less"


def _within(request: Request, limit: int, what: str, other: str = "") -> None:
    """Raises ConfigError if prompt and answer together are over a limit; the last token of a text that is scored is not read."""
    prompt, new = len(request.prompt), _new(request)
    if (prompt + new if new else prompt - 1) <= limit:
        return
    if not new:
        raise ConfigError(f"the text has {prompt} tokens; that is over the {limit} {what}. Shorten it{other}")
    raise ConfigError(
        f"the prompt has {prompt} tokens; with max_new_tokens={new} that is over the {limit} {what}. "
        f"{remedy(prompt, limit)}{other}"
    )


def _new(request: Request) -> int:
    """Maximum number of tokens that are generated."""
    return 0 if request.score_from is not None else request.options.max_new_tokens
