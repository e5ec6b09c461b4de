"""Log-probabilities of windows by any backend: perplexity, and the distance of one model's predictions from another's.

Shape suffixes: T scored tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmctl.errors import LlmctlError
from llmctl.infer.backend import Backend
from llmctl.infer.perplexity.windows import Passage, Window
from llmctl.infer.request import Request
from llmctl.infer.sampling.logprobs import log_softmax

HELD = 256 << 20
"""Bytes of predictions that are held in memory for a comparison."""


@dataclass(kw_only=True)
class Measures:
    """How well one model predicts.

    Attributes:
        tokens: Number of predicted tokens.
        size: Bytes of their text; 0 = not known.
        loss_sum: Sum of -log p of the tokens, in nats.
        divergence_sum: Sum over the tokens of the Kullback-Leibler divergence of the predictions from the first model's, in nats.
        same_top: Number of tokens where both models have the same token first.
    """

    tokens: int = 0
    size: int = 0
    loss_sum: float = 0.0
    divergence_sum: float = 0.0
    same_top: int = 0

    @property
    def loss(self) -> float:
        """Mean loss of a token, in nats."""
        return self.loss_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Loss of a byte of the text, in bits: comparable between tokenizers."""
        return self.loss_sum / math.log(2) / self.size if self.size else None

    @property
    def divergence(self) -> float:
        """Mean divergence of a token from the first model, in nats."""
        return self.divergence_sum / self.tokens

    @property
    def agreement(self) -> float:
        """Share of tokens where both models have the same token first."""
        return self.same_top / self.tokens


Tick = Callable[[int], None]


def measure(backend: Backend, passage: Passage, tick: Tick = lambda tokens: None) -> Measures:
    """How well a model predicts a passage.

    Args:
        backend: The model.
        passage: What is predicted.
        tick: Called with the number of tokens that were scored since the last call.

    Raises:
        LlmctlError: A window cannot be scored.
    """
    found = Measures(size=passage.size)
    requests = [_request(window) for window in passage.windows]
    for index, made in backend.run(requests):
        if made.finish_reason != "scored":
            raise made.cause or LlmctlError(made.error)
        window = passage.windows[index]
        first = window.scored[0]
        found.loss_sum -= sum(made.logprobs[at - first].logprob for at in window.scored)
        found.tokens += len(window.scored)
        tick(len(window.scored))
    return found


def compare(
    backends: Sequence[Backend], passage: Passage, vocab: int, tick: Tick = lambda tokens: None
) -> list[Measures]:
    """How well models of one vocabulary predict a passage, and how far each is from the first.

    Args:
        backends: The models.
        passage: What is predicted.
        vocab: V.
        tick: As for ``measure``.
    """
    found = [Measures(size=passage.size) for _ in backends]
    for group in _groups(passage.windows, vocab):
        right: list[np.ndarray] = []
        for number, (backend, measures) in enumerate(zip(backends, found, strict=True)):
            for index, logprobs_TV in enumerate(_predictions(backend, group)):
                if number == 0:
                    right.append(logprobs_TV)
                _add(measures, group[index], logprobs_TV, right[index])
            tick(sum(len(window.scored) for window in group))
    return found


def _add(measures: Measures, window: Window, logprobs_TV: np.ndarray, right_TV: np.ndarray) -> None:
    tokens_T = np.array([window.ids[at] for at in window.scored])
    measures.tokens += len(tokens_T)
    measures.loss_sum -= float(logprobs_TV[np.arange(len(tokens_T)), tokens_T].sum(dtype=np.float64))
    measures.same_top += int((logprobs_TV.argmax(axis=1) == right_TV.argmax(axis=1)).sum())
    for logprobs_V, right_V in zip(logprobs_TV, right_TV, strict=True):
        p_V = np.exp(right_V.astype(np.float64))
        measures.divergence_sum += float(p_V @ (right_V.astype(np.float64) - logprobs_V))


def _groups(windows: Sequence[Window], vocab: int) -> Iterator[Sequence[Window]]:
    """Windows whose predictions are held together."""
    group: list[Window] = []
    held = 0
    for window in windows:
        needs = 4 * vocab * len(window.scored)
        if group and held + needs > HELD:
            yield group
            group, held = [], 0
        group.append(window)
        held += needs
    if group:
        yield group


def _predictions(backend: Backend, windows: Sequence[Window]) -> list[np.ndarray]:
    """Log-probabilities [T, V] of each window, float32."""
    found: list[list[np.ndarray]] = [[] for _ in windows]
    requests = []
    for window, rows in zip(windows, found, strict=True):
        wanted = frozenset(window.scored)

        def keep(at: int, logits_V: np.ndarray, wanted: frozenset[int] = wanted, rows: list[np.ndarray] = rows) -> None:
            if at in wanted:
                rows.append(log_softmax(logits_V).astype(np.float32))

        requests.append(_request(window, keep))
    for _, made in backend.run(requests):
        if made.finish_reason != "scored":
            raise made.cause or LlmctlError(made.error)
    return [np.stack(rows) for rows in found]


def _request(window: Window, on_logits: Callable[[int, np.ndarray], None] | None = None) -> Request:
    return Request(prompt=window.ids, score_from=window.scored[0], on_logits=on_logits)
