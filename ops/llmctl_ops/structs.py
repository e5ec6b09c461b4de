"""The structs that callers of the kernels fill, as ctypes: the mirror of csrc/cpu/structs.h and csrc/cpu/sampler_row.h, with the
same fields in the same order. ``library`` compares their sizes with the library's when it loads it.

Shape suffixes: T tokens of a step, R sequences, M blocks of a sequence, L tokens that get logits, V vocabulary.
"""

from __future__ import annotations

import ctypes

POINTER, SIZE, FLOAT, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32
DOUBLE = ctypes.c_double


class Struct(ctypes.Structure):
    """A struct to whose fields only can be assigned: a misspelt name is an error."""

    __slots__ = ()


class Linear(Struct):
    """A packed weight; no data = none. ``kind`` is an index into ``linear.KINDS``; scales and zeros of ``half`` are float16."""

    __slots__ = ()
    _fields_ = (
        *((name, POINTER) for name in ("data", "scales", "zeros", "bias", "order", "factors")),
        *((name, SIZE) for name in ("inputs", "outputs", "group")),
        *((name, FLAG) for name in ("kind", "half")),
    )


class Norm(Struct):
    """Weight and bias of a norm; no weight = no norm."""

    __slots__ = ()
    _fields_ = (("weight", POINTER), ("bias", POINTER))


class LoraDelta(Struct):
    """A LoRA delta: a [in, padded rank], b [rank, padded out], both padded with zeros to multiples of 16; no a = none."""

    __slots__ = ()
    _fields_ = (("a", POINTER), ("b", POINTER), ("rank", SIZE))


class Layer(Struct):
    """One layer. ``up`` and ``down`` point to a Linear per expert; LoRA deltas to one per adapter, for ``up`` and ``down``
    [experts, adapters]."""

    __slots__ = ()
    _fields_ = (
        ("norm", Norm),
        ("ffn_norm", Norm),
        ("qkv", Linear),
        ("out", Linear),
        *((name, POINTER) for name in ("up", "down", "router", "q_norm", "k_norm")),
        *((f"{name}_lora", POINTER) for name in ("qkv", "out", "up", "down")),
        ("score_scale", FLOAT),
    )


class Model(Struct):
    """A decoder. ``rotary_dim`` elements of a head are rotated; with ``rope_2d`` their second half has positions of its own.
    ``embed`` is a table of ``embed_kind``, an index into ``linear.KINDS``, or none if token vectors are outputs of ``embed_linear``.
    ``cache_kind`` is an index into ``decoder.CACHES``."""

    __slots__ = ()
    _fields_ = (
        *((name, POINTER) for name in ("layer", "embed", "positions", "alibi_slopes")),
        ("embed_norm", Norm),
        ("final_norm", Norm),
        *((name, Linear) for name in ("embed_linear", "project_in", "project_out", "head")),
        *((name, SIZE) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "embed_dim")),
        *((name, SIZE) for name in ("position_rows", "rotary_dim", "experts", "top_k", "adapters")),
        *((name, FLOAT) for name in ("eps", "residual_scale")),
        *((name, FLAG) for name in ("embed_kind", "layer_norm", "activation", "norm_after", "residual_after_norm")),
        *((name, FLAG) for name in ("rope_2d", "renormalize", "cache_kind")),
    )


class Step(Struct):
    """A step. int32 arrays: the first seven [T], then block_tables [R, M], adapter [R] (-1 = none), logits_indices [L].
    float32 tables cosine and sine [angle_rows, pairs], query_scale [angle_rows] or none; and the output, logits [L, V]."""

    __slots__ = ()
    _fields_ = (
        *((name, POINTER) for name in ("ids", "sequence", "kv_position", "position", "second_position")),
        *((name, POINTER) for name in ("attend_begin", "attend_end", "block_tables", "adapter", "logits_indices")),
        *((name, POINTER) for name in ("cosine", "sine", "query_scale", "logits")),
        *((name, SIZE) for name in ("tokens", "sequences", "max_blocks", "logits_count", "angle_rows")),
    )


class SamplerRow(Struct):
    """How the token of one row is chosen, as ``sampling.SamplerInput``, and the result: token, logprob, status."""

    __slots__ = ()
    _fields_ = (
        *((name, POINTER) for name in ("context", "excluded")),
        *((name, SIZE) for name in ("context_count", "generated", "excluded_count", "top_k")),
        *((name, DOUBLE) for name in ("repetition", "presence", "frequency", "temperature", "top_p")),
        *((name, DOUBLE) for name in ("min_p", "draw", "logprob")),
        *((name, FLAG) for name in ("sample", "token", "status")),
    )


STRUCTS: tuple[type[Struct], ...] = (Linear, Norm, LoraDelta, Layer, Model, Step, SamplerRow)
