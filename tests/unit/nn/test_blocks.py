"""Edge cases of the blocks: frozen inputs, no gradient, rows of padding, one new token, split heads, a full cache."""

import numpy as np
import paddle
import pytest

from llmctl.nn.attention import Attention, attend
from llmctl.nn.cache import KVCache
from llmctl.nn.decoder import Decoder, embedding
from llmctl.nn.linear import Linear
from llmctl.nn.mask import Layout
from llmctl.nn.mlp import MLP, gelu_tanh
from llmctl.nn.norm import RMSNorm, rms_norm
from llmctl.nn.rotary import Rotary, positions


@pytest.fixture(autouse=True)
def float64():
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    paddle.seed(0)
    yield
    paddle.set_default_dtype(before)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array, trainable=True):
    return paddle.to_tensor(array, stop_gradient=not trainable)


def numpy_rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def numpy_attention(q, k, v, allowed):
    """Loops over rows, heads and queries; ``allowed[b, t, s]``. Queries that may look nowhere give the mean of values."""
    batch, new, heads, width = q.shape
    out = np.zeros((batch, new, heads, width))
    for b, t, n in np.ndindex(batch, new, heads):
        group = n // (heads // k.shape[2])
        keys = np.flatnonzero(allowed[b, t])
        if keys.size == 0:
            out[b, t, n] = v[b, :, group].mean(0)
            continue
        scores = k[b, keys, group] @ q[b, t, n] / np.sqrt(width)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, group]
    return out.reshape(batch, new, heads * width)


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_rms_norm_lets_either_input_be_frozen(trained):
    x, weight = tensor(random(2, 6), trained == "x"), tensor(random(6, seed=1), trained == "weight")
    both = tensor(random(2, 6)), tensor(random(6, seed=1))
    rms_norm(x, weight, 1e-5).square().sum().backward()
    rms_norm(*both, 1e-5).square().sum().backward()
    moved, reference = (x, both[0]) if trained == "x" else (weight, both[1])
    np.testing.assert_allclose(moved.grad.numpy(), reference.grad.numpy(), rtol=1e-13)
    assert (weight if trained == "x" else x).grad is None


def test_rms_norm_works_where_no_gradient_is_recorded():
    layer, x = RMSNorm(8, 1e-6), random(2, 8)
    with paddle.no_grad():
        got = layer(tensor(x))
    assert got.stop_gradient
    np.testing.assert_allclose(got.numpy(), numpy_rms_norm(x, 1.0, 1e-6), rtol=1e-13)


def test_linear_has_weights_in_out_and_an_optional_bias():
    with_bias, without = Linear(3, 5, bias=True), Linear(3, 5)
    assert {n: p.shape for n, p in with_bias.named_parameters()} == {"weight": [3, 5], "bias": [5]}
    assert [n for n, _ in without.named_parameters()] == ["weight"]
    x = random(2, 3)
    np.testing.assert_allclose(without(tensor(x)).numpy(), x @ without.weight.numpy(), rtol=1e-13)


def test_initial_weights_depend_only_on_the_seed():
    def draw(seed):
        paddle.seed(seed)
        return Linear(64, 64, std=0.1).weight.numpy()

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    assert draw(1).std() == pytest.approx(0.1, rel=0.05)


