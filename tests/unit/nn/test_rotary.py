"""Rotary positions: scaling rules against its formula, the gradient of the rotation, position ids."""

import numpy as np
import paddle
import pytest

from llmctl.card.rope import ROPE_BY_WAVELENGTH, ROPE_RULES, rope_rule
from llmctl.errors import ConfigError
from llmctl.nn.rotary import Rotary, apply_rope, positions

WITH_BANDS = {**ROPE_RULES, "bands": ROPE_BY_WAVELENGTH}
PLAIN = 5000.0 ** (-np.arange(0, 16, 2) / 16)


def frequencies(scaling, length=0):
    return np.array(Rotary(16, 5000.0, scaling, 32, WITH_BANDS).frequencies(length))


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_linear_scaling_divides_frequencies_under_either_spelling(key):
    np.testing.assert_allclose(frequencies({key: "linear", "factor": 4.0}), PLAIN / 4, rtol=1e-14)


@pytest.mark.parametrize(("length", "growth"), [(1, 1), (32, 1), (33, 2 * 33 / 32 - 1), (96, 5)])
def test_dynamic_scaling_raises_the_base_only_past_the_trained_length(length, growth):
    expected = (5000.0 * growth ** (16 / 14)) ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(frequencies({"type": "dynamic", "factor": 2.0}, length), expected, rtol=1e-13)


def test_an_unknown_rule_is_an_error_that_names_the_allowed_ones():
    with pytest.raises(
        ConfigError, match="'ntk' is not supported; supported: default, linear, dynamic, yarn, longrope"
    ):
        Rotary(16, 5000.0, {"rope_type": "ntk", "factor": 4.0})


@pytest.mark.parametrize("factor", [None, 0, -1.0, "4", True])
def test_a_rule_without_a_usable_factor_is_an_error(factor):
    with pytest.raises(ConfigError, match="factor=.* must be a number above 0"):
        rope_rule({"rope_type": "linear", "factor": factor})


def test_only_dynamic_scaling_and_longrope_depend_on_the_length():
    assert {name for name, rule in WITH_BANDS.items() if rule.by_length} == {"dynamic", "longrope"}


def test_the_gradient_of_a_rotation_is_the_rotation_back():
    draw = np.random.default_rng(0).standard_normal
    x = paddle.to_tensor(draw((1, 4, 2, 8)), stop_gradient=False)
    cos, sin = Rotary(8, 10000.0)(positions(4, 3), "float64")
    upstream = paddle.to_tensor(draw((1, 4, 2, 8)))
    (apply_rope(x, cos, sin) * upstream).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), apply_rope(upstream, cos, -sin).numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("given", "computed"), [("float32", "float32"), ("float64", "float64")])
def test_angles_have_the_type_of_the_model(given, computed):
    cos, sin = Rotary(8, 10000.0)(positions(3, 0), given)
    assert str(cos.dtype) == str(sin.dtype) == f"paddle.{computed}"
    assert cos.shape == [1, 3, 1, 8]


def test_positions_count_real_tokens_whichever_side_is_padded():
    mask = paddle.to_tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    assert positions(5, 0, mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]
    assert positions(2, 3, mask).tolist() == [[1, 2], [2, 2], [0, 0]]
    assert positions(2, 3).tolist() == [[3, 4]]
