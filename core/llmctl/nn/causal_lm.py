"""A decoder with an output head: the interface of training, generation and conversion.

Shape suffixes as in the package's docstring. The modeling files of families provide decoder and head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import paddle

from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Layout
from llmctl.nn.moe import SparseMLP, balancing_loss, router_sums
from llmctl.nn.prefix import Prefix
from llmctl.nn.symbolic import size
from llmctl.nn.vocabulary import Vocabulary


class TiedHead(paddle.nn.Layer):
    """The output head of a model whose input embedding is the head too: a layer without weights, which can have hooks."""

    def forward(self, hidden: paddle.Tensor, table_VD: paddle.Tensor) -> paddle.Tensor:
        """Scores [..., V] of hidden states [..., D]."""
        return paddle.matmul(hidden, table_VD, transpose_y=True)


class CausalLM(paddle.nn.Layer):
    """Token ids to logits.

    Args:
        name: Name of the decoder in the state dict.
        decoder: Called with (input_ids_BT, layout, cache); has ``embedding_weight`` [vocab, hidden] where the head is
            tied.
        head: Hidden states to scores; None = the input embedding, transposed.
        aux_loss: Coefficient of the load-balancing loss of mixtures of experts in training; 0 = none.

    Attributes:
        prefix: Virtual tokens before every sequence (prefix tuning); None = no prefix.
        vocabulary: Losses and logits of hidden states.
        tied_head: Computes with the input embedding as head; None where the head has weights of its own.
    """

    prefix: Prefix | None
    vocabulary: Vocabulary

    def __init__(
        self, name: str, decoder: paddle.nn.Layer, head: paddle.nn.Layer | None, aux_loss: float = 0.0
    ) -> None:
        super().__init__()
        self.add_sublayer(name, decoder)
        self._decoder_name = name
        self.lm_head = head
        self.tied_head = TiedHead() if head is None else None
        self.aux_loss = aux_loss
        self.prefix = None
        self.vocabulary = Vocabulary(self.scores)

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens before every sequence."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def decoder(self) -> paddle.nn.Layer:
        """The layer that returns hidden states."""
        return getattr(self, self._decoder_name)

    @property
    def position_depends_on_length(self) -> bool:
        """Whether RoPE frequencies depend on the length, so that generation beyond it must run without a cache."""
        rotary = getattr(self.decoder, "rotary", None)
        return rotary is not None and rotary.by_length

    @property
    def max_stable_length(self) -> int:
        """Longest sequence for which cached keys stay valid, if ``position_depends_on_length``."""
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
            cache: The KV cache of past positions; this call appends to it.
            document_end_BT: For rows that hold several documents: the end column of each token's document, 0 for padding.
                Requires position ids, which restart with each document.
        """
        if self.prefix is not None:
            cache, attention_mask_BS, position_ids_BT = self.prefix.prepend(
                input_ids_BT.shape[0], cache, attention_mask_BS, position_ids_BT
            )
        past = cache.length if cache is not None else 0
        layout = Layout(size(input_ids_BT, 1), past, attention_mask_BS, position_ids_BT, document_end_BT)
        return self.decoder(input_ids_BT, layout, cache)

    def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits over the vocabulary, for hidden states of any leading shape."""
        return self.vocabulary.logits(hidden)

    def scores(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """Logits of the tokens whose rows this model holds, which are all unless it is divided among ranks."""
        if self.tied_head is not None:
            return self.tied_head(hidden, self.decoder.embedding_weight)
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

    def auxiliary_sums(self, arrays: Mapping[str, Any]) -> tuple[paddle.Tensor, ...]:
        """What ``auxiliary_loss`` needs of the last forward: the sums of ``router_sums``; empty without such a loss, and in evaluation.

        Args:
            arrays: The batch; tokens with an ``attention_mask`` of 0 do not count.
        """
        return self.auxiliary_sums_of(self.sublayers(), arrays) if self.training and self.aux_loss else ()

    def auxiliary_sums_of(
        self, layers: Iterable[paddle.nn.Layer], arrays: Mapping[str, Any]
    ) -> tuple[paddle.Tensor, ...]:
        """The part of ``auxiliary_sums`` that some of the model's layers have; empty if no router is among them.

        Args:
            layers: All of them, also those inside others.
            arrays: As for ``auxiliary_sums``.
        """
        routers: list[Any] = [layer.gate for layer in layers if isinstance(layer, SparseMLP)]
        if not routers:
            return ()
        mask = arrays.get("attention_mask")
        mask_BS = None if mask is None else paddle.to_tensor(mask)
        return router_sums([router.logits_TE for router in routers], routers[0].moe.top_k, mask_BS)

    def auxiliary_loss(self, sums: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """The load-balancing loss, times its coefficient.

        Args:
            sums: As ``auxiliary_sums`` returns them, not empty.
        """
        return self.aux_loss * balancing_loss(*sums)
