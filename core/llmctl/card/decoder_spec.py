"""A decoder as data: what the fused engine computes for a model, and from which tensors.

A card's slots name its tensors; the other fields describe the rest: RoPE, ALiBi, the residual. Returned by the
hook ``fused_graph``, packed by ``infer/packed/pack.py``, computed by ``infer/executors``. No paddle or numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of queries and keys.

    Attributes:
        rotary_dim: Leading elements of each head that are rotated.
        pairs: Which elements form a pair: ``neox`` pairs i with i + rotary_dim/2; ``interleaved`` (GPT-J) pairs 2i with
            2i + 1; ``2d`` rotates each half of rotary_dim as ``neox``, the second half by a position of its own.
        frequencies: Radians per position of each pair: rotary_dim/2 values, for ``2d`` rotary_dim/4.
        max_stable_length: Longest sequence for which these frequencies are valid; None = any.
        log_base: Queries at position p, counted from 1, beyond this one are multiplied by log(p) / log(log_base); None = no
            scaling.
        attention_factor: Factor of cosines and sines (YaRN, LongRoPE).
    """

    rotary_dim: int
    pairs: str = "neox"
    frequencies: tuple[float, ...]
    max_stable_length: int | None = None
    log_base: int | None = None
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Routing of a mixture of experts: softmax over all experts, then the top ``top_k``, renormalized to sum to 1 or not."""

    count: int
    top_k: int
    renormalize: bool


@dataclass(frozen=True, kw_only=True)
class PrefixLM:
    """Tokens that delimit a prefix with bidirectional attention, which the answer follows (GLM).

    Attributes:
        end: The first token after the prefix.
        mask_ids: Ids of mask tokens. The answer fills the position of the first of these that the prefix holds.
    """

    end: int
    mask_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A decoder as the fused engine computes it: pre-norm unless a field says otherwise.

    Attributes:
        outer: Slot -> tensor name, of tensors outside the layers (``slots.OUTER_SLOTS``).
        layers: For each layer, slot -> tensor names, ordered by expert, then by index within the slot.
        hidden: Hidden size.
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Elements of a head.
        ffn: Intermediate size of the feed-forward layer, of one expert.
        vocab: Rows of the embedding.
        embed: Width of token embeddings; differs from ``hidden`` where they are projected.
        qkv: Layout of a fused QKV projection's outputs: ``parts``, all queries, then all keys, then all values; ``heads``,
            query, key and value of each head together.
        norm: One of ``slots.NORMS``.
        norm_eps: Added to the variance.
        activation: One of ``slots.ACTIVATIONS``.
        rope: Rotary position embedding; None = no RoPE.
        slopes: ALiBi slope of each head; empty = no ALiBi.
        position_offset: Row of the table ``positions`` for position 0.
        window: Sliding window in tokens, the query's own included; None = attention to all tokens before.
        score_scales: Factor of the attention scores in each layer.
        norm_after: Post-norm: norms come after the residual is added.
        residual_after_norm: The residual is the norm's output, not its input.
        residual_scale: Factor of the residual (DeepNorm's alpha).
        experts: Routing; None = one feed-forward layer.
        unit_head: Columns of the output head are normalized to length 1.
        prefix_lm: Prefixes with bidirectional attention; None = causal.
        max_positions: Longest sequence; None = any.
    """

    outer: Mapping[str, str]
    layers: tuple[Mapping[str, tuple[str, ...]], ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    embed: int
    qkv: str = "parts"
    norm: str
    norm_eps: float
    activation: str
    rope: Rope | None = None
    slopes: tuple[float, ...] = ()
    position_offset: int = 0
    window: int | None = None
    score_scales: tuple[float, ...] = field(default=())
    norm_after: bool = False
    residual_after_norm: bool = False
    residual_scale: float = 1.0
    experts: Experts | None = None
    unit_head: bool = False
    prefix_lm: PrefixLM | None = None
    max_positions: int | None = None
