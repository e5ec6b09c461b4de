"""Generating answers to held-out examples, from prompts as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmctl.io.progress import tracked
from llmctl.tokenizers import Tokenizer


class Prompts(Protocol):
    """Encodes prompts of examples."""

    tokenizer: Tokenizer

    def prompt(self, example: Any, /) -> list[int]:
        """Ids of everything before the example's last answer."""


@dataclass(frozen=True)
class EvalGenerator:
    """Generates answers to the last prompt of examples, greedily.

    Attributes:
        encoder: Encodes prompts as in training.
        batch_size: Prompts of a forward pass.
        max_new_tokens: Longest answer, in tokens.
        max_positions: Positions of the model, which prompt and answer must fit into; 0 = no limit.
    """

    encoder: Prompts
    batch_size: int
    max_new_tokens: int
    max_positions: int

    def __call__(self, model: Any, examples: Sequence[Any]) -> list[str]:
        """The answers in order; empty where the prompt is empty, or leaves no position for an answer."""
        from llmctl.infer.eager.generate import generate
        from llmctl.infer.sampling import SamplingParams

        tokenizer = self.encoder.tokenizer
        prompts = [self.encoder.prompt(example) for example in examples]
        rooms = [self._room(model, prompt) for prompt in prompts]
        fitting = [number for number, room in enumerate(rooms) if room > 0]
        answers = [""] * len(prompts)
        starts = range(0, len(fitting), self.batch_size)
        for start in tracked(starts, "answering held-out prompts", len(starts)):
            numbers = fitting[start : start + self.batch_size]
            options = SamplingParams(max_new_tokens=min(rooms[number] for number in numbers))
            batch = [prompts[number] for number in numbers]
            rows = generate(model, batch, options, tokenizer.eos_ids, tokenizer.pad_id)
            for number, row in zip(numbers, rows, strict=True):
                answers[number] = tokenizer.decode(row.ids)
        return answers

    def _room(self, model: Any, prompt: Sequence[int]) -> int:
        """Longest answer to a prompt, in tokens; below 1 = none fits."""
        if not prompt or not self.max_positions:
            return self.max_new_tokens if prompt else 0
        return min(self.max_new_tokens, self.max_positions - getattr(model, "virtual_tokens", 0) - len(prompt))
