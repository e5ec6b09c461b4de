"""Log-probabilities of given tokens by the layer: column by column as of the whole sequence."""

import numpy as np
import paddle
import pytest

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.infer.eager import score as scoring
from llmctl.infer.eager.score import score
from llmctl.infer.sampling.logprobs import log_softmax
from llmctl.testing.tiny import random_model


def whole(layer, ids, first):
    with paddle.no_grad():
        logits_TV = layer(paddle.to_tensor([ids])).numpy()[0]
    return [log_softmax(logits_TV[i - 1])[ids[i]] for i in range(first, len(ids))]


@pytest.mark.parametrize(("family", "ids", "first"), [
    ("llama", [5, 9, 30, 41, 7, 8, 60, 2, 3, 11, 12], 1),
    ("llama", [5, 9, 30, 41, 7, 8, 60, 2, 3, 11, 12], 9),
    ("chatglm", [5, 6, 7, 8, 91, 90, 11, 12, 30, 13, 14], 6),
])  # fmt: skip
@pytest.mark.parametrize("chunk", [3, 128])
def test_scores_are_those_of_the_whole_sequence(monkeypatch, family, ids, first, chunk):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    plugin = plugins.load(family)
    marks = {"bos": 90, "gmask": 91, "mask": 92} if family == "chatglm" else None
    layer = random_model(plugin, tiny_dims(plugin.card, marks))
    layer.eval()
    made = score(layer, ids, first)
    assert made.finish_reason == "scored" and [row.token for row in made.logprobs] == ids[first:]
    np.testing.assert_allclose([row.logprob for row in made.logprobs], whole(layer, ids, first), atol=1e-5)


def test_frequencies_that_depend_on_the_length_are_those_of_the_whole_text(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 4)

    class Lengths:
        """Likes the token whose number is that of the positions that it was given at once."""

        max_stable_length, past = 6, 0

        def begin(self, max_length, use_cache=True):
            self.use_cache = use_cache
            return self

        def all_logits(self, ids_BT, mask_BS):
            logits_BTV = np.zeros((1, ids_BT.shape[1], 20), np.float32)
            logits_BTV[:, :, ids_BT.shape[1]] = 9
            return logits_BTV

    model = Lengths()
    long = score(model, [8] * 8, 1)
    assert not model.use_cache and len(long.logprobs) == 7 and all(row.logprob > -0.01 for row in long.logprobs)
    short = score(model, [4] * 6, 1)
    assert model.use_cache and [row.logprob > -0.01 for row in short.logprobs] == [True] * 4 + [False]
    logits = np.full((1, 4, 20), np.nan, np.float32)
    model.all_logits = lambda ids_BT, mask_BS: logits
    broken = score(model, [4] * 5, 1)
    assert broken.finish_reason == "error" and "finite" in broken.error and not broken.logprobs
