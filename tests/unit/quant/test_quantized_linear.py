"""Weights in codes: the code book, the error, bytes, and a layer whose gradients pass to its input."""

from statistics import NormalDist

import numpy as np
import paddle
import pytest

from llmctl.nn.linear import Linear
from llmctl.quant.blockwise import CODES, GROUP, NF4, quantize, round_trip
from llmctl.quant.linear import QuantizedLinear, weight_bytes
from llmctl.quant.packed import unpack

STEP = {"int8": 1 / 127, "int4": 1 / 7, "nf4": max(b - a for a, b in zip(NF4, NF4[1:], strict=False))}
"""Widest distance of two levels, in units of the scale."""


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def twin(weight, code):
    """Each weight by itself: the nearest of all levels times the largest value of its group."""
    levels = {"int8": np.arange(-127, 128) / 127, "int4": np.arange(-7, 8) / 7, "nf4": np.array(NF4)}[code]
    out = np.empty_like(weight)
    for column in range(weight.shape[1]):
        for start in range(0, len(weight), GROUP):
            group = weight[start : start + GROUP, column]
            scale = np.abs(group).max()
            nearest = np.abs(group[:, None] - scale * levels[None]).argmin(axis=1)
            out[start : start + GROUP, column] = scale * levels[nearest]
    return out


def test_the_code_book_is_made_of_quantiles_of_a_normal_distribution():
    """The paper's construction: seven quantiles below zero and eight above, evenly spaced in probability."""
    quantile, edge = NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(edge, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(edge, 0.5, 8)[:-1]]
    levels = np.array(sorted([*below, 0.0, *above]))
    np.testing.assert_allclose(levels / np.abs(levels).max(), NF4, atol=1e-6)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("inputs", [1, 63, 64, 150])
def test_codes_are_the_nearest_levels(rng, code, inputs):
    weight = rng.normal(size=(inputs, 5)).astype(np.float32)
    weight[:, 2] = 0
    np.testing.assert_allclose(round_trip(weight, code), twin(weight, code), atol=1e-6)
    bound = np.abs(weight).max(axis=0) * (STEP[code] / 2 + 1e-6)
    assert (np.abs(round_trip(weight, code) - weight) <= bound).all()


def test_the_error_shrinks_from_int4_to_nf4_to_int8(rng):
    weight = rng.normal(size=(256, 128)).astype(np.float32)
    error = {code: np.linalg.norm(round_trip(weight, code) - weight) / np.linalg.norm(weight) for code in CODES}
    assert error["int8"] < 0.01 < error["nf4"] < error["int4"] < 0.13, error


def test_quantizing_twice_changes_nothing(rng):
    for code in CODES:
        once = round_trip(rng.normal(size=(70, 6)).astype(np.float32), code)
        np.testing.assert_allclose(round_trip(once, code), once, rtol=1e-6)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_and_its_gradient_are_those_of_the_dequantized_weight(rng, code, dtype, bias):
    paddle.set_default_dtype(dtype)
    try:
        linear = Linear(100, 6, bias, 1.0)
    finally:
        paddle.set_default_dtype("float32")
    packed = quantize(linear.weight.numpy(), code)
    weight, layer = unpack(packed), QuantizedLinear(linear, packed)
    np.testing.assert_allclose(layer.weight.numpy(), weight, rtol=1e-6)
    x = paddle.to_tensor(rng.normal(size=(3, 4, 100)).astype(dtype), stop_gradient=False)
    upstream = rng.normal(size=(3, 4, 6)).astype(dtype)
    y = layer(x)
    expected = x.numpy() @ weight.astype(dtype) + (linear.bias.numpy() if bias else 0)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-4)
    (y * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), upstream @ weight.T.astype(dtype), atol=1e-4)
    assert all(p.stop_gradient for p in layer.parameters())


@pytest.mark.parametrize(("code", "bits"), [("int8", 8.5), ("int4", 4.5), ("nf4", 4.5)])
def test_a_weight_takes_the_bits_of_its_code_and_half_a_bit_for_scales(code, bits):
    linear = Linear(512, 256)
    assert weight_bytes(QuantizedLinear(linear, quantize(linear.weight.numpy(), code))) * 8 == 512 * 256 * bits
    assert weight_bytes(linear) == 512 * 256 * 4


def test_no_floating_copy_of_the_weight_is_kept_for_the_backward_pass(rng):
    linear = Linear(512, 1024)
    layer = QuantizedLinear(linear, quantize(linear.weight.numpy(), "nf4"))
    x = paddle.to_tensor(rng.normal(size=(2, 512)).astype("float32"), stop_gradient=False)

    def kept(run):
        """Bytes that are still there while the graph waits."""
        before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
        graph = run()
        after = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
        return after - before, graph

    assert kept(lambda: layer(x))[0] < 100_000
    assert kept(lambda: paddle.matmul(x * 1, layer.weight * 1))[0] >= 512 * 1024 * 4, "the measure sees a copy"
