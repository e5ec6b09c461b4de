"""Rotary position embedding (RoPE), and position ids from a padding mask.

The frequencies of each kind of ``rope_scaling`` are in ``card/rope.py``. Shape suffixes as in the package's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import paddle

from llmctl.card.rope import ROPE_RULES, RopeParams, RopeRule, rope_rule
from llmctl.nn import kernels

CosSin = tuple[paddle.Tensor, paddle.Tensor]
"""Cosines and sines of the rotation angles, each [B, T, 1, H]."""

ApplyRope = Callable[[paddle.Tensor, paddle.Tensor, Any], tuple[paddle.Tensor, paddle.Tensor]]
"""(q_BTNH, k_BTKH, cos_sin) -> rotated q and k: how attention applies RoPE."""


class Rotary:
    """Position ids to cosines and sines. It holds no tensors, so nothing enters a state dict.

    Args:
        head_dim: Elements of a head that are rotated; even.
        theta: Base of the frequencies.
        scaling: HF's ``rope_scaling``; None = unscaled.
        max_positions: ``max_position_embeddings``: trained context length, in tokens, unless ``scaling`` has it.
        rules: Scaling rules by ``rope_type``.

    Raises:
        ConfigError: ``scaling`` names an unknown rule or lacks a key.

    Attributes:
        by_length: Whether the frequencies depend on the length of the sequence.
        max_stable_length: Longest sequence for which the frequencies are those of the trained length.
        attention_factor: Factor of cosines and sines (YaRN, LongRoPE).
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        scaling: Mapping[str, Any] | None = None,
        max_positions: int = 0,
        rules: Mapping[str, RopeRule] = ROPE_RULES,
    ) -> None:
        self._params = RopeParams(head_dim, theta, max_positions)
        self._scaling = dict(scaling or {})
        self._rule = rope_rule(scaling, rules)
        self.by_length = self._rule.by_length
        self.max_stable_length = self._rule.stable_length(self._params, self._scaling)
        self.attention_factor = self._rule.factor(self._params, self._scaling)

    def frequencies(self, length: int = 0) -> list[float]:
        """Radians per position of each pair, for sequences of ``length`` tokens."""
        return self._rule.apply(replace(self._params, length=length), self._scaling)

    def __call__(self, position_BT: paddle.Tensor, dtype: str) -> tuple[paddle.Tensor, paddle.Tensor]:
        """cos_BT1H and sin_BT1H times the attention factor, computed in float32, or in float64 if ``dtype`` is."""
        precision = "float64" if dtype in ("float64", paddle.float64) else "float32"
        # A program holds the frequencies of the trained length.
        length = int(position_BT.max()) + 1 if self.by_length and paddle.in_dynamic_mode() else 0
        frequency_H = paddle.to_tensor(self.frequencies(length), dtype=precision)
        angle_BTH = position_BT.astype(precision).unsqueeze(-1) * frequency_H
        angle_BT1H = paddle.concat([angle_BTH, angle_BTH], axis=-1).unsqueeze(2)
        cos, sin = angle_BT1H.cos(), angle_BT1H.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos.astype(dtype), sin.astype(dtype)


def apply_rope(x_BTNH: paddle.Tensor, cos_BT1H: paddle.Tensor, sin_BT1H: paddle.Tensor) -> paddle.Tensor:
    """x rotated by the angles; element i is paired with element i + head_dim/2 (GPT-NeoX)."""
    fused = kernels.compiled("rope", x_BTNH, cos_BT1H)
    if fused is not None:
        return fused(x_BTNH, cos_BT1H, sin_BT1H)
    # Broadcasting over an inner axis and joining halves are many times slower on the CPU than tensors of one shape and a
    # product with a small matrix, which is exact as its entries are 0, 1 and -1.
    shape = x_BTNH.shape
    rotated_half_BTNH = paddle.matmul(x_BTNH, _rotate_half_matrix(shape[-1], x_BTNH.dtype))
    return x_BTNH * cos_BT1H.expand(shape) + rotated_half_BTNH * sin_BT1H.expand(shape)


