"""A decoder with an output head: the interface that training, generation and conversion rely on.

Letters as in the package's docstring. Families' modeling files give the decoder and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle

from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Layout
from llmctl.nn.moe import SparseMLP, load_balance
from llmctl.nn.prefix import Prefix
from llmctl.nn.symbolic import size


class CausalLM(paddle.nn.Layer):
    """Token ids to logits.

    Args:
        name: Name of the decoder in the state dict.
        decoder: Called with (input_ids_BT, layout, cache); has ``embedding_weight`` [vocab, hidden] where the head is
            tied.
        head: Hidden states to scores; None = the input embedding, transposed.
        aux_loss: Factor of the load-balancing loss of mixtures of experts in training; 0 = none.

    Attributes:
        prefix: Virtual tokens before every sequence; None = there are none.
    """

    prefix: Prefix | None

    def __init__(
        self, name: str, decoder: paddle.nn.Layer, head: paddle.nn.Layer | None, aux_loss: float = 0.0
    ) -> None:
        super().__init__()
        self.add_sublayer(name, decoder)
        self._decoder_name = name
        self.lm_head = head
        self.aux_loss = aux_loss
        self.prefix = None

    @property
    def virtual_tokens(self) -> int:
        """Number of positions that virtual tokens take before every sequence."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def decoder(self) -> paddle.nn.Layer:
        """The layer that gives hidden states."""
        return getattr(self, self._decoder_name)

    @property
    def position_depends_on_length(self) -> bool:
        """Whether cached keys go stale as a sequence grows, so that generation must run without a cache."""
        rotary = getattr(self.decoder, "rotary", None)
        return rotary is not None and rotary.by_length

    @property
    def max_stable_length(self) -> int:
        """The length up to which cached keys stay right; of interest if ``position_depends_on_length``."""
        return self.decoder.rotary.max_stable_length - self.virtual_tokens

    def hidden_states(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
        document_end_BT: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Hidden states after the final norm [B, T, D].

        Args:
            input_ids_BT: Token ids.
            attention_mask_BS: 1 = real, 0 = padding, over past and new positions; None = all real.
            position_ids_BT: None = counted from the mask.
            cache: Keys and values of past positions; this call appends to it.
            document_end_BT: For rows that hold several documents: the column from which a token is no longer seen, 0 for
                padding. Needs position ids, which restart with each document.
        """
        if self.prefix is not None:
            cache, attention_mask_BS, position_ids_BT = self.prefix.before(
                input_ids_BT.shape[0], cache, attention_mask_BS, position_ids_BT
            )
        past = cache.length if cache is not None else 0
        layout = Layout(size(input_ids_BT, 1), past, attention_mask_BS, position_ids_BT, document_end_BT)
        return self.decoder(input_ids_BT, layout, cache)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Scores of the vocabulary for hidden states of any leading shape."""
        if self.lm_head is None:
            return paddle.matmul(hidden, self.decoder.embedding_weight, transpose_y=True)
        return self.lm_head(hidden)

    def forward(
        self,
        input_ids_BT: paddle.Tensor,
        attention_mask_BS: paddle.Tensor | None = None,
        position_ids_BT: paddle.Tensor | None = None,
        cache: KVCache | None = None,
    ) -> paddle.Tensor:
        """Logits [B, T, V] of every position; arguments as for ``hidden_states``."""
        return self.logits(self.hidden_states(input_ids_BT, attention_mask_BS, position_ids_BT, cache))

    def auxiliary_loss(self, arrays: Mapping[str, Any]) -> paddle.Tensor | None:
        """The load-balancing loss of the last forward in training times its factor; None where there is none.

        Args:
            arrays: The batch; tokens that its ``attention_mask`` gives as 0 are left out.
        """
        routers = [layer.gate for layer in self.sublayers() if isinstance(layer, SparseMLP)]
        if not self.aux_loss or not routers:
            return None
        logits = [router.logits_TE for router in routers]
        mask = arrays.get("attention_mask")
        mask_BS = None if mask is None else paddle.to_tensor(mask)
        return self.aux_loss * load_balance(logits, routers[0].moe.top_k, mask_BS)
