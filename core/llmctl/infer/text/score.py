"""Log-probabilities of given texts, over any backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.errors import LlmctlError
from llmctl.infer.backend import Backend
from llmctl.infer.request import Request


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Log-probabilities of a given text.

    Attributes:
        token_ids: Its tokens, with those that the tokenizer puts before a text.
        logprobs: Log-probability of each token given those before it; None for the first token, and for a prompt that the model
            reads in both directions.
    """

    token_ids: list[int]
    logprobs: list[float | None]

    @property
    def total(self) -> float:
        """The sum of the log-probabilities."""
        return sum(logprob for logprob in self.logprobs if logprob is not None)


def score_texts(backend: Backend, requests: Sequence[Request]) -> list[TextScore]:
    """The scores of requests with ``score_from``, in their order.

    Raises:
        LlmctlError: A request was refused or failed.
    """
    scores: dict[int, TextScore] = {}
    for index, made in backend.run(requests):
        if made.finish_reason != "scored":
            raise made.cause or LlmctlError(f"text {index + 1}: {made.error}")
        ids = list(requests[index].prompt)
        unscored: list[float | None] = [None] * (len(ids) - len(made.logprobs))
        scores[index] = TextScore(token_ids=ids, logprobs=unscored + [scored.logprob for scored in made.logprobs])
    return [scores[index] for index in range(len(requests))]