def apply_rope_qk(q_BTNH: paddle.Tensor, k_BTKH: paddle.Tensor, cos_sin: CosSin) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Queries and keys with whole heads rotated, as ``apply_rope``."""
    return apply_rope(q_BTNH, *cos_sin), apply_rope(k_BTKH, *cos_sin)


def apply_partial_rope(
    q_BTNH: paddle.Tensor, k_BTKH: paddle.Tensor, cos_sin: CosSin
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Queries and keys with the first elements of each head rotated, as many as there are angles (StableLM, Phi, GPT-NeoX)."""

    def rotated(x_BTNH: paddle.Tensor) -> paddle.Tensor:
        first, rest = _split_rotated(x_BTNH, cos_sin)
        return paddle.concat([apply_rope(first, *cos_sin), rest], axis=-1)

    return rotated(q_BTNH), rotated(k_BTKH)


def apply_partial_rope_interleaved(
    q_BTNH: paddle.Tensor, k_BTKH: paddle.Tensor, cos_sin: CosSin
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """As ``apply_partial_rope``, in interleaved pairs 2i and 2i + 1 (GPT-J, GLM-4).

    The rotated elements come out de-interleaved, which does not change the scores.
    """

    def rotated(x_BTNH: paddle.Tensor) -> paddle.Tensor:
        first, rest = _split_rotated(x_BTNH, cos_sin)
        pairs = first.reshape([0, 0, 0, first.shape[-1] // 2, 2])
        separated = paddle.concat([pairs[..., 0], pairs[..., 1]], axis=-1)
        return paddle.concat([apply_rope(separated, *cos_sin), rest], axis=-1)

    return rotated(q_BTNH), rotated(k_BTKH)


def apply_rope_half_interleaved(
    q_BTNH: paddle.Tensor, k_BTKH: paddle.Tensor, cos_sin: CosSin
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """``apply_partial_rope_interleaved`` by its older name, for half of each head."""
    return apply_partial_rope_interleaved(q_BTNH, k_BTKH, cos_sin)


def _split_rotated(x_BTNH: paddle.Tensor, cos_sin: CosSin) -> list[paddle.Tensor]:
    """The elements of each head that are rotated, and the rest."""
    width = cos_sin[0].shape[-1]
    if width >= x_BTNH.shape[-1]:
        raise ValueError(
            f"partial RoPE of {width} elements needs wider heads than {x_BTNH.shape[-1]}; use apply_rope_qk"
        )
    return list(paddle.split(x_BTNH, [width, x_BTNH.shape[-1] - width], axis=-1))


def apply_rope_2d(
    q_BTNH: paddle.Tensor, k_BTKH: paddle.Tensor, cos_sin: tuple[CosSin, CosSin]
) -> tuple[paddle.Tensor, ...]:
    """Queries and keys with each half of every head rotated by a position of its own (GLM)."""
    halves = (paddle.split(x, 2, axis=-1) for x in (q_BTNH, k_BTKH))
    return tuple(
        paddle.concat([apply_rope(x, *angles) for x, angles in zip(pair, cos_sin, strict=True)], axis=-1)
        for pair in halves
    )


def _rotate_half_matrix(width: int, dtype: str) -> paddle.Tensor:
    """The matrix [width, width] that maps a row (low, high) to (-high, low)."""
    half = paddle.eye(width // 2, dtype=dtype)
    none = paddle.zeros_like(half)
    return paddle.concat([paddle.concat([none, half], axis=1), paddle.concat([-half, none], axis=1)], axis=0)


def positions(new: int, past: int, mask_BS: paddle.Tensor | None = None) -> paddle.Tensor:
    """Position ids of the last ``new`` tokens [B or 1, T]: real tokens count from 0, padding before them is 0."""
    if mask_BS is None:
        return paddle.arange(past, past + new, dtype="int64").unsqueeze(0)
    return (mask_BS.astype("int64").cumsum(axis=-1) - 1).clip(min=0)[:, past:]
