"""Generation for a batch of prompts with a KV cache.

Rows are padded on the left. A finished row leaves the batch and costs nothing more. The answer of a row does not depend on
the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from llmctl.infer.eager.model import Choose, EagerModel, Session
from llmctl.infer.request import Generation
from llmctl.infer.sampling import BrokenLogitsError, SamplingParams, TokenLogprob
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.single import choose, generator_for

OnToken = Callable[[int, int], bool | None]
"""Called with the index of the prompt and the new token; True ends the answer."""

NONE = -1
"""In the place of a token that cannot be chosen."""


@dataclass
class _Row:
    index: int
    prompt: Sequence[int]
    draws: np.random.Generator
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    error: str = ""
    scores: list[TokenLogprob] = field(default_factory=list)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    options: SamplingParams,
    end_ids: Collection[int],
    pad_id: int,
    on_token: OnToken | None = None,
    use_cache: bool = True,
    indices: Sequence[int] | None = None,
) -> list[Generation]:
    """Answers to prompts, in order.

    Of ranks that compute a model together one chooses the tokens, and all get them; it alone has log-probabilities and what an error says.

    Args:
        model: A layer with ``hidden_states`` and ``logits``, or a ``model.EagerModel``. If rows may outgrow its
            ``max_stable_length``, it is run prompt by prompt without a KV cache, since cached keys become invalid.
        prompts: Token ids, at least one each.
        options: How tokens are chosen.
        end_ids: Tokens that end an answer.
        pad_id: Fills rows on the left; masked.
        on_token: Called for every token of an answer.
        use_cache: False computes every step from the beginning.
        indices: Index of each prompt among all prompts, for its random numbers; None = these are all prompts.
    """
    indices = range(len(prompts)) if indices is None else indices
    rows = [
        _Row(i, prompt, generator_for(options, index))
        for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True))
    ]
    for row in rows:
        if not row.prompt:
            raise ValueError(f"prompt {row.index} is empty")
    model, end_ids = as_model(model), options.ends(end_ids)
    longest = max((len(prompt) for prompt in prompts), default=0) + options.max_new_tokens
    changing = model.max_stable_length is not None and longest > model.max_stable_length
    for group in [[row] for row in rows] if changing else [rows]:
        batch = _RunningBatch(model, group, options.max_new_tokens, pad_id, use_cache and not changing)
        while batch.rows:
            tokens_B = batch.step(partial(_next_tokens, batch.rows, options, end_ids))
            for row, token in zip(batch.rows, tokens_B.tolist(), strict=True):
                _extend(row, token, options, end_ids, on_token)
            batch.keep_unfinished()
    return [Generation(row.ids, row.reason, row.error, row.scores) for row in rows]


def as_model(model: Any) -> EagerModel:
    """A layer as a model of generation; a model as it is."""
    if hasattr(model, "begin"):
        return model
    from llmctl.infer.eager.layer import DynamicModel

    return DynamicModel(model)


def _next_tokens(
    rows: Sequence[_Row], options: SamplingParams, end_ids: Collection[int], logits_BV: np.ndarray
) -> np.ndarray:
    """The next token of each row, ``NONE`` where the logits are broken; keeps what the row tells of it."""
    tokens = []
    for row, logits_V in zip(rows, logits_BV, strict=True):
        token = NONE
        try:
            token = choose(logits_V, [*row.prompt, *row.ids], len(row.ids), options, end_ids, row.draws)
        except BrokenLogitsError as error:
            row.error = str(error)
        scored = None if token == NONE or token in end_ids else token_logprob(logits_V, token, options)
        if scored:
            row.scores.append(scored)
        tokens.append(token)
    return np.asarray(tokens, np.int64)


def _extend(row: _Row, token: int, options: SamplingParams, end_ids: Collection[int], on_token: OnToken | None) -> None:
    if token == NONE or token in end_ids:
        row.reason = "error" if token == NONE else "end"
        return
    row.ids.append(token)
    if on_token and on_token(row.index, token):
        row.reason = "stop"
    elif len(row.ids) == options.max_new_tokens:
        row.reason = "length"


class _RunningBatch:
    """Unfinished rows with their padding mask."""

    def __init__(self, model: EagerModel, rows: list[_Row], new: int, pad_id: int, use_cache: bool) -> None:
        self.rows, self.pad_id = rows, pad_id
        self.longest = max((len(row.prompt) for row in rows), default=0)
        self.session: Session = model.begin(self.longest + new, use_cache)
        self.mask_BS = np.zeros((len(rows), self.longest), np.int64)
        for i, row in enumerate(rows):
            self.mask_BS[i, self.longest - len(row.prompt) :] = 1

    def step(self, choose: Choose) -> np.ndarray:
        """What is chosen from the logits [B, V] of the next token of every row."""
        width = self.longest + len(self.rows[0].ids)
        self.mask_BS = np.pad(self.mask_BS, ((0, 0), (0, width - self.mask_BS.shape[1])), constant_values=1)
        return self.session.step(self._new_ids(width), self.mask_BS, choose)

    def keep_unfinished(self) -> None:
        """Drops finished rows."""
        kept = [i for i, row in enumerate(self.rows) if not row.reason]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        self.mask_BS = self.mask_BS[kept]
        if kept:
            self.session.select(kept)

    def _new_ids(self, width: int) -> np.ndarray:
        """Ids [B, T] that are not in the cache: all of them at first and without a cache, else the last."""
        if self.session.past:
            return np.asarray([[row.ids[-1]] for row in self.rows], np.int64)
        ids_BT = np.full((len(self.rows), width), self.pad_id, np.int64)
        for i, row in enumerate(self.rows):
            ids = [*row.prompt, *row.ids]
            ids_BT[i, width - len(ids) :] = ids
        return ids_BT
