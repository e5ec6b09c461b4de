"""Positions and attention ranges of each token, from the card: causal, sliding window, prefix-LM, virtual tokens.

Virtual tokens come first in the KV sequence; every token attends to them as far as the window reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import DataError
from llmctl.infer.executors.base import Int


@dataclass(frozen=True, slots=True)
class BidirectionalPrefix:
    """The tokens of a prompt, up to the one that ends it, which attend to each other in both directions (prefix-LM).

    Attributes:
        length: Their number.
        mask_position: Position id of the mask token, which all tokens of the answer have.
    """

    length: int
    mask_position: int


@dataclass(frozen=True, slots=True)
class PositionRule:
    """Positions and attention ranges of a model's tokens.

    Attributes:
        spec: The model.
        virtual_tokens: Their number before every sequence.
    """

    spec: DecoderSpec
    virtual_tokens: int = 0

    def prefix(self, ids: Sequence[int]) -> BidirectionalPrefix | None:
        """The bidirectional prefix of a prompt; None for a causal model.

        Raises:
            DataError: The tokens that delimit it are missing.
        """
        rule = self.spec.prefix_lm
        if rule is None:
            return None
        length = list(ids).index(rule.end) if rule.end in ids else -1
        before = list(ids[:length]) if length >= 0 else list(ids)
        mask = next((token for token in rule.mask_ids if token in before), None)
        if length < 0 or mask is None:
            masks = " or ".join(str(token) for token in rule.mask_ids)
            raise DataError(
                f"the prompt has no token {rule.end if length < 0 else masks}; prompts of this model end with "
                f"{masks}, then {rule.end}"
            )
        return BidirectionalPrefix(length, before.index(mask))

    def arrays(
        self, kv_position_T: Int, prefixes: Sequence[tuple[slice, BidirectionalPrefix]]
    ) -> tuple[Int, Int | None, Int, Int]:
        """Position id, second position id (2-D RoPE only), and begin and end of the attention range, of every token.

        Args:
            kv_position_T: Positions in the KV sequence, virtual tokens included.
            prefixes: For each sequence that has one: its slice of T and its bidirectional prefix.
        """
        attend_end_T = kv_position_T + 1
        window = self.spec.window
        attend_begin_T = np.zeros_like(kv_position_T) if window is None else np.maximum(attend_end_T - window, 0)
        if not self.spec.prefix_lm:
            return kv_position_T, None, attend_begin_T, attend_end_T
        position_T = kv_position_T - self.virtual_tokens
        second_position_T = np.zeros_like(kv_position_T)
        for part, prefix in prefixes:
            own = position_T[part].copy()
            inside = own < prefix.length
            attend_end_T[part] = np.where(inside, self.virtual_tokens + prefix.length, attend_end_T[part])
            position_T[part] = np.where(inside, own, prefix.mask_position)
            second_position_T[part] = np.where(inside, 0, own - prefix.length + 1)
        return position_T, second_position_T, attend_begin_T, attend_end_T
