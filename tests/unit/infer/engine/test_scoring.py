"""Log-probabilities of given tokens by the engine, among other requests, over a toy model that shows what was read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.engine_toys import CLOSE, END, MARK, MODELS, ask, engine_of, idle, prompts
from kit.paged_toy import ToyExecutor, answer, next_logits, prefix

from llmctl.errors import ConfigError
from llmctl.infer.request import BeamOptions, Request
from llmctl.infer.sampling.logprobs import log_softmax


def scored(model, request, virtual=None):
    """Tokens and log-probabilities, each from a whole sequence without a cache."""
    ids = list(request.prompt)
    return [
        (ids[i], log_softmax(next_logits(model, ids[:i], request.adapter, virtual))[ids[i]])
        for i in range(request.score_from, len(ids))
    ]


def same(found, expected):
    assert found.finish_reason == "scored" and not found.ids
    assert [row.token for row in found.logprobs] == [token for token, _ in expected]
    np.testing.assert_allclose([row.logprob for row in found.logprobs], [logprob for _, logprob in expected])


@given(
    name=st.sampled_from(["causal", "window"]), lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    blocks=st.integers(7, 40), budget=st.integers(9, 70), virtual=st.sampled_from([0, 5, 16]), share=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_scores_do_not_depend_on_what_else_runs(name, lengths, blocks, budget, virtual, share, seed):
    model, tokens = MODELS[name], prefix(virtual) if virtual else None
    engine = engine_of(model, ToyExecutor(), blocks + 2, tokens, step_tokens=budget, most_rows=8, share=share)
    requests = []
    for number, length in enumerate(lengths):
        (ids,) = prompts(1, seed, (length, length + 1))
        requests.append(Request(prompt=ids, score_from=min(1 + number, length - 1), adapter=number % 3 - 1))
        requests.append(ask([*ids[:20], 9], 9, index=number, draft=number % 2 * 3))
    found = engine.generate(requests)
    for request, made in zip(requests, found, strict=True):
        if request.score_from is None:
            assert made == answer(model, request, END, tokens)
        else:
            same(made, scored(model, request, tokens))
    assert idle(engine, virtual)


def test_a_text_that_is_in_the_cache_is_scored_as_a_new_one():
    engine = engine_of(MODELS["causal"], ToyExecutor())
    (ids,) = prompts(1, 3, (70, 71))
    first, again = (
        engine.generate([Request(prompt=ids, score_from=1)]),
        engine.generate([Request(prompt=ids, score_from=40)]),
    )
    same(first[0], scored(MODELS["causal"], Request(prompt=ids, score_from=1)))
    assert again[0].logprobs == first[0].logprobs[39:]


def test_what_follows_a_context_is_scored():
    model = MODELS["contexts"]
    request = Request(prompt=[9, 8, MARK, 11, CLOSE, 12, 13, 20], score_from=5)
    same(engine_of(model, ToyExecutor()).generate([request])[0], scored(model, request))
    with pytest.raises(
        ConfigError, match="score_from=4 must be above 4: tokens of the bidirectional prefix see those after them"
    ):
        engine_of(model, ToyExecutor()).add(Request(prompt=request.prompt, score_from=4))


def test_a_text_may_fill_all_positions_but_for_the_last_token_which_is_not_read():
    from kit.paged_toy import graph

    model = graph(max_positions=29)
    (ids,) = prompts(1, 0, (30, 31))
    same(engine_of(model, ToyExecutor()).generate([Request(prompt=ids, score_from=1)])[0],
         scored(model, Request(prompt=ids, score_from=1)))  # fmt: skip
    with pytest.raises(
        ConfigError, match="the text has 31 tokens; that is over the 29 positions of the model. Shorten it"
    ):
        engine_of(model, ToyExecutor()).add(Request(prompt=[*ids, 5], score_from=1))


def test_broken_logits_and_cancelling_end_a_score():
    engine = engine_of(
        MODELS["causal"], ToyExecutor(broken=lambda batch: [1] if len(batch.logits_indices_L) > 1 else [])
    )
    (made,) = engine.generate([Request(prompt=[5, 6, 7, 8], score_from=1)])
    assert made.finish_reason == "error" and "is not finite" in made.error and len(made.logprobs) == 1 and idle(engine)
    engine = engine_of(MODELS["causal"], ToyExecutor())
    engine.cancel(engine.add(Request(prompt=[5, 6, 7], score_from=1)))
    assert engine.step()[0].done.finish_reason == "cancelled" and idle(engine)


@pytest.mark.parametrize(
    "options", [{"score_from": 0}, {"score_from": 3}, {"score_from": 1, "beams": BeamOptions(beams=2)}]
)
def test_scores_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="must be between 1 and 2, without beam search"):
        Request(prompt=[5, 6, 7], **options)
