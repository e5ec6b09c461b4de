"""Attention that rotates a part of each head, against recordings of transformers; a family needs no forward of its own."""

from pathlib import Path

import numpy as np
import paddle
import pytest

from llmctl.nn import Attention, Rotary, apply_partial_rope, apply_partial_rope_interleaved, positions
from llmctl.nn.mask import Layout

GOLDEN = np.load(Path(__file__).resolve().parents[2] / "goldens" / "rope" / "partial.npz")


@pytest.mark.parametrize(("name", "rope"), [("stablelm", apply_partial_rope), ("glm4", apply_partial_rope_interleaved)])
def test_a_part_of_each_head_is_rotated_as_in_the_original(name, rope):
    width = int(GOLDEN[f"{name}.width"])
    assert width < 8
    paddle.set_default_dtype("float64")
    try:
        attention = Attention(16, 2, 1, 8, bias=f"{name}.q_proj.bias" in GOLDEN, out_bias=False, rope=rope)
    finally:
        paddle.set_default_dtype("float32")
    for key, parameter in attention.state_dict().items():
        values = GOLDEN[f"{name}.{key}"]
        parameter.set_value(values.T if values.ndim == 2 else values)
    x = paddle.to_tensor(GOLDEN[f"{name}.x"])
    cos_sin = Rotary(width, 100.0)(positions(6, 0), "float64")
    y = attention(x, cos_sin, Layout(6).mask())
    np.testing.assert_allclose(y.numpy(), GOLDEN[f"{name}.y"], rtol=1e-6, atol=1e-6)


def test_whole_heads_are_not_a_part():
    q = paddle.ones([1, 2, 1, 8])
    with pytest.raises(ValueError, match="partial RoPE of 8 elements needs wider heads than 8; use apply_rope_qk"):
        apply_partial_rope(q, q, Rotary(8, 100.0)(positions(2, 0), "float32"))
