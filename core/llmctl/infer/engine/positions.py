"""Where the tokens of a sequence stand and what each of them sees, from the card: causal, a window, contexts, virtual tokens.

Virtual tokens come first and count as places; everything sees them as long as the window reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import DataError
from llmctl.infer.executors.base import Int


@dataclass(frozen=True, slots=True)
class Context:
    """The tokens before the one that ends a context; they see each other in both directions.

    Attributes:
        length: Their number.
        mark: The position that the answer stands for.
    """

    length: int
    mark: int


@dataclass(frozen=True, slots=True)
class Places:
    """What a model's tokens see.

    Attributes:
        graph: The model.
        virtual: Virtual tokens before every sequence.
    """

    graph: DecoderSpec
    virtual: int = 0

    def context(self, ids: Sequence[int]) -> Context | None:
        """The sequence's context; None where all is causal.

        Raises:
            DataError: The tokens that mark it are missing.
        """
        rule = self.graph.prefix_lm
        if rule is None:
            return None
        length = list(ids).index(rule.end) if rule.end in ids else -1
        before = list(ids[:length]) if length >= 0 else list(ids)
        mark = next((token for token in rule.mask_ids if token in before), None)
        if length < 0 or mark is None:
            marks = " or ".join(str(token) for token in rule.mask_ids)
            raise DataError(
                f"the prompt has no token {rule.end if length < 0 else marks}; prompts of this model end with "
                f"{marks}, then {rule.end}"
            )
        return Context(length, before.index(mark))

    def arrays(self, place_T: Int, contexts: Sequence[tuple[slice, Context]]) -> tuple[Int, Int | None, Int, Int]:
        """For every token its position, its second position, the first place that it sees and the place after the last.

        Args:
            place_T: Places.
            contexts: For sequences with one: their part of T and the context.
        """
        end_T = place_T + 1
        window = self.graph.window
        begin_T = np.zeros_like(place_T) if window is None else np.maximum(end_T - window, 0)
        if not self.graph.prefix_lm:
            return place_T, None, begin_T, end_T
        position_T = place_T - self.virtual
        second_T = np.zeros_like(place_T)
        for part, context in contexts:
            own = position_T[part].copy()
            inside = own < context.length
            end_T[part] = np.where(inside, self.virtual + context.length, end_T[part])
            position_T[part] = np.where(inside, own, context.mark)
            second_T[part] = np.where(inside, 0, own - context.length + 1)
        return position_T, second_T, begin_T, end_T
