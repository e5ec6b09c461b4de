"""Tokens chosen from logits, against the same written out in numpy, against distributions, and with broken rows among good ones."""

import dataclasses

import numpy as np
import pytest
from kit.sampling_forms import FORMS, LOGITS, ROWS, SAID, VOCAB

from llmctl.infer.sampling.reference import choose_one
from llmctl.infer.sampling.rows import FAULTS, SamplerInput, SamplerOutput
from llmctl_ops import library, sampling


class Sampler(sampling.Sampler):
    """The kernels, with names for what they give."""

    def choose(self, *given, **options):
        return SamplerOutput(*super().choose(*given, **options))


def _rows(choice, count=ROWS):
    return [dataclasses.replace(choice, draw=draw) for draw in np.linspace(0, 1, count, endpoint=False).tolist()]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_chooses_what_numpy_does(name, level):
    rows = _rows(FORMS[name])
    found = Sampler(VOCAB).choose(LOGITS, rows, logprobs=True)
    expected = [choose_one(*pair, logprobs=True) for pair in zip(LOGITS, rows, strict=True)]
    np.testing.assert_array_equal(found.token_L, [token for token, *_ in expected])
    np.testing.assert_allclose(found.logprob_L, [logprob for _, logprob, _ in expected], atol=1e-12)
    assert not found.status_L.any()


def test_without_a_library_there_is_no_sampler(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: library.open_library(library.FILE, "reference"))
    with pytest.raises(RuntimeError, match="no compiled kernels: LLMCTL_OPS=reference"):
        Sampler(VOCAB)


@pytest.mark.parametrize("count", [1, 5, 16, 21])
def test_draws_follow_the_distribution(count, level):
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
        (SamplerInput(sample=True, excluded=np.array([4, 1], np.int32), top_k=1), {2}),
        (SamplerInput(), {1}),  # and the first is taken where nothing is drawn
        (SamplerInput(context=np.array([1, 2], np.int32), repetition=2.0), {4}),
        (SamplerInput(context=np.array([1, 2, 2], np.int32), generated=2, presence=0.1), {1}),
        (SamplerInput(context=np.array([2, 1, 1], np.int32), generated=3, frequency=0.1), {4}),
    ],
)
def test_equal_scores_are_kept_and_taken_in_a_fixed_order(choice, kept, level):
    logits = np.array([0.0, 2.0, 2.0, 0.0, 2.0], np.float32)
    rows = _rows(choice, 50)
    assert set(Sampler(5).choose(np.tile(logits, (50, 1)), rows).token_L.tolist()) == kept
    assert {choose_one(logits, row)[0] for row in rows} == kept


BROKEN = {
    1: [
        ("nan", SamplerInput()),
        ("inf", SamplerInput(sample=True)),
        ("all -inf", SamplerInput()),
        ("good", SamplerInput(sample=True, context=SAID, repetition=5e-324)),
    ],
    2: [
        ("good", SamplerInput(excluded=np.arange(VOCAB, dtype=np.int32))),
        ("one", SamplerInput(sample=True, excluded=SAID[:1])),
    ],
    3: [
        ("good", SamplerInput(context=np.array([VOCAB], np.int32), repetition=2.0)),
        ("good", SamplerInput(excluded=np.array([-1], np.int32))),
    ],
}


@pytest.mark.parametrize("status", BROKEN)
def test_a_broken_row_has_a_status_and_the_others_their_tokens(status, level):
    broken = LOGITS[0].copy()
    for kind, choice in BROKEN[status]:
        row = {"good": broken, "all -inf": np.full_like(broken, -np.inf)}.get(kind, broken.copy())
        if kind in ("nan", "inf"):
            row[77] = float(kind)
        elif kind == "one":
            row = np.where(np.arange(VOCAB) == SAID[0], row, -np.inf).astype(np.float32)
        found = Sampler(VOCAB).choose(np.stack([LOGITS[1], row, LOGITS[2]]), [SamplerInput(), choice, SamplerInput()])
        assert found.status_L.tolist() == [0, status, 0] and status in FAULTS
        assert found.token_L[[0, 2]].tolist() == LOGITS[1:3].argmax(1).tolist()
        assert choose_one(row, choice)[2] == status


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.6, 0.95])
def test_the_nucleus_ends_at_the_right_token_however_near_the_scores_are(top_p, level):
    random, count = np.random.default_rng(1), 2999  # a prime: no part of it falls on a token
    rows = {
        "all alike": np.zeros(count),
        "two scores": random.integers(0, 2, count) * 1e-30,
        "steps that shrink": 0.05 * 0.5 ** random.integers(0, 140, count).astype(float),
        "smallest numbers": random.integers(0, 9, count) * 1e-45,
        "far apart": random.integers(0, 3, count) * -1e30,
        "a narrow and a wide part": np.where(
            random.random(count) < 0.5, random.normal(0, 1e-4, count), -random.random(count)
        ),
    }
    logits = np.stack(list(rows.values())).astype(np.float32)
    for draw in (0.0, 0.2, 0.41, 0.77, 0.999):
        choice = SamplerInput(sample=True, top_p=top_p, draw=draw)
        found = Sampler(count).choose(logits, [choice] * len(rows)).token_L
        assert dict(zip(rows, found.tolist(), strict=True)) == {
            name: choose_one(row, choice)[0] for name, row in zip(rows, logits, strict=True)
        }


def test_minus_infinity_excludes_a_token(level):
    logits = np.where(np.arange(9) == 4, 1.0, -np.inf).astype(np.float32)[None]
    found = Sampler(9).choose(logits, [SamplerInput(sample=True, top_p=0.9, draw=0.999)], logprobs=True)
    assert found.token_L.tolist() == [4] and found.logprob_L.tolist() == [0.0]


def test_rows_choose_alike_side_by_side_and_alone(level):
    sampler, rows = Sampler(VOCAB), _rows(FORMS["everything"])
    together = sampler.choose(LOGITS, rows, logprobs=True)
    alone = [sampler.choose(LOGITS[i : i + 1], rows[i : i + 1], logprobs=True) for i in range(len(rows))]
    np.testing.assert_array_equal(together.token_L, [one.token_L[0] for one in alone])
    np.testing.assert_array_equal(together.logprob_L, [one.logprob_L[0] for one in alone])


def test_logits_of_another_shape_or_type_are_refused(level):
    for logits in (LOGITS[:2], LOGITS[:1, :-1], LOGITS[:1].astype(np.float64), LOGITS[:, :1].T[:, :VOCAB]):
        with pytest.raises(ValueError, match="contiguous float32"):
            Sampler(VOCAB).choose(logits, [SamplerInput()])
