"""Masks as paddle's FlashMask takes them, expanded by the words of its page; the kernel itself needs a GPU."""

import inspect

import numpy as np
import paddle
import pytest

from llmctl.nn import flashmask
from llmctl.nn.attention import attend, attend_dense
from llmctl.nn.mask import Layout

# Columns: a document of 3, then a prompt of 2 with answers of 2 and 1 that do not see each other, then padding.
END = [[3, 3, 3, 8, 8, 7, 7, 8, 0], [4, 4, 4, 4, 9, 9, 9, 9, 9]]
PLACE = [[0, 1, 2, 0, 1, 2, 3, 2, 0], [0, 1, 2, 3, 0, 1, 2, 3, 4]]
PADDED = [[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]]


def packed(past=0):
    place, end = np.array(PLACE) + past, np.array(END)
    return Layout(9, past, position_BT=paddle.to_tensor(place), end_BT=paddle.to_tensor(end))


MASKS = {
    "causal": lambda: Layout(9).mask(),
    "causal after a cache": lambda: Layout(5, 4).mask(),
    "windowed": lambda: Layout(9).mask(window=3),
    "windowed after a cache": lambda: Layout(5, 4).mask(window=3),
    "padded": lambda: Layout(9, real_BS=paddle.to_tensor(PADDED)).mask(),
    "padded and windowed": lambda: Layout(9, real_BS=paddle.to_tensor(PADDED)).mask(window=3),
    "packed, with answers that share a prompt": lambda: packed().mask(),
    "packed and windowed": lambda: packed().mask(window=2),
    "packed after virtual tokens": lambda: packed(2).mask(),
    "prefix-LM": lambda: Layout(9).mask(first_BT=paddle.to_tensor([[0, 0, 0, 0, 4, 5, 6, 7, 8]])),
    "prefix-LM and padding": lambda: Layout(9, real_BS=paddle.to_tensor(PADDED)).mask(
        first_BT=paddle.to_tensor([[2, 2, 2, 2, 2, 5, 6, 7, 8], [0, 0, 0, 3, 4, 5, 6, 7, 8]])
    ),
}


def expand(rows_BKSI, causal, new):
    """Which query sees which key [B, K, T, S], as the page of flashmask_attention says."""
    rows = rows_BKSI.numpy()
    query, key = np.arange(new)[:, None], np.arange(rows.shape[2])[None, :]
    below = query >= rows[:, :, None, :, 0]
    if causal:
        assert rows.shape[3] == 1 and rows.shape[2] == new
        return ~(below & (query >= key)) & (query >= key)
    assert rows.shape[3] == 2
    return ~below & ~(query < rows[:, :, None, :, 1])


@pytest.mark.parametrize("name", MASKS)
def test_rows_for_the_kernel_are_the_mask(name):
    mask = MASKS[name]()
    rows, causal = flashmask.rows(mask, 2)
    assert rows.dtype == paddle.int32 and rows.shape[:3] == [2, 1, mask.past + mask.new]
    assert causal == (not mask.past and "prefix-LM" not in name)
    seen = np.broadcast_to(mask.bias("float32").numpy() == 0, [2, 1, mask.new, mask.past + mask.new])
    np.testing.assert_array_equal(expand(rows, causal, mask.new), seen)


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for the kernel, in plain operations; the device and the type are taken for those that it serves."""
    calls = []
    real = inspect.signature(paddle.nn.functional.flashmask_attention)

    def stand_in(*args, **kwargs):
        given = real.bind(*args, **kwargs).arguments
        calls.append(given["causal"])
        assert given.keys() == {"query", "key", "value", "startend_row_indices", "causal"}
        q, k, v = given["query"], given["key"], given["value"]
        seen = expand(given["startend_row_indices"], given["causal"], q.shape[1])
        bias = paddle.to_tensor(np.where(seen, 0.0, -1e30).astype(np.float32)).astype(q.dtype)
        return attend_dense(q, k, v, bias).reshape(q.shape)

    monkeypatch.setattr(paddle.nn.functional, "flashmask_attention", stand_in)
    monkeypatch.setattr(flashmask, "_on_capable_gpu", lambda x: True)
    monkeypatch.setattr(flashmask, "HALF", (paddle.float64,))
    return calls


@pytest.mark.parametrize("name", MASKS)
def test_attention_by_the_kernel_equals_the_dense_one(name, kernel):
    mask, random = MASKS[name](), np.random.default_rng(0)
    total = mask.past + mask.new
    q, k, v = (
        paddle.to_tensor(random.normal(size=(2, length, heads, 8)))
        for length, heads in ((mask.new, 4), (total, 2), (total, 2))
    )
    bias = mask.bias("float64")
    looks = np.broadcast_to((bias.numpy() == 0).any(-1)[:, 0], [2, mask.new])
    found, expected = attend(q, k, v, mask), attend_dense(q, k, v, bias)
    assert len(kernel) == 1
    np.testing.assert_allclose(found.numpy()[looks], expected.numpy()[looks], atol=1e-12)


def test_what_the_kernel_cannot_express_is_left_to_others(kernel):
    q = paddle.zeros([1, 9, 4, 8], "float64")
    mask = Layout(9).mask()
    assert flashmask.fits(q, mask, 0.0)
    assert not flashmask.fits(q, None, 0.0)
    assert not flashmask.fits(q, mask, 0.1)
    assert not flashmask.fits(q, Layout(9).mask(slopes=(0.5,) * 4), 0.0)
    assert not flashmask.fits(q, Layout(1, 8).mask(window=3), 0.0)
    assert not flashmask.fits(paddle.zeros([1, 9, 4, 12], "float64"), mask, 0.0)
    assert not flashmask.fits(paddle.zeros([1, 9, 4, 264], "float64"), mask, 0.0)
    assert not flashmask.fits(q.astype("float32"), mask, 0.0)


def test_a_cpu_never_asks_for_the_kernel():
    assert not flashmask.fits(paddle.zeros([1, 9, 4, 8]).astype("bfloat16"), Layout(9).mask(), 0.0)
