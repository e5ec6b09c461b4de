"""The blocks give the same with compiled operators as without, values and gradients."""

import numpy as np
import paddle
import pytest

from llmctl.nn import kernels
from llmctl.nn.linear import Linear
from llmctl.nn.loss import token_loss
from llmctl.nn.mlp import gelu_tanh, swiglu
from llmctl.nn.norm import LayerNorm, RMSNorm
from llmctl.nn.rotary import Rotary, apply_rope


def blocks():
    """Name -> a function of one tensor [2, 5, 3, 8], and the parameters it has."""
    angles = Rotary(8, 100.0)(paddle.arange(5).unsqueeze(0), "float32")
    linear, rms, norm = Linear(8, 6, bias=True), RMSNorm(8, 1e-5), LayerNorm(8)
    for parameter in (linear.bias, rms.weight, norm.weight, norm.bias):
        parameter.set_value(paddle.randn(parameter.shape))
    labels = paddle.to_tensor(np.arange(30) % 8)
    return {
        "bias": (linear, linear.parameters()),
        "rms norm": (rms, rms.parameters()),
        "layer norm": (norm, norm.parameters()),
        "gate": (lambda x: swiglu(x, x * 2), []),
        "packed gate": (swiglu, []),
        "gelu": (gelu_tanh, []),
        "rotary": (lambda x: apply_rope(x, *angles), []),
        "loss": (lambda x: token_loss(x.reshape([30, 8]), labels), []),
    }


@pytest.fixture(scope="module", autouse=True)
def compiled_operators():
    if kernels.compiled("rms_norm", paddle.zeros([1])) is None:
        pytest.skip("no compiled operators here")


@pytest.mark.parametrize("name", ["bias", "rms norm", "layer norm", "gate", "packed gate", "gelu", "rotary", "loss"])
def test_a_block_gives_the_same_with_compiled_operators_as_without(name, monkeypatch):
    paddle.seed(3)
    block, parameters = blocks()[name]
    used = []

    def watch(operator, *tensors):
        found = found_by(operator, *tensors)
        used.append(found)
        return found

    results, found_by = [], kernels.compiled
    for answer in (watch, lambda operator, *tensors: None):
        monkeypatch.setattr(kernels, "compiled", answer)
        x = paddle.to_tensor(np.random.default_rng(1).standard_normal((2, 5, 3, 8)), "float32", stop_gradient=False)
        out = block(x)
        (out * out).sum().backward()
        results.append([out.numpy(), x.grad.numpy(), *(parameter.grad.numpy() for parameter in parameters)])
        for parameter in parameters:
            parameter.clear_gradient(False)
    assert used and all(found is not None for found in used)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


def test_float64_and_traced_programs_have_no_compiled_operator():
    assert kernels.compiled("rms_norm", paddle.zeros([1], "float64")) is None
    assert kernels.compiled("no_such_operator", paddle.zeros([1])) is None
    norm = RMSNorm(8, 1e-5)
    x = paddle.randn([3, 8])
    with paddle.no_grad():
        traced = paddle.jit.to_static(norm.forward, full_graph=True)(x)
        np.testing.assert_allclose(traced.numpy(), norm(x).numpy(), rtol=1e-5, atol=1e-6)
