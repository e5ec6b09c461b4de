"""Wrong requests and errors inside a step end the request that they belong to, and nothing else."""

import math
import threading

import numpy as np
import pytest
from kit.engine_toys import END, ask, engine_of, idle
from kit.paged_toy import ToyExecutor, answer, graph

from llmctl.errors import ConfigError
from llmctl.infer.engine.async_engine import AsyncEngine
from llmctl.infer.engine.generation import GenerationState
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.logprobs import likeliest, log_softmax, token_logprob

MODEL = graph()


@pytest.mark.parametrize(
    "name, value",
    [
        *((name, value) for name in ("max_new_tokens", "top_k", "logprobs", "seed") for value in (1.5, True, "2")),
        *((name, value) for name in ("temperature", "top_p", "min_p") for value in (True, "0.5", None)),
        ("min_new_tokens", None),
        ("sample", 1),
        ("ignore_eos", "yes"),
        ("stop_token_ids", [1.0]),
        ("logit_bias", {True: 1.0}),
        ("logit_bias", {4: math.inf}),
        ("logit_bias", {4: "1"}),
        ("temperature", math.nan),
    ],
)
def test_a_parameter_of_another_type_is_refused_where_it_is_given(name, value):
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    "given", [{"adapter": -0.5}, {"draft": 1.5}, {"index": True}, {"index": -1}, {"score_from": 1.0}, {"adapter": None}]
)
def test_a_field_of_a_request_of_another_type_is_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        Request(prompt=[4, 5, 6], **given)


@pytest.mark.parametrize("prompt", [[1.0, 2.5], [True, False], ["4"], [4, None]])
def test_a_prompt_holds_token_ids(prompt):
    with pytest.raises(ConfigError, match="list of token ids"):
        Request(prompt=prompt)
    assert Request(prompt=np.array([4, 5])).prompt is not None


@pytest.mark.parametrize("given", [{"stop_token_ids": [10**6]}, {"logit_bias": {-1: 1.0}}])
def test_tokens_that_options_name_are_of_the_vocabulary(given):
    with pytest.raises(ConfigError, match="the model knows those from 0"):
        engine_of(MODEL, ToyExecutor()).add(ask([5, 6], **given))


@pytest.mark.parametrize("method", ["sampler_inputs", "process_output"])
def test_an_error_in_a_step_ends_only_its_request(monkeypatch, method):
    original = getattr(GenerationState, method)

    def fail(state, *args):
        if state.request.index == 1 and state.num_emitted == 2:
            raise KeyError("broken")
        return original(state, *args)

    monkeypatch.setattr(GenerationState, method, fail)
    engine = engine_of(MODEL, ToyExecutor())
    requests = [ask([5, 6, 7 + index], 8, index=index, min_new_tokens=8) for index in range(3)]
    found = engine.generate(requests)
    expected = [answer(MODEL, request, END) for request in requests]
    assert [found[0], found[2]] == [expected[0], expected[2]] and idle(engine)
    assert found[1].finish_reason == "error" and "KeyError: 'broken'" in found[1].error
    assert found[1].ids == expected[1].ids[:2]


def test_submit_and_cancel_return_while_a_step_is_computed():
    class Held(ToyExecutor):
        entered, go = threading.Event(), threading.Event()

        def run(self, batch):
            self.entered.set()
            assert self.go.wait(20)
            return super().run(batch)

    steps = []
    engine = AsyncEngine(engine_of(MODEL, Held()), lambda: steps.append(len(told)))
    told = []

    class Sink:
        def put(self, event):
            told.append(event)

    first = engine.submit(ask([5, 6], 4, min_new_tokens=4))
    assert Held.entered.wait(20)
    second = engine.submit(ask([7, 8], 3, min_new_tokens=3), Sink())
    gone = engine.submit(ask([8, 9], 3))
    engine.cancel(gone)
    with pytest.raises(ConfigError, match="prompt is empty"):
        engine.submit(ask([]))
    assert not second.number.done()
    Held.go.set()
    assert gone.result().finish_reason == "cancelled" and len(first.result().ids) == 4
    engine.stop()
    assert [event.token is None for event in told] == [False, False, False, True] and steps[-1] == 4


def test_end_tokens_of_a_request_and_biases():
    engine = engine_of(MODEL, ToyExecutor())
    whole = engine.generate([ask([5, 6, 7], 8, min_new_tokens=8)])[0].ids
    stop = engine.generate([ask([5, 6, 7], 8, stop_token_ids=[whole[3]], ignore_eos=True)])[0]
    first = whole.index(whole[3])
    assert stop.ids == whole[:first] and stop.finish_reason == "end"
    ends = engine.generate([ask([5, 6, 7], 8, ignore_eos=True, logit_bias={END[0]: 1e6})])[0]
    assert ends.ids == [END[0]] * 8 and ends.finish_reason == "length"
    both = engine.generate([ask([5, 6, 7], 8, min_new_tokens=8), ask([5, 6, 7], 3, logit_bias={9: 1e6}, logprobs=1)])
    assert both[0].ids == whole and both[1].ids == [9, 9, 9]
    assert both[1].logprobs[0].top[0] == (whole[0], both[1].logprobs[0].top[0][1]) and both[1].logprobs[0].logprob < 0


def test_an_answer_tells_how_much_of_its_prompt_was_cached():
    engine = engine_of(MODEL, ToyExecutor())
    prompt = [5 + index % 9 for index in range(80)]
    first, second = (engine.generate([ask(prompt, 2)])[0] for _ in range(2))
    assert first.cached_tokens == 0 and 0 < second.cached_tokens < 80 and first == second


@pytest.mark.parametrize("vocab, count", [(7, 3), (7, 20), (128, 1), (1000, 5), (1000, 7), (1000, 8), (5003, 20)])
def test_the_likeliest_tokens_are_those_of_a_stable_sort(vocab, count):
    for seed in range(5):
        logits = np.random.default_rng(seed).integers(-9, 9, vocab).astype(np.float32)
        assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()
    scores = log_softmax(logits)
    found = token_logprob(logits, 3, SamplingParams(logprobs=count))
    assert found.logprob == pytest.approx(scores[3], abs=1e-12)
    assert [score for _, score in found.top] == pytest.approx(sorted(scores, reverse=True)[:count], abs=1e-12)


def test_scored_prompts_have_the_likeliest_tokens_too():
    request = Request(prompt=[5, 6, 7, 8], score_from=1, options=SamplingParams(logprobs=2))
    scored = engine_of(MODEL, ToyExecutor()).generate([request])[0].logprobs
    assert [one.token for one in scored] == [6, 7, 8] and all(len(one.top) == 2 for one in scored)
