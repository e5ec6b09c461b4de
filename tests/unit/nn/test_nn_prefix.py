"""Virtual tokens where positions are not plain: linear biases, windows, rotations by length; and compiled operators."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.adapters.attach import add_prefix
from llmctl.adapters.prefix import shape_of
from llmctl.card.tiny import tiny_dims
from llmctl.data.packing import collate, join
from llmctl.errors import UnsupportedError
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams
from llmctl.nn.cache import KVCache
from llmctl.nn.mask import Layout
from llmctl.testing.tiny import random_model
from llmctl.train.methods.evaluate import hidden_states

RNG = np.random.default_rng(2)
TOKENS = 4


def prefixed(family, changes):
    """A random model, a text, and the model's virtual tokens that are made of the text."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, changes)
    model = random_model(plugin, dims)
    text, cache = paddle.to_tensor(RNG.integers(3, dims.vocab, (1, TOKENS))), KVCache(TOKENS)
    with paddle.no_grad():
        model(text, cache=cache)
    prefix = add_prefix(model, shape_of(dims, TOKENS))
    prefix.set_values(
        np.stack([np.stack([part[0].numpy() for part in cache.pair(layer)]) for layer in range(dims.layers)])
    )
    return model, text, prefix, dims


CASES = {
    "biases": ("baichuan", {"position": "alibi"}),
    "window": ("mistral", {"window": 6}),
    "log-n": ("qwen", {"double_ffn": 96, "log_n": True, "trained": 8, "dynamic_ntk": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_virtual_tokens_stand_for_the_text_they_came_from(name):
    model, text, prefix, dims = prefixed(*CASES[name])
    ids = paddle.to_tensor(RNG.integers(3, dims.vocab, (1, 10)))
    cache = KVCache(10)
    with paddle.no_grad():
        found = model(ids).numpy()
        steps = [model(ids[:, t : t + 1], cache=cache) for t in range(10)]
        model.prefix = None
        expected = model(paddle.concat([text, ids], axis=1))[:, TOKENS:].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(paddle.concat(steps, axis=1).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(("family", "changes"), [("mistral", {"window": 9}), CASES["biases"]])
def test_packed_documents_are_as_far_from_virtual_tokens_as_each_alone(family, changes):
    model, _, _, dims = prefixed(family, changes)
    rows = [RNG.integers(3, dims.vocab, length).tolist() for length in (5, 3, 4)]
    documents = [SimpleNamespace(input_ids=row, labels=[-100] * len(row), source="") for row in rows]
    with paddle.no_grad():
        packed = hidden_states(model, collate([join(documents)], 0)).numpy()[0]
        alone = [model.hidden_states(paddle.to_tensor([row])).numpy()[0] for row in rows]
    np.testing.assert_allclose(packed, np.concatenate(alone), atol=1e-9)


def test_a_packed_document_that_outgrows_its_window_is_refused():
    ends = paddle.to_tensor([[4, 4, 4, 4, 6, 6]])
    layout = Layout(6, 3, position_BT=paddle.to_tensor([[3, 4, 5, 6, 3, 4]]), end_BT=ends)
    with pytest.raises(UnsupportedError, match="packed after 3 past tokens do not fit a window of 6"):
        layout.mask(window=6)


@pytest.mark.parametrize("window", [3, 5, 8])
@pytest.mark.parametrize("virtual", [True, False])
def test_a_row_padded_on_the_left_sees_as_far_as_alone(window, virtual):
    """Computed at once and in steps from a cache, against a row without padding."""
    model, _, _, dims = prefixed("mistral", {"window": window})
    model.prefix = model.prefix if virtual else None
    rows = [RNG.integers(3, dims.vocab, length) for length in (6, 10)]
    padded, real = (
        paddle.to_tensor(np.stack([np.r_[np.zeros(4, int), a], b])) for a, b in (rows, (rows[0] > 0, rows[1] > 0))
    )
    cache = KVCache(10)
    with paddle.no_grad():
        alone = [model(paddle.to_tensor(row[None])).numpy()[0] for row in rows]
        steps = [model(padded[:, :7], real[:, :7], cache=cache)]
        steps += [model(padded[:, t : t + 1], real[:, : t + 1], cache=cache) for t in range(7, 10)]
        for found in (model(padded, real).numpy(), paddle.concat(steps, axis=1).numpy()):
            np.testing.assert_allclose(found[0, 4:], alone[0], atol=1e-9)
            np.testing.assert_allclose(found[1], alone[1], atol=1e-9)


@pytest.mark.parametrize("virtual", [True, False])
def test_prompts_of_different_lengths_are_answered_as_each_alone_behind_a_window(virtual):
    model, _, _, dims = prefixed("mistral", {"window": 5})
    model.prefix = model.prefix if virtual else None
    prompts = [RNG.integers(3, dims.vocab, length).tolist() for length in (2, 9, 5)]
    options = SamplingParams(max_new_tokens=8)
    together = [row.ids for row in generate(model, prompts, options, [], 0)]
    assert together == [generate(model, [prompt], options, [], 0, use_cache=False)[0].ids for prompt in prompts]


def test_generation_counts_virtual_tokens_where_rotations_depend_on_the_length():
    """Rows that outgrow the trained length only with the virtual tokens are run without a cache."""
    changes = {"double_ffn": 96, "log_n": True, "trained": 12, "dynamic_ntk": True}
    model, _, _, dims = prefixed("qwen", changes)
    assert model.max_stable_length == 12 - TOKENS
    prompt = RNG.integers(3, dims.vocab, 5).tolist()
    options = SamplingParams(max_new_tokens=6)
    cached, uncached = (generate(model, [prompt], options, [], 0, use_cache=use)[0].ids for use in (True, False))
    assert cached == uncached


def test_single_precision_gives_the_same_up_to_rounding():
    """Where compiled operators are installed, it is they that are used."""
    exact, _, _, dims = prefixed("mixtral", {})
    ids = paddle.to_tensor(RNG.integers(3, dims.vocab, (2, 8)))
    with paddle.no_grad():
        expected = exact(ids).numpy()
        exact.to(dtype="float32")
        np.testing.assert_allclose(exact(ids).numpy(), expected, atol=1e-3)
