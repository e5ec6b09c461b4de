"""ALiBi: the ladder of slopes, and attention that sees distances only."""

import numpy as np
import paddle
import pytest

from llmctl.card.alibi import alibi_slopes
from llmctl.nn.mask import Layout


@pytest.mark.parametrize("heads", [1, 2, 8, 32, 64, 128])
def test_a_power_of_two_gives_one_ladder(heads):
    assert alibi_slopes(heads) == pytest.approx([2 ** (-8 * (i + 1) / heads) for i in range(heads)])


@pytest.mark.parametrize(("heads", "below"), [(6, 4), (40, 32), (112, 64)])
def test_other_counts_take_every_other_step_of_the_next_ladder(heads, below):
    next_ladder = [2 ** (-8 * (i + 1) / (2 * below)) for i in range(2 * below)]
    assert alibi_slopes(heads)[:below] == pytest.approx(alibi_slopes(below))
    assert alibi_slopes(heads)[below:] == pytest.approx(next_ladder[::2][: heads - below])


def test_weights_fall_with_the_distance_whatever_the_padding():
    real = paddle.to_tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    bias = Layout(6, 0, real).mask(slopes=alibi_slopes(4)).bias("float64")
    weights = paddle.nn.functional.softmax(bias, axis=-1).numpy()
    distance = np.arange(4)[:, None] - np.arange(4)
    for head, slope in enumerate(alibi_slopes(4)):
        scores = np.where(distance >= 0, np.exp(-slope * distance), 0)
        expected = scores / scores.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[0, head, 2:, 2:], expected, atol=1e-12)
        np.testing.assert_allclose(weights[1, head, :4, :4], expected, atol=1e-12)


def test_a_step_with_a_cache_has_the_last_row_of_the_whole():
    whole, step = (
        Layout(new, past).mask(slopes=alibi_slopes(3)).bias("float64").numpy() for new, past in ((5, 0), (1, 4))
    )
    np.testing.assert_array_equal(whole[:, :, -1:], step)
