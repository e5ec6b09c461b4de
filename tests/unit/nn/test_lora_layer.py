"""The layer with an adapter against twins in numpy; PiSSA's beginning; noise on token vectors."""

import numpy as np
import paddle
import pytest
from paddle.base import core

from llmctl.adapters.adapter import LoraWeights, alpha_of, fuse, scale_of, split_fused
from llmctl.nn.linear import Linear
from llmctl.nn.lora import LoraLinear, pissa_init
from llmctl.nn.neftune import add_noise

IN, OUT, RANK = 7, 5, 3
STATISTIC = "Allocated", 0


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def linear(rng, bias):
    paddle.set_default_dtype("float64")
    try:
        layer = Linear(IN, OUT, bias)
    finally:
        paddle.set_default_dtype("float32")
    layer.weight.set_value(rng.normal(size=(IN, OUT)))
    if bias:
        layer.bias.set_value(rng.normal(size=OUT))
    return layer


def filled(rng, base, magnitude=False, **options):
    layer = LoraLinear(base, RANK, 0.5, magnitude=magnitude, **options)
    layer.set_weights(
        rng.normal(size=(IN, RANK)), rng.normal(size=(RANK, OUT)), rng.uniform(1, 2, OUT) if magnitude else None
    )
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("magnitude", [True, False])
def test_the_layer_is_the_linear_of_its_merged_weight(rng, bias, magnitude):
    base = linear(rng, bias)
    layer = filled(rng, base, magnitude)
    weight, a, b = base.weight.numpy(), layer.lora_A.numpy(), layer.lora_B.numpy()
    changed = weight + 0.5 * a @ b
    if magnitude:
        changed = changed / np.sqrt((changed**2).sum(axis=0)) * layer.lora_magnitude.numpy()
    x = rng.normal(size=(2, 4, IN))
    expected = x @ changed + (base.bias.numpy() if bias else 0)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=1e-12)
    part = LoraWeights(a, b, 0.5, layer.lora_magnitude.numpy() if magnitude else None)
    np.testing.assert_allclose(part.merged(weight), changed, atol=1e-12)


@pytest.mark.parametrize("magnitude", [True, False])
def test_a_fresh_layer_is_its_base(rng, magnitude):
    base = linear(rng, True)
    x = paddle.to_tensor(rng.normal(size=(4, IN)))
    layer = LoraLinear(base, RANK, 2.0, magnitude=magnitude)
    np.testing.assert_allclose(layer(x).numpy(), base(x).numpy(), atol=1e-14)
    assert np.abs(layer.lora_A.numpy()).max() <= IN**-0.5 and not layer.lora_B.numpy().any()
    assert {name for name, p in layer.named_parameters() if not p.stop_gradient} == (
        {"lora_A", "lora_B", "lora_magnitude"} if magnitude else {"lora_A", "lora_B"}
    )


def test_gradients_of_lengths_take_the_norm_as_constant(rng):
    base = linear(rng, False)
    layer = filled(rng, base, magnitude=True)
    x = rng.normal(size=(4, IN))
    a, b, m = (p.numpy() for p in (layer.lora_A, layer.lora_B, layer.lora_magnitude))
    norm = np.linalg.norm(base.weight.numpy() + 0.5 * a @ b, axis=0)
    upstream = rng.normal(size=(4, OUT))
    (layer(paddle.to_tensor(x)) * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(layer.lora_B.grad.numpy(), 0.5 * a.T @ x.T @ (upstream * m / norm), atol=1e-12)
    direction = (base.weight.numpy() + 0.5 * a @ b) / norm
    np.testing.assert_allclose(layer.lora_magnitude.grad.numpy(), (upstream * (x @ direction)).sum(axis=0), atol=1e-12)


def test_settled_lengths_are_those_of_the_present_matrices(rng):
    layer = filled(rng, linear(rng, True), magnitude=True)
    x = paddle.to_tensor(rng.normal(size=(4, IN)))
    layer.eval()
    fresh = layer(x).numpy()
    layer.cache_magnitude()
    np.testing.assert_array_equal(layer(x).numpy(), fresh)
    layer.set_weights(layer.lora_A.numpy() * 2, layer.lora_B.numpy(), layer.lora_magnitude.numpy())
    other = layer(x).numpy()
    part = LoraWeights(layer.lora_A.numpy(), layer.lora_B.numpy(), 0.5, layer.lora_magnitude.numpy())
    np.testing.assert_allclose(
        other, x.numpy() @ part.merged(layer.base.weight.numpy()) + layer.base.bias.numpy(), atol=1e-12
    )
    assert np.abs(other - fresh).max() > 0.01


def test_dropout_acts_on_the_adapter_alone_and_in_training_only(rng):
    base = linear(rng, False)
    layer = filled(rng, base, dropout=0.5)
    x = paddle.ones([400, IN], "float64")
    layer.eval()
    still = layer(x).numpy()
    np.testing.assert_array_equal(still[0], still[1])
    layer.train()
    moving = layer(x).numpy()
    assert np.unique(moving.round(9), axis=0).shape[0] > 50
    np.testing.assert_allclose(moving.mean(axis=0), still[0], atol=1.0)


@pytest.mark.parametrize(
    ("magnitude", "bias", "kept", "most"), [(False, False, 1, 2), (True, False, 2, 2), (True, True, 2, 3)]
)
def test_sums_are_written_over_their_terms(magnitude, bias, kept, most):
    """By the bytes that paddle's allocator counts after a call and at most, in outputs."""
    width, tokens = 64, 1000
    layer = LoraLinear(Linear(width, width, bias), 1, 2.0, magnitude=magnitude)
    x = paddle.zeros([tokens, width])
    x.stop_gradient = False
    before = core.host_memory_stat_current_value(*STATISTIC)
    core.host_memory_stat_reset_peak_value(*STATISTIC)
    y = layer(x)
    found = core.host_memory_stat_current_value(*STATISTIC), core.host_memory_stat_peak_value(*STATISTIC)
    assert [round((count - before) / (4 * y.size)) for count in found] == [kept, most]


def test_the_principal_part_is_the_best_approximation(rng):
    weight = rng.normal(size=(IN, OUT))
    a, b = pissa_init(weight, RANK, 0.25)
    values = np.linalg.svd(weight, compute_uv=False)
    rest = weight - 0.25 * a @ b
    assert np.linalg.norm(rest) == pytest.approx(np.sqrt((values[RANK:] ** 2).sum()), rel=1e-10)
    assert np.linalg.matrix_rank(a @ b) == RANK
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1), rtol=1e-10)