def test_attention_of_one_new_token_sees_all_past_ones():
    q, k, v = random(2, 1, 4, 6), random(2, 5, 2, 6, seed=1), random(2, 5, 2, 6, seed=2)
    assert Layout(1, 4).mask() is None
    got = attend(tensor(q), tensor(k), tensor(v), None)
    np.testing.assert_allclose(got.numpy(), numpy_attention(q, k, v, np.ones((2, 1, 5))), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_padding_alone_give_finite_values_and_gradients(dtype):
    q, k, v = (tensor(random(1, 3, 2, 4, seed=s).astype(dtype) * 50) for s in range(3))
    out = attend(q, k, v, Layout(3, 0, paddle.to_tensor([[0, 0, 0]])).mask())
    out.sum().backward()
    assert all(np.isfinite(t.numpy()).all() for t in (out, q.grad, k.grad, v.grad))


def test_a_mask_that_does_not_cover_past_and_new_positions_is_an_error():
    with pytest.raises(ValueError, match="3 columns for 2 past and 2 new"):
        Layout(2, 2, paddle.ones([1, 3]))


def test_attention_takes_head_counts_from_its_projections():
    whole, part = Attention(8, 4, 2, 4, std=0.5), Attention(8, 4, 2, 4, std=0.5)
    x, angles = tensor(random(1, 3, 8)), Rotary(4, 10000.0)(positions(3, 0), "float64")
    bias, total = Layout(3).mask(), 0
    for half in range(2):  # heads 0-1 with key-value head 0, then 2-3 with 1: what two ranks would hold
        for name, width in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4)):
            weight = getattr(whole, name).weight[:, half * width : (half + 1) * width]
            getattr(part, name).weight = paddle.create_parameter(weight.shape, "float64")
            getattr(part, name).weight.set_value(weight)
        rows = whole.o_proj.weight[half * 8 : half * 8 + 8]
        part.o_proj.weight = paddle.create_parameter(rows.shape, "float64")
        part.o_proj.weight.set_value(rows)
        total = total + part(x, angles, bias)
    np.testing.assert_allclose(total.numpy(), whole(x, angles, bias).numpy(), rtol=1e-12)


def test_a_full_cache_is_an_error_that_says_how_much_was_needed():
    cache, new = KVCache(2), tensor(random(1, 3, 1, 2))
    with pytest.raises(ValueError, match="room for 2 positions, 3 are needed"):
        cache.update(0, new, new)


def test_an_mlp_has_biases_or_none():
    x = random(2, 6)
    for bias in (True, False):
        mlp = MLP(6, 5, gelu_tanh, ("up", "down"), bias=bias)
        state = {name: random(*value.shape, seed=i) for i, (name, value) in enumerate(mlp.state_dict().items())}
        mlp.set_state_dict(state)
        assert set(state) == {"up.weight", "down.weight", *(("up.bias", "down.bias") if bias else ())}
        z = x @ state["up.weight"] + state.get("up.bias", 0)
        z = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        expected = z @ state["down.weight"] + state.get("down.bias", 0)
        np.testing.assert_allclose(mlp(tensor(x)).numpy(), expected, rtol=1e-12)


def test_a_decoder_drops_elements_of_token_vectors_in_training_only():
    decoder = Decoder(embedding(7, 400, 1.0), (), paddle.nn.Identity(), dropout=0.25)
    ids = paddle.to_tensor([[1, 2, 3]])
    plain = decoder.embedding_weight.numpy()[[1, 2, 3]]
    decoder.eval()
    np.testing.assert_array_equal(decoder(ids, Layout(3, 0)).numpy()[0], plain)
    decoder.train()
    dropped = decoder(ids, Layout(3, 0)).numpy()[0]
    left = dropped != 0
    assert 0.2 < 1 - left.mean() < 0.3
    np.testing.assert_allclose(dropped[left], (plain / 0.75)[left], rtol=1e-12)


def test_parts_of_a_decoder_may_lie_in_folders_and_angles_and_mask_may_depend_on_tokens():
    seen = []

    def view(ids_BT, layout, cache, dtype):
        seen.append((ids_BT.numpy().tolist(), layout.new, cache, dtype))
        return None, layout.mask()

    names = ("in.table", "stack.blocks", "stack.norm")
    decoder = Decoder(embedding(8, 4, 1.0), [], RMSNorm(4, 1e-6), names=names, attention_inputs=view)
    assert list(decoder.state_dict()) == ["in.table.weight", "stack.norm.weight"]
    out = decoder(paddle.to_tensor([[3, 1]]), Layout(2))
    table = decoder.embedding_weight.numpy()
    np.testing.assert_allclose(out.numpy()[0], numpy_rms_norm(table[[3, 1]], 1.0, 1e-6), rtol=1e-12)
    assert seen == [([[3, 1]], 2, None, paddle.float64)]
