"""AdamW against paddle's own optimizer, and sums of squares against numpy."""

import numpy as np
import paddle
import pytest

import llmctl_ops

SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def gradients(step, size):
    return np.random.default_rng(step).standard_normal(size).astype("float32") * 10.0 ** -(step % 4)


def updates(size, decay, count):
    """The weight after a number of updates: ours, paddle's, and in float64."""
    start = np.random.default_rng(9).standard_normal(size).astype("float32")
    theirs = paddle.base.framework.EagerParamBase.from_tensor(paddle.to_tensor(start))
    adamw = paddle.optimizer.AdamW(1e-3, 0.9, 0.95, 1e-8, parameters=[theirs], weight_decay=decay)
    ours, moment1, moment2 = paddle.to_tensor(start), paddle.zeros([size]), paddle.zeros([size])
    exact, first, second = start.astype(np.float64), np.zeros(size), np.zeros(size)
    powers = betas = np.float32([0.9, 0.95])
    for step in range(1, count + 1):
        grad = gradients(step, size)
        (theirs * paddle.to_tensor(grad)).sum().backward()
        adamw.step()
        adamw.clear_grad()
        options = {**SETTINGS, "weight_decay": decay}
        llmctl_ops.adamw(ours, paddle.to_tensor(grad), moment1, moment2, 1e-3, tuple(map(float, powers)), **options)
        powers = powers * betas
        wide = grad.astype(np.float64)
        first, second = 0.9 * first + 0.1 * wide, 0.95 * second + 0.05 * wide**2
        spread = np.sqrt(second / (1 - 0.95**step)) + 1e-8
        exact = exact * (1 - 1e-3 * decay) - 1e-3 * first / (1 - 0.9**step) / spread
    return ours.numpy(), theirs.numpy(), exact


@pytest.mark.parametrize("size", [1, 15, 16, 1000, 70001])
def test_twenty_updates_without_decay_equal_those_of_paddle(level, size):
    ours, theirs, _ = updates(size, 0.0, 20)
    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=2.5e-7)


@pytest.mark.parametrize("size", [15, 70001])
def test_decay_is_nearer_to_exact_than_paddles_which_rounds_the_same_way_each_time(level, size):
    ours, theirs, exact = updates(size, 0.1, 20)
    np.testing.assert_allclose(ours, theirs, rtol=1.5e-6, atol=1e-7)
    assert np.abs(ours - exact).max() < min(1.5e-6, np.abs(theirs - exact).max())


def test_the_first_updates_are_those_of_double_precision(level):
    """The kernel's 1 - 0.999 is 1e-5 off, which must not reach the weight."""
    size, betas = 70001, (0.9, 0.999)
    weight, *moments = (paddle.zeros([size]) for _ in range(3))
    exact, first, second = np.zeros(size), np.zeros(size), np.zeros(size)
    for step in range(1, 6):
        grad = np.abs(gradients(step, size)) + 0.1
        powers = betas[0] ** step, betas[1] ** step
        llmctl_ops.adamw(weight, paddle.to_tensor(grad), *moments, 1.0, powers, betas)
        wide = grad.astype(np.float64)
        first, second = 0.9 * first + 0.1 * wide, 0.999 * second + 0.001 * wide**2
        exact -= first / (1 - powers[0]) / (np.sqrt(second / (1 - powers[1])) + 1e-8)
        np.testing.assert_allclose(weight.numpy(), exact, rtol=1e-6)


def test_float64_takes_the_reference(level):
    tensors = [paddle.to_tensor(gradients(step, 33)) for step in (1, 2)]
    results = []
    for dtype in ("float32", "float64"):
        weight, grad = (tensor.astype(dtype).clone() for tensor in tensors)
        moments = paddle.zeros_like(weight), paddle.zeros_like(weight)
        llmctl_ops.adamw(weight, grad, *moments, 1e-2, (0.9, 0.95), **SETTINGS)
        results.append([x.numpy() for x in (weight, *moments)])
    for narrow, wide in zip(*results, strict=True):
        assert wide.dtype == np.float64
        np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-7)


def test_tensors_of_different_shapes_are_refused():
    x = paddle.zeros([3])
    with pytest.raises(ValueError, match="one shape"):
        llmctl_ops.adamw(x, paddle.zeros([4]), x, x, 1e-3, (0.9, 0.999))


@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 40000, 3]])
def test_sum_squares(level, sizes):
    arrays = [gradients(size, size) for size in sizes]
    expected = sum(float((array.astype(np.float64) ** 2).sum()) for array in arrays)
    assert llmctl_ops.sum_squares([paddle.to_tensor(array) for array in arrays]) == pytest.approx(expected, rel=1e-6)


def test_the_sum_of_squares_of_what_is_no_number_is_none(level):
    assert np.isnan(llmctl_ops.sum_squares([paddle.to_tensor([1.0, float("nan"), 2.0])]))
    assert np.isinf(llmctl_ops.sum_squares([paddle.to_tensor([1.0, float("inf"), 2.0])]))
