"""ChatGLM-6B, ChatGLM2 and ChatGLM3 against recordings of the original code."""

import numpy as np
import paddle
import pytest

from llmctl import ConfigError, DataError, PrefixLM
from llmctl.nn import KVCache, find_prefixes
from llmctl.testing import check_golden, plugin_for, tiny_dims
from llmctl_chatglm import CARD, chatglm2
from llmctl_chatglm.modeling import ChatGLM2ForCausalLM, ChatGLMForCausalLM

CARDS = {card.name: card for card in (CARD, chatglm2.CARD)}
BOS, GMASK, MASK = 60, 61, 62
CONTEXTS = PrefixLM(end=BOS, mask_ids=(GMASK, MASK))


@pytest.mark.parametrize("name", CARDS)
def test_a_config_is_recognised_although_both_share_an_architecture(name):
    config = CARDS[name].config_from_dims(CARDS[name].dims_of(next(iter(CARDS[name].sizes))))
    assert plugin_for(config, "config.json").card.name == name


@pytest.mark.parametrize("change", [{"rmsnorm": False}, {"original_rope": False}, {"rope_ratio_of": "both"}])
def test_other_variants_are_refused(change):
    config = chatglm2.CARD.config_from_dims(chatglm2.CARD.dims_of("chatglm2-6b"))
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.* is not supported"):
        chatglm2.CARD.dims_from_config({**config, **change})


def test_a_ratio_of_rotations_must_say_what_it_stretches():
    config = chatglm2.CARD.config_from_dims(chatglm2.CARD.dims_of("chatglm2-6b"))
    del config["rope_ratio_of"]
    assert chatglm2.CARD.dims_from_config(config).rope_ratio_of == "base"
    for wrong, message in ((50, "rope_ratio_of"), (0, "above 0"), ("50", "above 0")):
        with pytest.raises(ConfigError, match=message):
            chatglm2.CARD.dims_from_config({**config, "rope_ratio": wrong})


@pytest.mark.parametrize("of", ["base", "positions"])
def test_a_ratio_multiplies_the_base_or_divides_positions(of):
    """As in the original code of ChatGLM3-6B-32K and ChatGLM2-6B-32K."""
    place, width = 9, 8
    dims = tiny_dims(chatglm2.CARD, {"head_dim": 2 * width, "rope_ratio": 50, "rope_ratio_of": of})
    model = ChatGLM2ForCausalLM(dims)
    cos, sin = model.chatglm2.rotary(paddle.to_tensor([[place]]), "float64")
    base, position = (10000 * 50, place) if of == "base" else (10000, place / 50)
    angles = position / base ** (np.arange(0, width, 2) / width)
    np.testing.assert_allclose(cos.numpy()[0, 0, 0, : width // 2], np.cos(angles), rtol=1e-12)
    np.testing.assert_allclose(sin.numpy()[0, 0, 0, width // 2 :], np.sin(angles), rtol=1e-12)


@pytest.mark.assets
@pytest.mark.parametrize("case", ["chatglm6b_basic", "chatglm2_basic", "chatglm3_basic"])
def test_recorded_results_are_repeated(assets, case):
    check_golden(assets / "goldens_remote" / case)


def test_positions_and_mask_follow_the_special_tokens():
    ids = np.array([[0, 0, 5, 6, GMASK, BOS, 7, 8], [5, MASK, 6, BOS, 7, GMASK, 9, 9]])
    real = np.array([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    position = np.maximum(real.cumsum(1) - 1, 0)
    place, context, masked, first = find_prefixes(ids, position, real, CONTEXTS)
    assert place.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert (context[:, -1].tolist(), masked[:, -1].tolist()) == ([3, 3], [2, 1])
    assert first.tolist() == [[0, 1, 2, 2, 2, 5, 6, 7], [0, 0, 0, 3, 4, 5, 6, 7]]


def test_each_document_of_a_packed_row_has_its_own_context():
    ids = np.array([[5, GMASK, BOS, 7, 5, 6, MASK, BOS, 8, 0]])
    position = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])
    place, context, masked, first = find_prefixes(ids, position, np.array([[1] * 9 + [0]]), CONTEXTS)
    assert context[0, :9].tolist() == [2] * 4 + [3] * 5
    assert masked[0, :9].tolist() == [1] * 4 + [2] * 5
    assert first[0, :9].tolist() == [0, 0, 2, 3, 4, 4, 4, 7, 8]
    assert place[0, :9].tolist() == position[0, :9].tolist()


def test_a_row_without_its_special_tokens_is_refused():
    for ids, token in ([[5, GMASK, 6]], f"no token {BOS}"), ([[5, BOS, GMASK]], f"no token {GMASK} or {MASK}"):
        with pytest.raises(DataError, match=token):
            find_prefixes(np.array(ids), np.arange(3)[None], np.ones((1, 3)), CONTEXTS)


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
