"""Beam search: against a search over whole sequences, under pressure on the cache, and against recorded answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from kit.engine_toys import END, ask, engine_of, idle, prompts
from kit.paged_toy import VOCAB, ToyExecutor, graph, next_logits, prefix

from llmctl.errors import ConfigError
from llmctl.infer.request import BeamOptions

MODEL = graph()


def log_softmax(logits_V):
    shifted = logits_V.astype(np.float64) - logits_V.max()
    return shifted - np.log(np.exp(shifted).sum())


def plain_search(prompt, new, beams, length_penalty=1.0, early=False):
    """The rules once more, over lists of whole sequences: (score, ids, ends) of complete answers, best first."""
    running, finished = [(0.0, [])], []
    for step in range(1, new + 1):
        every = []
        for score, ids in running:
            logprob_V = log_softmax(next_logits(MODEL, [*prompt, *ids]))
            every += [(score + logprob_V[token], [*ids, token]) for token in range(VOCAB)]
        best = sorted(every, key=lambda one: -one[0])[: max(2, 1 + len(END)) * beams]
        for score, ids in best[:beams]:
            if ids[-1] in END:
                finished.append((score / step**length_penalty, ids[:-1], "end"))
            elif step == new:
                finished.append((score / step**length_penalty, ids, "length"))
        finished = sorted(finished, key=lambda one: -one[0])[:beams]
        running = [one for one in best if one[1][-1] not in END][:beams]
        length = new if early == "never" and length_penalty > 0 else step
        full = len(finished) == beams
        if full and (early is True or running[0][0] / length**length_penalty <= finished[-1][0]):
            break
    return finished


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
def test_beams_are_those_of_a_search_over_whole_sequences(early, penalty):
    rules = BeamOptions(beams=3, length_penalty=penalty, early_stopping=early, answers=3)
    requests = [replace(ask(prompt, 12), beams=rules) for prompt in prompts(4, seed=int(penalty) + 7)]
    engine = engine_of(MODEL, ToyExecutor())
    answers = engine.generate(requests)
    for request, found in zip(requests, answers, strict=True):
        expected = plain_search(request.prompt, 12, 3, penalty, early)
        every = [found, *found.others]
        assert [(one.ids, one.finish_reason) for one in every] == [(ids, reason) for _, ids, reason in expected]
        np.testing.assert_allclose([one.score for one in every], [score for score, _, _ in expected], rtol=1e-9)
    assert idle(engine)


@pytest.mark.parametrize("share", [True, False])
def test_beams_that_give_up_their_blocks_find_the_same_answers(share):
    rules = BeamOptions(beams=4, answers=2)
    requests = [replace(ask(prompt, 30, index=i), beams=rules) for i, prompt in enumerate(prompts(3, lengths=(20, 30)))]
    requests += [ask(prompt, 40, min_new_tokens=40) for prompt in prompts(2, seed=9)]
    roomy = engine_of(MODEL, ToyExecutor(), blocks=200)
    executor = ToyExecutor()
    tight = engine_of(MODEL, executor, blocks=18, share=share)
    assert tight.generate(requests) == roomy.generate(requests)
    assert tight.statistics().preemptions > 0 and executor.copies > 0 and idle(tight)


@pytest.mark.parametrize("virtual", [0, 20])
def test_a_search_whose_other_beams_find_no_blocks_waits_for_a_later_step(virtual):
    rules = BeamOptions(beams=2)
    requests = [
        replace(ask(prompt, 30, index=i, min_new_tokens=20), beams=rules if i % 2 else None)
        for i, prompt in enumerate(prompts(6, seed=3 if not virtual else 8, lengths=(1, 25)))
    ]
    pairs = prefix(virtual) if virtual else None
    roomy = engine_of(MODEL, ToyExecutor(), blocks=200, virtual=pairs)
    tight = engine_of(MODEL, ToyExecutor(), blocks=8 if virtual else 7, virtual=pairs, step_tokens=15, most_rows=5)
    original, preempted = tight._scheduler._preempt, []

    def preempt(state):
        preempted.append(state)
        assert len(preempted) < 2000, "a request is admitted and preempted again and again"
        original(state)

    tight._scheduler._preempt = preempt
    assert tight.generate(requests) == roomy.generate(requests)
    assert preempted and idle(tight, virtual)
    assert (tight.statistics().draft_tokens, tight.statistics().accepted_tokens) == (0, 0)


def test_as_many_blocks_as_beams_need_at_most_are_enough():
    for length in range(14, 34, 3):
        request = replace(ask([5] * length, 30), beams=BeamOptions(beams=3))
        executor = ToyExecutor()
        for blocks in range(3, 20):
            engine = engine_of(MODEL, executor, blocks=blocks)
            try:
                engine.add(request)
                break
            except ConfigError:
                pass
        roomy = engine_of(MODEL, ToyExecutor())
        assert engine.generate([request, request]) == roomy.generate([request, request])


def test_broken_logits_end_a_search():
    request = replace(ask([5, 6, 7], 30), beams=BeamOptions(beams=3))
    engine = engine_of(MODEL, ToyExecutor(lambda batch: [0] if batch.kv_position_T.max() == 6 else []))
    found = engine.generate([request])[0]
    assert found.finish_reason == "error" and "is not finite" in found.error and idle(engine)


def test_a_search_that_no_token_may_continue_ends_with_an_error_alone():
    class OnlyEnds(ToyExecutor):
        def run(self, batch):
            logits_LV = super().run(batch)
            logits_LV[batch.sequence_T[batch.logits_indices_L] == 0, len(END) :] = -math.inf
            return logits_LV

    asked = [ask(prompt, 30, min_new_tokens=2) for prompt in prompts(2)]
    found, other = engine_of(MODEL, OnlyEnds()).generate([replace(asked[0], beams=BeamOptions(beams=3)), asked[1]])
    assert found.finish_reason == "error" and found.error == "every token is excluded"
    assert other.ids


def test_a_search_under_way_can_be_cancelled():
    engine = engine_of(MODEL, ToyExecutor())
    number = engine.add(replace(ask([5, 6, 7], 30), beams=BeamOptions(beams=3)))
    for _ in range(5):
        engine.step()
    engine.cancel(number)
    assert [happened.done.finish_reason for happened in engine.step()] == ["cancelled"] and idle(engine)


@pytest.mark.parametrize(
    ("values", "message"),
    [(dict(beams=1), "beams=1"), (dict(beams=2, answers=3), "answers=3"),
     (dict(beams=2, early_stopping="soon"), "early_stopping='soon'"),
     (dict(beams=2, length_penalty=math.inf), "length_penalty=inf")],
)  # fmt: skip
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        BeamOptions(**values)


def test_what_does_not_go_with_beams_is_refused():
    with pytest.raises(ConfigError, match="cannot be combined with sampling"):
        replace(ask([5], sample=True), beams=BeamOptions(beams=2))
    with pytest.raises(ConfigError, match="beams=9 is more than the 8 rows"):
        engine_of(MODEL, ToyExecutor(), most_rows=8).add(replace(ask([5]), beams=BeamOptions(beams=9)))
