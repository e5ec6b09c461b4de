"""Blocks of ``llmctl.nn`` in float64 against formulas written out in numpy, and gradients against differences."""

import math

import numpy as np
import paddle
import pytest

from llmctl.card.rope import ROPE_BY_WAVELENGTH, ROPE_RULES
from llmctl.errors import ConfigError
from llmctl.nn.attention import Attention, attend
from llmctl.nn.cache import KVCache
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Layout
from llmctl.nn.mlp import GatedMLP
from llmctl.nn.norm import RMSNorm, rms_norm
from llmctl.nn.replace import replace_layers
from llmctl.nn.rotary import Rotary, apply_rope, positions

RNG = np.random.default_rng(0)


def tensor(*shape, grad=False):
    return paddle.to_tensor(RNG.normal(size=shape), stop_gradient=not grad)


def numeric(function, x, step=1e-6):
    """Central differences of a scalar function of an array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = (function(high) - function(low)) / (2 * step)
    return gradient


def test_rms_norm_equals_its_formula():
    x, w = tensor(3, 4, 6), tensor(6)
    expected = x.numpy() / np.sqrt((x.numpy() ** 2).mean(-1, keepdims=True) + 1e-5) * w.numpy()
    np.testing.assert_allclose(rms_norm(x, w, 1e-5).numpy(), expected, rtol=1e-12)


def test_rms_norm_gradients_equal_differences():
    x, w, mix = tensor(2, 3, 5, grad=True), tensor(5, grad=True), tensor(2, 3, 5)
    (rms_norm(x, w, 1e-3) * mix).sum().backward()

    def loss(x, w):
        return float((rms_norm(paddle.to_tensor(x), paddle.to_tensor(w), 1e-3) * mix).sum())

    np.testing.assert_allclose(x.grad.numpy(), numeric(lambda v: loss(v, w.numpy()), x.numpy()), atol=1e-8)
    np.testing.assert_allclose(w.grad.numpy(), numeric(lambda v: loss(x.numpy(), v), w.numpy()), atol=1e-8)


def test_rms_norm_without_gradients_of_the_weight():
    norm = RMSNorm(5, 1e-6)
    norm.weight.stop_gradient = True
    x = paddle.to_tensor(RNG.normal(size=(2, 5)).astype("float32"), stop_gradient=False)
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None


def turned(x, position, frequencies):
    """Each pair (i, i + half) as a complex number, turned by its angle."""
    half = x.shape[-1] // 2
    pair = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * position * np.asarray(frequencies))
    return np.concatenate([pair.real, pair.imag], -1)


@pytest.mark.parametrize(
    ("scaling", "length", "expected"),
    [
        (None, 9, lambda i: 500.0 ** (-2 * i / 8)),
        ({"rope_type": "linear", "factor": 4.0}, 9, lambda i: 500.0 ** (-2 * i / 8) / 4),
        ({"type": "dynamic", "factor": 2.0}, 9, lambda i: 500.0 ** (-2 * i / 8)),
        ({"type": "dynamic", "factor": 2.0}, 40, lambda i: (500.0 * (2.0 * 40 / 16 - 1) ** (8 / 6)) ** (-2 * i / 8)),
    ],
)
def test_rotary_turns_pairs_as_complex_numbers(scaling, length, expected):
    rotary = Rotary(8, 500.0, scaling, max_positions=16)
    x = tensor(1, length, 2, 8)
    angles = rotary(paddle.arange(length).unsqueeze(0), "float64")
    y = apply_rope(x, *angles).numpy()
    frequencies = [expected(i) for i in range(4)]
    for t in range(length):
        np.testing.assert_allclose(y[0, t], turned(x.numpy()[0, t], t, frequencies), atol=1e-9)


def test_scaling_by_bands_keeps_short_waves_and_stretches_long_ones():
    scaling = {"rope_type": "bands", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    rotary = Rotary(32, 10000.0, scaling, rules={**ROPE_RULES, "bands": ROPE_BY_WAVELENGTH})
    for i, found in enumerate(rotary.frequencies()):
        unscaled = 10000.0 ** (-2 * i / 32)
        wave = 2 * math.pi / unscaled
        if wave < 64 / 4:
            assert found == pytest.approx(unscaled)
        elif wave > 64:
            assert found == pytest.approx(unscaled / 8)
        else:
            share = (64 / wave - 1) / 3
            assert found == pytest.approx((1 - share) * unscaled / 8 + share * unscaled)


@pytest.mark.parametrize("scaling", [{"rope_type": "yarn"}, {"rope_type": "linear"}, {"type": "linear", "factor": -1}])
def test_unknown_or_incomplete_scaling_is_refused(scaling):
    with pytest.raises(ConfigError, match="rope_scaling"):
        Rotary(8, 10000.0, scaling)


def plain_attention(q, k, v, mask):
    """One query and head at a time."""
    batch, length, heads, width = q.shape
    group = heads // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(batch, length, heads):
        seen = [s for s in range(t + 1) if mask[b, s]]
        if seen:
            scores = np.array([q[b, t, n] @ k[b, s, n // group] for s in seen]) / math.sqrt(width)
            weights = np.exp(scores - scores.max())
            out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
    return out.reshape(batch, length, -1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_attention_equals_a_plain_loop(kv_heads, padding):
    q, k, v = tensor(2, 5, 4, 6), tensor(2, 5, kv_heads, 6), tensor(2, 5, kv_heads, 6)
    mask = np.ones((2, 5), int)
    if padding != "none":
        mask[0, :2] = 0
        mask[0] = mask[0] if padding == "left" else mask[0, ::-1]
    seen = Layout(5, 0, None if padding == "none" else paddle.to_tensor(mask)).mask()
    found = attend(q, k, v, seen).numpy()
    expected = plain_attention(q.numpy(), k.numpy(), v.numpy(), mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-12)
    assert np.isfinite(found).all()


def test_attention_gradients_equal_differences():
    q, k, v, mix = (tensor(1, 3, 2, 4, grad=True) for _ in range(4))
    bias = Layout(3).mask()
    (attend(q, k, v, bias) * mix.detach().reshape([1, 3, 8])).sum().backward()
    arrays = [q.numpy(), k.numpy(), v.numpy()]
    for index, one in enumerate((q, k, v)):

        def loss(value, index=index):
            given = [paddle.to_tensor(value if i == index else array) for i, array in enumerate(arrays)]
            return float((attend(*given, bias) * mix.detach().reshape([1, 3, 8])).sum())

        np.testing.assert_allclose(one.grad.numpy(), numeric(loss, arrays[index]), atol=1e-8)


def test_cached_attention_equals_the_whole_at_once():
    paddle.seed(0)
    rotary = Rotary(4, 100.0)
    layer = Attention(16, 4, 2, 4).to(dtype="float64")
    x = tensor(2, 6, 16)

    def run(part, past, cache):
        new = part.shape[1]
        angles = rotary(positions(new, past), "float64")
        out = layer(part, angles, Layout(new, past).mask(), cache, 0)
        if cache:
            cache.advance(new)
        return out.numpy()

    whole = run(x, 0, None)
    cache = KVCache(6)
    steps = [run(x[:, :3], 0, cache), run(x[:, 3:4], 3, cache), run(x[:, 4:], 4, cache)]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, atol=1e-12)
    with pytest.raises(ValueError, match="room for 6 positions, 7 are needed"):
        run(x[:, :1], 6, cache)


def test_cache_rows_can_be_kept_and_repeated():
    cache = KVCache(3)
    k = tensor(3, 2, 1, 4)
    cache.update(0, k, k)
    cache.advance(2)
    cache.select([2, 0, 2])
    keys, _ = cache.update(0, k[:, :1], k[:, :1])
    np.testing.assert_array_equal(keys.numpy()[:, :2], k.numpy()[[2, 0, 2]])
    np.testing.assert_array_equal(keys.numpy()[:, 2:], k.numpy()[:, :1])


def test_positions_count_real_tokens_only():
    mask = paddle.to_tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions(4, 0, mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert positions(1, 3, mask).tolist() == [[1], [3]]
    assert positions(2, 3).tolist() == [[3, 4]]


def test_gated_mlp_equals_its_formula():
    layer = GatedMLP(4, 6, bias=True).to(dtype="float64")
    x = tensor(3, 4)
    part = {name: (value.weight.numpy(), value.bias.numpy()) for name, value in layer.named_children()}
    gate, up = (x.numpy() @ part[name][0] + part[name][1] for name in ("gate_proj", "up_proj"))
    expected = (gate / (1 + np.exp(-gate)) * up) @ part["down_proj"][0] + part["down_proj"][1]
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-12)


def test_replacing_layers_by_name_is_all_or_nothing():
    layer = GatedMLP(4, 6)
    with pytest.raises(ValueError, match="no layer 'up_prj'; close: up_proj"):
        replace_layers(layer, ["gate_proj", "up_prj"], lambda name, old: Linear(4, 6))
    seen = []
    kept = layer.gate_proj
    replace_layers(layer, ["up_proj"], lambda name, old: seen.append((name, old)) or Linear(4, 6))
    assert seen[0][0] == "up_proj" and layer.up_proj is not seen[0][1] and layer.gate_proj is kept
