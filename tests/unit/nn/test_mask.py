"""What queries see, against a plain loop over rows and keys; documents packed into a row against each alone."""

import numpy as np
import paddle
import pytest

from llmctl.card.alibi import alibi_slopes
from llmctl.nn.attention import attend, attend_dense
from llmctl.nn.mask import Layout

RNG = np.random.default_rng(3)


def visible(mask, dtype="float64"):
    return mask.bias(dtype).numpy()[:, 0] == 0


@pytest.mark.parametrize(("new", "past"), [(9, 0), (3, 6), (1, 8)])
def test_a_window_hides_what_lies_before_it(new, past):
    query, key = np.arange(past, past + new)[:, None], np.arange(past + new)
    found = visible(Layout(new, past).mask(window=4), "float32")[0]
    np.testing.assert_array_equal(found, (key <= query) & (key > query - 4))


def test_a_window_that_covers_everything_changes_nothing():
    assert Layout(1, 3).mask(window=4) is None
    np.testing.assert_array_equal(visible(Layout(4).mask(window=4)), visible(Layout(4).mask()))


@pytest.mark.parametrize("new", [8, 3, 1])
def test_a_window_counts_tokens_and_not_the_padding_between_them(new):
    """What padding itself sees is of no account."""
    rows = ("11001111", "11111100", "11010011", "00011111")
    real = np.array([list(map(int, row)) for row in rows])
    found = visible(Layout(new, 8 - new, paddle.to_tensor(real)).mask(window=3))
    place = real.cumsum(axis=1)
    for row, query, key in np.ndindex(len(rows), new, 8):
        column = 8 - new + query
        expected = key <= column and real[row, key] and place[row, column] - place[row, key] < 3
        assert not real[row, column] or found[row, query, key] == expected


def test_documents_need_positions():
    with pytest.raises(ValueError, match="need position ids"):
        Layout(3, end_BT=paddle.to_tensor([[2, 2, 3]]))


def test_virtual_tokens_before_packed_documents_are_seen_by_all():
    layout = Layout(4, 2, position_BT=paddle.to_tensor([[2, 3, 2, 3]]), end_BT=paddle.to_tensor([[2, 2, 4, 4]]))
    expected = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]]
    assert visible(layout.mask())[0].astype(int).tolist() == expected
    assert layout.key_position_BS.tolist() == [[0, 1, 2, 3, 2, 3]]


# Columns: a document of 3, then a prompt of 2 with answers of 2 and 1 that do not see each other, then padding.
END = [[3, 3, 3, 8, 8, 7, 7, 8, 0], [4, 4, 4, 4, 9, 9, 9, 9, 9]]
PLACE = [[0, 1, 2, 0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("heads", [0, 3, 4])
@pytest.mark.parametrize("window", [None, 2])
def test_packed_attention_and_its_gradients_equal_the_dense_ones(heads, window):
    tensors = [paddle.to_tensor(RNG.normal(size=(2, 9, n, 4)), stop_gradient=False) for n in (heads or 4, 1, 1)]
    layout = Layout(9, position_BT=paddle.to_tensor(PLACE), end_BT=paddle.to_tensor(END))
    mask = layout.mask(window=window, slopes=alibi_slopes(heads) if heads else ())
    weight = paddle.to_tensor(RNG.normal(size=(2, 9, 4 * (heads or 4))))
    weight[0, 8] = 0.0
    results = []
    for out in (attend(*tensors, mask), attend_dense(*tensors, mask.bias("float64"))):
        grads = paddle.grad((out * weight).sum(), tensors)
        results.append([out.numpy()[weight.numpy() != 0], *(grad.numpy() for grad in grads)])
    for packed, dense in zip(*results, strict=True):
        np.testing.assert_allclose(packed, dense, atol=1e-12)


def test_answers_with_a_shared_prompt_see_it_and_not_each_other():
    found = visible(Layout(9, position_BT=paddle.to_tensor(PLACE), end_BT=paddle.to_tensor(END)).mask())[0]
    assert found[7].astype(int).tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 0]
    assert found[6].astype(int).tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert found[3].astype(int).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_a_context_is_read_in_both_directions_and_past_tokens_are_seen_by_all():
    real = paddle.to_tensor([[1, 1, 0, 1, 1, 1]])
    layout = Layout(4, past=2, real_BS=real)
    assert layout.real_BT.numpy().tolist() == [[False, True, True, True]]
    found = visible(layout.mask(first_BT=paddle.to_tensor([[0, 1, 1, 3]])))[0]
    assert found[1:].astype(int).tolist() == [[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]]


@pytest.mark.parametrize("kind", ["packed", "padded", "window", "penalties", "both ways"])
def test_what_the_operators_compute_is_the_dense_attention(kind):
    shapes = [(2, 9, 4, 8), (2, 9, 2, 8), (2, 9, 2, 8)]
    arrays = [RNG.normal(size=shape) for shape in shapes]
    real = paddle.to_tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
    layout = Layout(9, position_BT=paddle.to_tensor(PLACE), end_BT=paddle.to_tensor(END))
    mask = {
        "packed": lambda: layout.mask(),
        "padded": lambda: Layout(9, 0, real).mask(),
        "window": lambda: Layout(9).mask(window=3),
        "penalties": lambda: layout.mask(slopes=alibi_slopes(4)),
        "both ways": lambda: Layout(9).mask(first_BT=paddle.to_tensor([[0, 0, 0, 3, 4, 5, 6, 7, 8]])),
    }[kind]()
    weight = RNG.normal(size=(2, 9, 32))
    weight[0, [0, 1, 8]] = 0.0
    results = []
    for dtype, attention in (
        ("float32", attend),
        ("float64", lambda *qkvm: attend_dense(*qkvm[:3], qkvm[3].bias("float64"))),
    ):
        tensors = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in arrays]
        out = attention(*tensors, mask)
        grads = paddle.grad((out * paddle.to_tensor(weight.astype(dtype))).sum(), tensors)
        results.append([out.numpy() * (weight != 0), *(grad.numpy() for grad in grads)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