def test_packing_is_exact_and_is_undone(rng):
    widths, scale = [4, 2, 3], 0.5
    weights = [rng.normal(size=(IN, width)) for width in widths]
    parts = [
        LoraWeights(rng.normal(size=(IN, r)), rng.normal(size=(r, w)), scale)
        for r, w in zip([2, 3, 1], widths, strict=True)
    ]
    for chosen in (parts, [parts[0], None, parts[2]]):
        packed = fuse(chosen, widths)
        each = [w if p is None else p.merged(w) for p, w in zip(chosen, weights, strict=True)]
        np.testing.assert_allclose(
            packed.merged(np.concatenate(weights, axis=1)), np.concatenate(each, axis=1), atol=1e-12
        )
        back = split_fused(packed, widths, [p.rank if p else 0 for p in chosen])
        for part, original in zip(back, chosen, strict=True):
            assert (part is None) == (original is None)
            if part:
                np.testing.assert_array_equal(part.a, original.a)
                np.testing.assert_array_equal(part.b, original.b)


def test_a_dense_packed_adapter_is_taken_apart_exactly(rng):
    widths = [4, 2, 3]
    packed = LoraWeights(rng.normal(size=(IN, 2)), rng.normal(size=(2, 9)), 2.0, rng.uniform(1, 2, 9))
    weight = rng.normal(size=(IN, 9))
    columns = np.split(weight, np.cumsum(widths)[:-1], axis=1)
    each = [part.merged(columns[i]) for i, part in enumerate(split_fused(packed, widths))]
    np.testing.assert_allclose(np.concatenate(each, axis=1), packed.merged(weight), atol=1e-12)


def test_packed_lengths_need_all_layers(rng):
    part = LoraWeights(rng.normal(size=(IN, 2)), rng.normal(size=(2, 3)), 1.0, np.ones(3))
    with pytest.raises(ValueError, match="DoRA needs adapters on all"):
        fuse([part, None], [3, 3])


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_alpha_and_scale_are_inverse(rank_stabilised):
    assert scale_of(16, 8, rank_stabilised) == pytest.approx(16 / (8**0.5 if rank_stabilised else 8))
    assert alpha_of(scale_of(12.0, 7, rank_stabilised), 7, rank_stabilised) == 12.0


def test_noise_is_bounded_seeded_and_absent_outside_training(rng):
    table = paddle.nn.Embedding(10, 6)
    ids = paddle.to_tensor(rng.integers(0, 10, (3, 8)))
    plain = table(ids).numpy()
    add_noise(table, 5.0)
    table.eval()
    np.testing.assert_array_equal(table(ids).numpy(), plain)
    table.train()
    noises = []
    for seed in (1, 1, 2):
        paddle.seed(seed)
        noises.append(table(ids).numpy() - plain)
    np.testing.assert_array_equal(noises[0], noises[1])
    assert np.abs(noises[0] - noises[2]).max() > 0.01
    bound = 5.0 / (8 * 6) ** 0.5
    assert 0.9 * bound < np.abs(noises[0]).max() <= bound + 1e-6
