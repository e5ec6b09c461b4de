"""Continuous batching over a toy model whose answers show which places of the cache were read."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kit.engine_toys import CLOSE, END, MARK, MODELS, ask, engine_of, idle, prompts
from kit.paged_toy import VOCAB, ToyExecutor, answer, graph, next_logits, prefix

from llmctl.card.decoder_spec import Rope
from llmctl.errors import ConfigError, DataError
from llmctl.infer.executors.base import BLOCK

OPTIONS = st.one_of(
    st.just(dict()),
    st.fixed_dictionaries(
        dict(sample=st.just(True), temperature=st.sampled_from([0.7, 3.0]), top_k=st.sampled_from([0, 5]))
    ),
    st.just(dict(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, min_new_tokens=2)),
)


@st.composite
def runs(draw):
    """A model, an engine's sizes and requests with their arrivals and cancellations."""
    kind = draw(st.sampled_from(sorted(MODELS)))
    virtual = draw(st.sampled_from([0, 0, 5, 16, 21]))
    begins = [[7] * 20, list(range(4, 24)), [9, 8] * 12]
    requests = []
    for index in range(draw(st.integers(2, 8))):
        prompt = draw(st.sampled_from(begins))[: draw(st.integers(0, 24))]
        prompt = prompt + draw(st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=20))
        if kind == "contexts":
            prompt = [*prompt[:-2], MARK, CLOSE, *prompt[-2:]] if draw(st.booleans()) else [*prompt, MARK, CLOSE]
        new = draw(st.sampled_from([1, 5, 20, 33]))
        options = {key: value for key, value in draw(OPTIONS).items() if key != "min_new_tokens" or value <= new}
        request = ask(
            prompt, new, index=index, adapter=draw(st.sampled_from([-1, -1, 0, 1])),
            draft=draw(st.sampled_from([0, 0, 3])), seed=draw(st.integers(0, 2)), **options,
        )  # fmt: skip
        requests.append((draw(st.integers(0, 8)), request, draw(st.sampled_from([None, None, 0, 3, 15]))))
    rows = draw(st.integers(2, 6))
    sizes = dict(
        blocks=draw(st.integers(3, 9)) + -(-virtual // BLOCK), share=draw(st.booleans()), most_rows=rows,
        step_tokens=rows + draw(st.integers(48 if kind == "contexts" else 1, 60)),
    )  # fmt: skip
    return MODELS[kind], draw(st.booleans()), virtual, sizes, requests


def first_always_progresses(engine):
    """Checks every step: the first request progresses, and so does every answer that keeps its blocks."""
    scheduler = engine._scheduler
    original = scheduler.schedule

    def schedule():
        growing = [one for s in scheduler.running for one in s.sequences if one.pending == 1 and one.block_table]
        first = next(iter([*scheduler.running, *scheduler.waiting]), None)
        chunks = original()
        assert first is None or first in [chunk.state for chunk in chunks]
        assert {one for one in growing if one.block_table} <= {chunk.sequence for chunk in chunks}
        return chunks

    scheduler.schedule = schedule


@settings(max_examples=80, deadline=None)
@given(runs())
def test_answers_do_not_depend_on_what_else_runs(run):
    model, forgetful, virtual, sizes, requests = run
    pairs = prefix(virtual) if virtual else None
    executor = ToyExecutor(forgetful=forgetful)
    engine = engine_of(model, executor, virtual=pairs, **sizes)
    first_always_progresses(engine)
    numbers, done, told, clock = {}, {}, {}, 0
    while clock < 9 or engine.busy:
        for place, (arrival, request, _) in enumerate(requests):
            if arrival == clock:
                needed = -(-(virtual + len(request.prompt) + request.options.max_new_tokens - 1) // BLOCK)
                if needed - virtual // BLOCK > sizes["blocks"] - -(-virtual // BLOCK):
                    with pytest.raises(ConfigError, match="the cache has"):
                        engine.add(request)
                else:
                    numbers[engine.add(request)] = place
        for number, place in numbers.items():
            if requests[place][2] is not None and requests[place][0] + requests[place][2] == clock:
                engine.cancel(number)
        for happened in engine.step():
            assert happened.id not in done
            if happened.done:
                done[happened.id] = happened.done
            else:
                told.setdefault(happened.id, []).append(happened.token)
        clock += 1
        assert clock < 2000
    assert set(done) == set(numbers) and idle(engine, virtual)
    for number, place in numbers.items():
        assert done[number].ids == told.get(number, [])
        alone = answer(model, requests[place][1], END, pairs, forgetful)
        if done[number].finish_reason == "cancelled":
            assert done[number].ids == alone.ids[: len(done[number].ids)]
        else:
            assert done[number] == alone
    state = engine.statistics()
    event(f"preempted: {min(state.preemptions, 3)}, accepted: {min(state.accepted_tokens, 3)}")


def test_blocks_run_out_and_the_latest_is_computed_again():
    model, executor = MODELS["causal"], ToyExecutor()
    engine = engine_of(model, executor, blocks=8, share=False)
    requests = [ask(prompt, 40, index=i, min_new_tokens=40) for i, prompt in enumerate(prompts(4, lengths=(10, 30)))]
    answers = engine.generate(requests)
    assert answers == [answer(model, request, END) for request in requests]
    assert engine.statistics().preemptions > 0 and idle(engine)


def test_memory_is_little_more_than_the_tokens_held():
    model = MODELS["causal"]
    engine = engine_of(model, ToyExecutor(), blocks=1024)
    requests = [ask(prompt, 40, min_new_tokens=40) for prompt in prompts(32, lengths=(40, 400))]
    for request in requests:
        engine.add(request)
    most = 0
    while engine.busy:
        engine.step()
        state = engine.statistics()
        if state.running == 32:
            assert state.used_blocks * BLOCK <= 1.1 * state.used_positions
            most = max(most, state.used_positions)
    assert most > sum(len(request.prompt) for request in requests) and idle(engine)


def test_equal_beginnings_are_computed_once():
    model, executor = MODELS["causal"], ToyExecutor()
    engine = engine_of(model, executor)
    begin = prompts(1, lengths=(50, 51))[0]
    requests = [ask([*begin, *end], 5) for end in prompts(6, seed=2, lengths=(4, 9))]
    first = engine.generate(requests[:1])
    computed = engine.statistics().computed_tokens
    rest = engine.generate(requests[1:])
    assert first + rest == [answer(model, request, END) for request in requests]
    new = sum(len(request.prompt) - 48 + max(0, len(got.ids) - (got.finish_reason == "length"))
              for request, got in zip(requests[1:], rest, strict=True))  # fmt: skip
    assert engine.statistics().computed_tokens - computed == new


def test_of_a_prompt_that_is_known_as_a_whole_its_last_token_is_computed():
    model, executor = MODELS["causal"], ToyExecutor()
    engine = engine_of(model, executor)
    request = ask(prompts(1, lengths=(48, 49))[0], 1)
    assert engine.generate([request]) == engine.generate([request]) == [answer(model, request, END)]
    assert [len(step.ids_T) for step in executor.steps] == [48, 16]


def test_of_a_beginning_its_last_blocks_are_given_up_first():
    model = MODELS["causal"]
    engine = engine_of(model, ToyExecutor(), blocks=6)
    long, short = prompts(1, lengths=(81, 82))[0], prompts(1, seed=1, lengths=(30, 31))[0]
    for prompt in (long, short):
        engine.generate([ask(prompt, 1)])
    before = engine.statistics().computed_tokens
    engine.generate([ask(long, 1)])
    assert engine.statistics().computed_tokens - before == 81 - 64


@pytest.mark.parametrize("change", [dict(adapter=1), dict()], ids=["adapter", "context"])
def test_what_depends_on_more_than_the_tokens_before_is_not_shared(change):
    model = MODELS["causal" if change else "contexts"]
    begin = prompts(1, lengths=(40, 41))[0]
    pair = [ask([*begin, 5, MARK, CLOSE], 5), ask([*begin, 5 if change else 6, MARK, CLOSE], 5)]
    pair[1] = replace(pair[1], **change)
    engine = engine_of(model, ToyExecutor())
    got = [engine.generate([request])[0] for request in pair]
    assert got == [answer(model, request, END) for request in pair] and got[0] != got[1]
    assert engine.statistics().computed_tokens >= 2 * 43


def test_the_longest_unused_beginning_is_given_up_first():
    model, executor = MODELS["causal"], ToyExecutor()
    engine = engine_of(model, executor, blocks=8)
    old, new, big = prompts(3, lengths=(33, 34))
    for prompt in (old, new):
        engine.generate([ask(prompt, 1)])
    engine.generate([ask([*big, *big], 1)])
    before = engine.statistics().computed_tokens
    engine.generate([ask(new, 1)])
    assert engine.statistics().computed_tokens - before == 1
    before = engine.statistics().computed_tokens
    engine.generate([ask(old, 1)])
    assert engine.statistics().computed_tokens - before > 1


def test_a_long_prompt_does_not_hold_up_answers_and_is_not_held_up():
    engine = engine_of(MODELS["causal"], ToyExecutor(), blocks=80, step_tokens=24, most_rows=8)
    short = [engine.add(ask(prompt, 40, min_new_tokens=40)) for prompt in prompts(7, lengths=(4, 5))]
    engine.step()
    engine.step()
    long = engine.add(ask(prompts(1, lengths=(600, 601))[0], 2))
    steps, tokens = 0, dict.fromkeys(short, 0)
    while long in [state.id for state in (*engine._scheduler.running, *engine._scheduler.waiting)] and steps < 200:
        for happened in engine.step():
            tokens[happened.id] = tokens.get(happened.id, 0) + (happened.token is not None)
        steps += 1
    assert steps == -(-600 // (24 - 7)) + 1
    assert all(tokens[number] == min(steps, 40 - 2) for number in short)


def test_a_request_with_broken_logits_fails_alone():
    model = MODELS["causal"]
    bad, *good = [ask(prompt, 8, index=i, min_new_tokens=8) for i, prompt in enumerate(prompts(4, lengths=(5, 9)))]

    def broken(batch):
        return [
            i
            for i, t in enumerate(batch.logits_indices_L)
            if batch.kv_position_T[t] == len(bad.prompt) + 1 and batch.sequence_T[t] == 0
        ]

    engine = engine_of(model, ToyExecutor(broken))
    answers = engine.generate([bad, *good])
    whole = answer(model, bad, END)
    assert answers[0].finish_reason == "error" and "highest logit is not finite" in answers[0].error
    assert answers[0].ids == whole.ids[:2]
    assert answers[1:] == [answer(model, request, END) for request in good] and idle(engine)


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [([], {}, "prompt is empty"), ([4, VOCAB], {}, "token 24; the model knows those from 0 to 23"),
     ([4] * 90, {}, "over the 100 positions of the model.* max_new_tokens to 10 or less"),
     ([4] * 85, {}, "needs 6 blocks of 16 tokens, and the cache has 5"),
     ([4], dict(adapter=2), "adapter index 2 is out of range: 2 are loaded; -1 is none")],
)  # fmt: skip
def test_what_can_never_be_answered_is_refused_at_once_and_others_are_answered(prompt, fields, message):
    model = graph(max_positions=100)
    engine = engine_of(model, ToyExecutor(), blocks=5)
    with pytest.raises(ConfigError, match=message):
        engine.add(ask(prompt, **fields))
    good = ask([5, 6, 7])
    answers = engine.generate([good, ask(prompt, **fields), good])
    assert answers[0] == answers[2] == answer(model, good, END)
    assert answers[1].finish_reason == "error" and answers[1].ids == [] and idle(engine)


def test_sequences_beyond_fixed_rotations_are_sent_to_the_dynamic_engine():
    rope = Rope(rotary_dim=2, frequencies=(1.0,), max_stable_length=20)
    engine = engine_of(graph(rope=rope, max_positions=20), ToyExecutor(), virtual=prefix(4))
    with pytest.raises(ConfigError, match="over the 16 positions .* longer sequences need the dynamic engine"):
        engine.add(ask([4] * 5, 12))
    engine.add(ask([4] * 5, 11))


def test_a_prompt_without_its_marks_is_refused():
    engine = engine_of(MODELS["contexts"], ToyExecutor())
    with pytest.raises(DataError, match="no token 2; prompts of this model end with 2, then 3"):
        engine.add(ask([5, CLOSE]))
    with pytest.raises(DataError, match="no token 3"):
        engine.add(ask([5, MARK]))


def test_a_context_waits_for_a_step_that_takes_it_whole_and_one_that_no_step_takes_is_refused():
    model, executor = MODELS["contexts"], ToyExecutor()
    engine = engine_of(model, executor, step_tokens=40, most_rows=4)
    requests = [ask([*prompt, MARK, CLOSE, 5, 6, 7, 8, 9]) for prompt in prompts(3, lengths=(30, 36))]
    assert engine.generate(requests) == [answer(model, request, END) for request in requests]
    assert all(len(step.ids_T) <= 40 for step in executor.steps)
    with pytest.raises(
        ConfigError, match="bidirectional prefix has 38 tokens; .* room for 37. .* step_tokens to 41 or more"
    ):
        engine.add(ask([*[4] * 37, MARK, CLOSE]))


def test_callbacks_see_every_event_and_may_end_or_cancel():
    model, events = MODELS["causal"], []
    whole = answer(model, ask([5, 6, 7], 20, min_new_tokens=20), END)

    def stop(happened):
        events.append(happened)
        return len(events) == 3

    engine = engine_of(model, ToyExecutor())
    got = engine.generate([ask([5, 6, 7], 20, min_new_tokens=20, on_event=stop)])[0]
    assert got.ids == whole.ids[:3] and got.finish_reason == "stop"
    assert [happened.token for happened in events] == [*whole.ids[:3], None] and events[-1].done == got

    def cancel(happened):
        if happened.token is not None:
            engine.cancel(happened.id)

    got = engine.generate([ask([5, 6, 7], 20, min_new_tokens=20, on_event=cancel)])[0]
    assert got.ids == whole.ids[:1] and got.finish_reason == "cancelled" and idle(engine)


def test_an_exception_of_a_callback_ends_its_request_alone():
    model, calls = MODELS["causal"], []

    def fail(happened):
        calls.append(happened)
        if happened.token is not None:
            raise KeyError("lost")

    engine = engine_of(model, ToyExecutor())
    engine.add(ask([5, 6, 7], 20, on_event=fail))
    other = ask([8, 9], 20)
    engine.add(other)
    ends = []
    while engine.busy:
        ends += [happened.done for happened in engine.step() if happened.done]
    assert ends[0] == calls[-1].done and ends[0].finish_reason == "error" and "KeyError" in ends[0].error
    assert ends[1:] == [answer(model, other, END)] and idle(engine)
    with pytest.raises(KeyError, match="lost"):
        engine.generate([other, ask([5, 6, 7], 20, on_event=fail)])


def test_guesses_are_accepted_and_change_nothing():
    model = MODELS["one token"]
    plain, guessing = ToyExecutor(forgetful=True), ToyExecutor(forgetful=True)
    requests = [ask(prompt, 60, index=i, min_new_tokens=60) for i, prompt in enumerate(prompts(3))]
    requests.append(ask(prompts(1, seed=3)[0], 60, index=3, sample=True, temperature=0.2))
    expected = engine_of(model, plain).generate(requests)
    engine = engine_of(model, guessing)
    assert engine.generate([replace(request, draft=5) for request in requests]) == expected
    state = engine.statistics()
    assert 0 < state.accepted_tokens <= state.draft_tokens and len(guessing.steps) < 0.7 * len(plain.steps)


def test_a_stop_inside_accepted_guesses_leaves_out_the_rest():
    model = MODELS["one token"]
    whole = answer(model, ask([5, 6, 7], 60, min_new_tokens=60), END, forgetful=True)
    for length in range(30, 50):
        seen = []
        engine = engine_of(model, ToyExecutor(forgetful=True))

        def stop(happened, seen=seen, length=length):
            seen.append(happened.token)
            return len(seen) == length

        got = engine.generate([ask([5, 6, 7], 60, draft=6, min_new_tokens=60, on_event=stop)])[0]
        assert (got.ids, got.finish_reason) == (whole.ids[:length], "stop")


def test_log_probabilities_are_those_of_the_model():
    model, request = MODELS["causal"], ask([5, 6, 7], 6, sample=True, temperature=2.0, top_k=3, logprobs=4)
    got = engine_of(model, ToyExecutor()).generate([request])[0]
    assert len(got.logprobs) == len(got.ids) > 0
    for count, scored in enumerate(got.logprobs):
        logits_V = next_logits(model, [5, 6, 7, *got.ids[:count]]).astype(np.float64)
        logprob_V = logits_V - np.log(np.exp(logits_V).sum())
        best = sorted(range(VOCAB), key=lambda token: -logprob_V[token])[:4]
        assert scored.token == got.ids[count] and [token for token, _ in scored.top] == best
        np.testing.assert_allclose(scored.logprob, logprob_V[scored.token], rtol=1e-9)
        np.testing.assert_allclose([value for _, value in scored.top], logprob_V[best], rtol=1e-9)


def test_sizes_that_would_hold_up_prompts_are_refused():
    with pytest.raises(ConfigError, match="most_rows=8 must be at least 1 and below step_tokens=8"):
        engine_of(MODELS["causal"], ToyExecutor(), step_tokens=8, most_rows=8)
