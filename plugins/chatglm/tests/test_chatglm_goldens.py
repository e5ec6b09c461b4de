"""ChatGLM-6B, ChatGLM2 and ChatGLM3 against recordings of the original code."""

import numpy as np
import paddle
import pytest

from llmctl.errors import ConfigError, DataError
from llmctl.nn.cache import KVCache
from llmctl.plugins import resolve
from llmctl.testing.golden import check_all
from llmctl_chatglm import CARD, chatglm2
from llmctl_chatglm.modeling import ChatGLMForCausalLM, find_context, positions_2d, prefix_bias

CARDS = {card.name: card for card in (CARD, chatglm2.CARD)}
BOS, GMASK, MASK = 60, 61, 62


@pytest.mark.parametrize("name", CARDS)
def test_a_config_is_recognised_although_both_share_an_architecture(name):
    config = CARDS[name].config_from_dims(CARDS[name].dims_of(next(iter(CARDS[name].sizes))))
    assert resolve("auto", config, "config.json").card.name == name


@pytest.mark.parametrize("change", [{"rmsnorm": False}, {"original_rope": False}, {"rope_ratio": 50}])
def test_other_variants_are_refused(change):
    config = chatglm2.CARD.config_from_dims(chatglm2.CARD.dims_of("chatglm2-6b"))
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.* is not supported"):
        chatglm2.CARD.dims_from_config({**config, **change})


@pytest.mark.assets
@pytest.mark.parametrize("case", ["chatglm6b_basic", "chatglm2_basic", "chatglm3_basic"])
def test_recorded_results_are_repeated(assets, case):
    check_all(assets / "goldens_remote" / case)


def test_positions_and_mask_follow_the_special_tokens():
    ids = np.array([[0, 0, 5, 6, GMASK, BOS, 7, 8], [5, MASK, 6, BOS, 7, 8, 9, 9]])
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    context, masked = find_context(ids, mask, BOS, GMASK, MASK)
    assert (context.tolist(), masked.tolist()) == ([5, 3], [2, 1])
    tensors = paddle.to_tensor(mask), paddle.to_tensor(context), paddle.to_tensor(masked)
    first, second = positions_2d(*tensors)
    assert first.tolist() == [[0, 0, 0, 1, 2, 2, 2, 2], [0, 1, 2, 1, 1, 1, 1, 1]]
    assert second.tolist() == [[0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 1, 2, 3, 4, 5]]
    seen = (prefix_bias(8, 0, *tensors[:2], "float32").numpy() == 0)[:, 0]
    for row, query, key in np.ndindex(2, 8, 8):
        assert seen[row, query, key] == (mask[row, key] == 1 and (key <= query or key < context[row]))


def test_a_row_without_its_special_tokens_is_refused():
    for ids, token in ([[5, GMASK, 6]], "<bos>"), ([[5, BOS, 6]], r"\[gMASK\] or \[MASK\]"):
        with pytest.raises(DataError, match=token):
            find_context(np.array(ids), np.ones((1, 3)), BOS, GMASK, MASK)


@paddle.no_grad()
def test_a_padded_batch_with_a_cache_equals_each_row_alone():
    paddle.seed(0)
    sizes = dict(layers=2, hidden=32, heads=4, ffn=48, vocab=64, bos=BOS, gmask=GMASK, mask=MASK)
    model = ChatGLMForCausalLM(CARD.dims_of("6b", **sizes)).to(dtype="float64")
    rows = [[5, 6, GMASK, BOS, 7], [9, 8, 7, 6, 5, GMASK, BOS]]
    ids = paddle.to_tensor([[0, 0, *rows[0], 11, 12], [*rows[1], 13, 14]])
    mask = paddle.to_tensor([[0, 0] + [1] * 7, [1] * 9])
    cache = KVCache(9)
    steps = [model(ids[:, :7], mask[:, :7], cache=cache)]
    steps += [model(ids[:, t : t + 1], mask[:, : t + 1], cache=cache) for t in (7, 8)]
    batch = paddle.concat(steps, axis=1).numpy()
    np.testing.assert_allclose(batch[0, 2:], model(ids[:1, 2:]).numpy()[0], atol=1e-10)
    np.testing.assert_allclose(batch[1], model(ids[1:]).numpy()[0], atol=1e-10)
