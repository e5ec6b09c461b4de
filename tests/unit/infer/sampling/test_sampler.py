"""Tokens chosen from rows of logits, by kernels and in numpy: the same, by the distribution, and with broken rows among good ones."""

import dataclasses

import numpy as np
import pytest

from llmctl.infer.executors import native
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.reference import choose_one
from llmctl.infer.sampling.rows import FAULTS, SamplerInput, sampler_input
from llmctl.infer.sampling.sampler import Sampler

VOCAB, ROWS = 701, 12
RANDOM = np.random.default_rng(0)
LOGITS = (3 * RANDOM.standard_normal((ROWS, VOCAB))).astype(np.float32)
SAID = RANDOM.integers(0, VOCAB, 100).astype(np.int32)
EVERYTHING = SamplerInput(
    context=SAID, generated=30, excluded=SAID[:7], sample=True, temperature=1.4, top_k=300, top_p=0.9, min_p=0.01,
    repetition=1.3, presence=0.2, frequency=0.1,
)  # fmt: skip


@pytest.fixture(params=["kernels", "numpy"])
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "sampler", lambda vocab: None)
    elif not native.available():
        pytest.skip("no compiled kernels here")


def rows_of(choice, count=ROWS):
    return [dataclasses.replace(choice, draw=draw) for draw in np.linspace(0, 1, count, endpoint=False).tolist()]


@pytest.mark.parametrize(
    "choice",
    [SamplerInput(), SamplerInput(context=SAID, generated=30, repetition=3.0, presence=0.5, frequency=1.5), EVERYTHING],
)
def test_numpy_chooses_what_kernels_do(choice, monkeypatch):
    if not native.available():
        pytest.skip("no compiled kernels here")
    compiled = Sampler(VOCAB).choose(LOGITS, rows_of(choice), logprobs=True)
    monkeypatch.setattr(native, "sampler", lambda vocab: None)
    ours = Sampler(VOCAB).choose(LOGITS, rows_of(choice), logprobs=True)
    np.testing.assert_array_equal(ours.token_L, compiled.token_L)
    np.testing.assert_allclose(ours.logprob_L, compiled.logprob_L, atol=1e-12)
    for name in ("token_L", "logprob_L", "status_L"):
        assert getattr(ours, name).dtype == getattr(compiled, name).dtype
    assert len(Sampler(VOCAB).choose(LOGITS[:0], []).token_L) == 0


@pytest.mark.parametrize("count", [1, 5, 21])
def test_draws_follow_the_distribution(count, way):
    logits = np.log(np.arange(1, count + 1, dtype=np.float32))
    draws = 4000
    rows = [SamplerInput(sample=True, draw=(i + 0.5) / draws) for i in range(draws)]
    found = Sampler(count).choose(np.tile(logits, (draws, 1)), rows)
    counted = np.bincount(found.token_L, minlength=count)
    np.testing.assert_allclose(counted, draws * np.exp(logits) / np.exp(logits).sum(), atol=1.01)


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (SamplerInput(sample=True, top_k=2), {1, 2, 4}),  # all that reach the second highest
        (SamplerInput(sample=True, top_p=0.5), {2, 4}),
        (SamplerInput(sample=True, top_p=0.3), {4}),  # of equals the later ones stay
        (SamplerInput(sample=True, min_p=0.99), {1, 2, 4}),
        (SamplerInput(), {1}),  # and the first is taken where nothing is drawn
        (SamplerInput(context=np.array([1, 2], np.int32), repetition=2.0), {4}),
        (SamplerInput(excluded=np.array([1], np.int32)), {2}),
    ],
)
def test_equal_scores_are_kept_and_taken_in_a_fixed_order(choice, kept, way):
    logits = np.array([0.0, 2.0, 2.0, 0.0, 2.0], np.float32)
    rows = rows_of(choice, 50)
    assert set(Sampler(5).choose(np.tile(logits, (50, 1)), rows).token_L.tolist()) == kept


def test_a_broken_row_has_a_status_and_the_others_their_tokens(way):
    logits = np.tile(LOGITS[0], (6, 1))
    logits[1, 77], logits[2, 3], logits[3] = np.nan, np.inf, -np.inf
    everything = np.arange(VOCAB, dtype=np.int32)
    rows = [SamplerInput(), SamplerInput(), SamplerInput(sample=True), SamplerInput(), SamplerInput(excluded=everything, sample=True),
            SamplerInput(context=np.array([VOCAB], np.int32), repetition=2.0)]  # fmt: skip
    found = Sampler(VOCAB).choose(logits, rows)
    assert found.status_L.tolist() == [0, 1, 1, 1, 2, 3] and {*FAULTS} == {1, 2, 3}
    assert found.token_L[0] == logits[0].argmax()


def test_minus_infinity_excludes_a_token(way):
    logits = np.where(np.arange(9) == 4, 1.0, -np.inf).astype(np.float32)[None]
    found = Sampler(9).choose(logits, [SamplerInput(sample=True, top_p=0.9, draw=0.999)], logprobs=True)
    assert found.token_L.tolist() == [4] and found.logprob_L.tolist() == [0.0]


def test_rows_choose_alike_side_by_side_and_alone(way):
    sampler, rows = Sampler(VOCAB), rows_of(EVERYTHING)
    together = sampler.choose(LOGITS, rows, logprobs=True)
    alone = [sampler.choose(LOGITS[i : i + 1], rows[i : i + 1], logprobs=True) for i in range(len(rows))]
    np.testing.assert_array_equal(together.token_L, [one.token_L[0] for one in alone])
    np.testing.assert_array_equal(together.logprob_L, [one.logprob_L[0] for one in alone])


def test_logits_of_another_shape_or_type_are_refused(way):
    for logits in (LOGITS[:2], LOGITS[:1, :-1], LOGITS[:1].astype(np.float64), LOGITS[:, :1].T[:, :VOCAB]):
        with pytest.raises(ValueError, match="contiguous float32"):
            Sampler(VOCAB).choose(logits, [SamplerInput()])


def test_the_likeliest_token_needs_no_scores_and_is_the_same_with_them():
    none = SamplerInput(excluded=np.array([0], np.int32))
    for row_V in LOGITS:
        row_V = np.where(np.arange(VOCAB) == 0, np.float32(-99), row_V)
        assert choose_one(row_V, SamplerInput(), True) == choose_one(row_V, none, True)


def test_options_become_choices():
    options = SamplingParams(
        sample=True, temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.4, min_new_tokens=3,
    )  # fmt: skip
    made = sampler_input(options, [4, 5, 6], 2, (9, 8), 0.25)
    assert (made.context.tolist(), made.generated, made.excluded.tolist()) == ([4, 5, 6], 2, [9, 8])
    assert (made.sample, made.draw, made.temperature, made.top_k) == (True, 0.25, 0.7, 5)
    assert (made.top_p, made.min_p, made.repetition, made.presence, made.frequency) == (0.8, 0.1, 1.2, 0.3, 0.4)
    plain = sampler_input(SamplingParams(temperature=0.7), [4, 5, 6], 3, (9,))
    assert not (len(plain.context) or len(plain.excluded) or plain.sample or plain.penalised)
