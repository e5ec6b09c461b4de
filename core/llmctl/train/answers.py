"""Answers generated to held-out questions, from prompts as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmctl.tokenizers import Tokenizer


class Prompts(Protocol):
    """Makes prompts of examples."""

    tokenizer: Tokenizer

    def prompt(self, example: Any, /) -> list[int]:
        """Ids of everything before the example's last answer."""


@dataclass(frozen=True)
class Answers:
    """Generates answers to the last question of examples, greedily.

    Attributes:
        encoder: Makes prompts as in training.
        batch_size: Prompts of a forward pass.
        max_new_tokens: Longest answer, in tokens.
        max_positions: The model's, so that prompt and answer fit.
    """

    encoder: Prompts
    batch_size: int
    max_new_tokens: int
    max_positions: int

    def __call__(self, model: Any, examples: Sequence[Any]) -> list[str]:
        """The answers' texts, in order."""
        from llmctl.infer.generate import generate
        from llmctl.infer.sampling import SamplingOptions

        tokenizer = self.encoder.tokenizer
        prompts = [self.encoder.prompt(example) for example in examples]
        limit = self.max_positions - getattr(model, "virtual_tokens", 0)
        room = limit - max(map(len, prompts)) if self.max_positions else self.max_new_tokens
        options = SamplingOptions(max_new_tokens=max(1, min(self.max_new_tokens, room)))
        answers: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = generate(
                model, prompts[start : start + self.batch_size], options, tokenizer.eos_ids, tokenizer.pad_id
            )
            answers += [tokenizer.decode(row.ids) for row in rows]
        return answers
