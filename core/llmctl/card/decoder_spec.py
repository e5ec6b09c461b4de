"""The standard decoder as data: what the fused engine computes for a model, and from which tensors.

A card's slots say where its tensors go; what slots cannot say (rotation, penalties, what is carried past a block) are the
fields here. Filled by the hook ``fused_graph``; packed by ``infer/packing.py``; computed by the executors in ``infer``.
No paddle or numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How queries and keys are turned.

    Attributes:
        width: Elements of a head that are turned, from its first on.
        pairs: ``halves`` pairs element i with i + width/2; ``neighbours`` pairs 2i with 2i + 1; ``two-halves`` turns each
            half of the width as ``halves`` does, the second by positions of its own.
        frequencies: Radians per position of each pair: width/2 of them, for ``two-halves`` width/4.
        stable_length: Longest sequence that these frequencies hold for; None = any.
        log_base: Queries at a place p, counted from 1, beyond this are multiplied by log(p) / log(log_base); None = none.
    """

    width: int
    pairs: str = "halves"
    frequencies: tuple[float, ...]
    stable_length: int | None = None
    log_base: int | None = None


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts: softmax over all, the best ``top_k``, renormalised to sum 1 or not."""

    count: int
    top_k: int
    renormalize: bool


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Tokens that mark a context that is read in both directions: it ends before ``end``, and answers stand for ``marks``.

    Attributes:
        end: The token after the context.
        marks: The first of these that the context holds is what the answer stands for.
    """

    end: int
    marks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FusedDecoder:
    """The standard decoder, filled.

    Attributes:
        outer: Slot -> tensor name, of tensors outside the layers (``standard.OUTER_SLOTS``).
        layers: For each layer, slot -> tensor names in the order of parts and experts.
        hidden: Width of what passes from layer to layer.
        heads: Query heads.
        kv_heads: Key-value heads.
        head_dim: Width of a head.
        ffn: Width inside the feed-forward layer, of one expert.
        vocab: Rows of the embedding.
        embed: Width of token vectors; differs from ``hidden`` where they are projected.
        qkv: How a packed projection's outputs lie: ``parts``, one after another, or ``heads``, side by side per head.
        norm: ``standard.NORMS``.
        norm_eps: Added to the variance.
        activation: ``standard.ACTIVATIONS``.
        rope: How queries and keys are turned; None = they are not.
        slopes: Penalty of each head per place of a key (ALiBi); empty = none.
        position_offset: Row of the table ``positions`` that place 0 takes.
        window: A query sees so many keys, its own included; None = all before it.
        score_scales: Factor of the scores in each layer.
        norm_after: Norms come after the residual is added, not before the part.
        carry_normed: What is carried past a part is the norm's output, not its input.
        carry_scale: Factor of what is carried.
        experts: Routing; None = one feed-forward layer.
        unit_head: The head's columns are taken at length 1.
        contexts: Contexts read in both directions; None = all is causal.
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
    carry_normed: bool = False
    carry_scale: float = 1.0
    experts: Experts | None = None
    unit_head: bool = False
    contexts: Contexts | None = None
    max_positions: int | None = None
