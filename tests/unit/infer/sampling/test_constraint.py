"""Constraints: only allowed tokens are chosen, with drafts and penalties, and log-probabilities stay those of the model."""

import numpy as np
import pytest
from kit.engine_toys import END, ask, engine_of
from kit.paged_toy import ToyExecutor, graph

from llmctl.errors import ConfigError
from llmctl.infer.request import BeamOptions, Request
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.constraint import allow
from llmctl.infer.sampling.logprobs import log_softmax, token_logprob
from llmctl.infer.sampling.rows import FAULTS, NOT_FINITE, SamplerInput
from llmctl.infer.sampling.sampler import Sampler

MODEL = graph()


def words(vocab, tokens):
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


class Alternating:
    """Even and odd tokens take turns, up to so many."""

    def __init__(self, length):
        self.length = length

    def matcher(self):
        return Turns(self.length)


class Turns:
    def __init__(self, length):
        self.length, self.seen = length, []

    def _fits(self, token):
        return token % 2 == len(self.seen) % 2 and token not in END

    def allowed(self):
        return words(MODEL.vocab, [token for token in range(MODEL.vocab) if self._fits(token)])

    def prepare(self):
        self.prepared = True

    def accept(self, tokens):
        for count, token in enumerate(tokens):
            if self.complete or not self._fits(token):
                return count
            self.seen.append(token)
        return len(tokens)

    def undo(self, count):
        del self.seen[len(self.seen) - count :]

    @property
    def complete(self):
        return len(self.seen) == self.length


@pytest.mark.parametrize("vocab", [5, 32, 33, 757])
def test_other_logits_become_minus_infinity(vocab):
    logits = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    before, tokens = logits.copy(), range(0, vocab, 3)
    found = allow(logits, words(vocab, tokens))
    assert (logits == before).all() and found.dtype == np.float32
    assert np.flatnonzero(np.isfinite(found)).tolist() == [*tokens] and (found[::3] == logits[::3]).all()


def test_rows_beside_an_adjusted_one_do_not_change_and_its_log_probability_is_the_models():
    logits = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    rows = [SamplerInput(sample=True, draw=0.4), SamplerInput(allowed=words(100, [7, 9]), biases=[(9, 50.0)]),
            SamplerInput(allowed=words(100, []))]  # fmt: skip
    found = Sampler(100).choose(logits, rows, True)
    alone = Sampler(100).choose(logits[:1], rows[:1], True)
    assert found.token_L[0] == alone.token_L[0] and found.logprob_L[0] == alone.logprob_L[0]
    assert found.token_L[1] == 9 and found.logprob_L[1] == pytest.approx(log_softmax(logits[1])[9], abs=1e-6)
    assert found.status_L.tolist()[:2] == [0, 0] and found.status_L[2] == NOT_FINITE in FAULTS


@pytest.mark.parametrize("known", [None, (3, 0.0)])
def test_log_probabilities_from_that_of_any_token(known):
    logits = np.random.default_rng(1).standard_normal(300).astype(np.float32)
    expected = log_softmax(logits)
    found = token_logprob(logits, 5, SamplingParams(logprobs=3), known and (3, expected[3]))
    assert found.logprob == pytest.approx(expected[5], abs=1e-6)
    assert [row[1] for row in found.top] == pytest.approx(sorted(expected)[:-4:-1], abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"sample": True, "seed": 3, "temperature": 3.0}, {"repetition_penalty": 1.3}])
def test_an_answer_keeps_its_form_and_drafts_do_not_change_it(options):
    found = []
    for draft in (0, 5):
        engine = engine_of(MODEL, ToyExecutor(), blocks=60)
        requests = [
            ask([5, 6, 5, 7, 8, 5, 6], 12, draft=draft, index=index, constraint=Alternating(8), **options)
            for index in range(4)
        ]
        found.append(engine.generate([*requests, ask([5, 6], 9)]))
        assert engine.statistics().draft_tokens > 0 if draft else True
    assert [made.ids for made in found[0]] == [made.ids for made in found[1]]
    for made in found[0][:4]:
        assert [token % 2 for token in made.ids] == [0, 1] * 4 and made.finish_reason == "end"


def test_what_has_no_constraint_refuses_one():
    with pytest.raises(ConfigError, match="cannot be combined with beam search"):
        Request(prompt=[5], constraint=Alternating(2), beams=BeamOptions(beams=2))
