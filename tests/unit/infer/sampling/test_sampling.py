"""Choosing tokens: each step against a plain reimplementation, and frequencies of draws."""

import math

import numpy as np
import pytest

from llmctl.errors import ConfigError
from llmctl.infer.sampling import BrokenLogitsError, SamplingParams
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.reference import restrict
from llmctl.infer.sampling.rows import sampler_input
from llmctl.infer.sampling.single import choose, generator_for, penalised

LOGITS = np.array([1.0, 3.0, -2.0, 0.5, 2.9, -1.0], np.float32)


def softmax(scores):
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def kept(**options):
    scores = restrict(LOGITS.astype(np.float64), sampler_input(SamplingParams(sample=True, **options), [], 5, [0]))
    return {i for i, score in enumerate(scores) if score > -math.inf}


def test_greedy_takes_the_likeliest():
    assert choose(LOGITS, [], 0, SamplingParams(), [0], generator_for(SamplingParams(), 0)) == 1


def test_top_k_keeps_the_k_likeliest():
    assert kept(top_k=2) == {1, 4}
    assert kept(top_k=0) == kept(top_k=99) == set(range(6))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.51, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_the_share(share):
    probability = softmax(LOGITS.tolist())
    order = sorted(range(6), key=lambda i: -probability[i])
    expected, total = set(), 0.0
    for i in order:
        if total < share:
            expected.add(i)
        total += probability[i]
    assert kept(top_p=share) == expected


def test_temperature_comes_before_the_share():
    assert kept(top_p=0.6, temperature=0.2) == {1}
    assert len(kept(top_p=0.6, temperature=5.0)) > len(kept(top_p=0.6))


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores():
    scores = penalised(LOGITS, [1, 2, 2, 1], 0, SamplingParams(repetition_penalty=2.0), [])
    np.testing.assert_allclose(scores, [1.0, 1.5, -4.0, 0.5, 2.9, -1.0], rtol=1e-6)


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    probability = softmax(LOGITS.tolist())
    for share in (0.01, 0.1, 0.5, 1.0):
        assert kept(min_p=share) == {
            i for i, p in enumerate(probability) if p >= share * max(probability) * (1 - 1e-12)
        }
    assert kept(min_p=0.0) == set(range(6))


def test_presence_and_frequency_count_tokens_of_the_answer_only():
    options = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    scores = penalised(LOGITS, [1, 1, 0, 3, 3, 4], 3, options, [])
    np.testing.assert_allclose(scores, [1.0, 3.0, -2.0, 0.5 - 1.0, 2.9 - 0.75, -1.0], rtol=1e-6)
    np.testing.assert_array_equal(penalised(LOGITS, [1, 1, 0], 0, options, []), LOGITS.astype(np.float64))


@pytest.mark.parametrize("broken", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_from_broken_logits_nothing_is_chosen(broken):
    with pytest.raises(BrokenLogitsError, match="is not finite"):
        choose(np.array(broken, np.float32), [], 0, SamplingParams(), [], generator_for(SamplingParams(), 0))
    with pytest.raises(BrokenLogitsError, match="every token is excluded"):
        options = SamplingParams(min_new_tokens=1)
        choose(np.ones(2, np.float32), [], 0, options, [0, 1], generator_for(options, 0))


def test_the_lowest_temperature_takes_the_likeliest_token_and_an_infinite_score_none():
    for options in (
        SamplingParams(sample=True, temperature=5e-324),
        SamplingParams(sample=True, temperature=1e-300, top_p=0.9),
    ):
        assert choose(LOGITS, [], 0, options, [], generator_for(options, 0)) == 1
    options = SamplingParams(sample=True, repetition_penalty=5e-324)
    with pytest.raises(BrokenLogitsError, match="not finite after the penalties"), np.errstate(over="ignore"):
        choose(LOGITS, [1], 0, options, [], generator_for(options, 0))


def test_log_probabilities_of_the_chosen_and_the_likeliest():
    expected = [math.log(p) for p in softmax(LOGITS.tolist())]
    found = token_logprob(LOGITS, 3, SamplingParams(logprobs=2, sample=True, temperature=9.0))
    assert found.token == 3 and [token for token, _ in found.top] == [1, 4]
    np.testing.assert_allclose([found.logprob, *(p for _, p in found.top)], [expected[i] for i in (3, 1, 4)], rtol=1e-6)
    assert (
        token_logprob(LOGITS, 3, SamplingParams()) is None
        and token_logprob(LOGITS, 3, SamplingParams(logprobs=0)).top == ()
    )


def test_no_end_token_before_the_least_length():
    options = SamplingParams(min_new_tokens=3)
    assert penalised(LOGITS, [], 2, options, [1, 4])[[1, 4]].tolist() == [-math.inf, -math.inf]
    assert penalised(LOGITS, [], 3, options, [1, 4])[1] == 3.0


def test_draws_have_the_frequencies_of_the_distribution():
    options = SamplingParams(sample=True, temperature=0.7, top_k=4, seed=3)
    draws = generator_for(options, 0)
    counts = np.bincount([choose(LOGITS, [], 0, options, [], draws) for _ in range(4000)], minlength=6)
    order = np.argsort(-LOGITS)[:4]
    expected = dict(zip(order.tolist(), softmax((LOGITS[order] / 0.7).tolist()), strict=True))
    for token in range(6):
        share = expected.get(token, 0.0)
        assert abs(counts[token] / 4000 - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


def test_draws_depend_on_seed_and_place_only():
    options = SamplingParams(seed=1)
    assert generator_for(options, 2).random() == generator_for(options, 2).random()
    assert len({generator_for(SamplingParams(seed=s), i).random() for s in (1, 2) for i in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("min_new_tokens", 999), ("temperature", 0.0), ("temperature", math.nan), ("top_k", -1),
     ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0), ("repetition_penalty", math.inf), ("seed", -1),
     ("min_p", -0.1), ("min_p", 1.1), ("presence_penalty", math.inf), ("frequency_penalty", math.nan), ("logprobs", -1)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value} must be"):
        SamplingParams(**{name: value})


def test_stop_strings_are_one_text_or_several_and_none_is_empty():
    assert SamplingParams(stop="###").stop == ("###",) and SamplingParams(stop=["a", "b"]) == SamplingParams(
        stop=("a", "b")
    )
    for empty in ("", ["a", ""], [3]):
        with pytest.raises(ConfigError, match="must be texts that are not empty"):
            SamplingParams(stop=empty)


def test_parameters_that_need_sampling_are_named():
    assert SamplingParams(top_k=3, min_p=0.1, seed=4).without_effect == ["top_k", "min_p"]
    assert not SamplingParams().without_effect and not SamplingParams(top_k=3, sample=True).without_effect
