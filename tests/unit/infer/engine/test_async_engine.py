"""An engine in a thread: many ask at once, and nobody waits for ever."""

import threading

import pytest
from kit.engine_toys import END, ask, engine_of, prompts
from kit.paged_toy import ToyExecutor, answer, graph

from llmctl.errors import ConfigError
from llmctl.infer.backend import AsyncBackend, BatchBackend, EngineBackend, thread_safe
from llmctl.infer.engine.async_engine import AsyncEngine, StoppedError

MODEL = graph()


class Held(ToyExecutor):
    """Waits in its steps until it is let go, then fails if it is told to."""

    def __init__(self, error=None):
        super().__init__()
        self.entered, self.go, self.error = threading.Event(), threading.Event(), error

    def run(self, batch):
        self.entered.set()
        assert self.go.wait(20)
        if self.error:
            raise self.error
        return super().run(batch)


def in_threads(calls):
    results = [None] * len(calls)

    def call(place):
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=call, args=[place]) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "somebody still waits"
    return results


def test_threads_get_their_own_answers():
    engine = AsyncEngine(engine_of(MODEL, ToyExecutor(), blocks=20))
    requests = [ask(prompt, 15, index=i) for i, prompt in enumerate(prompts(12))]
    try:
        found = in_threads([lambda request=request: engine.submit(request).result() for request in requests])
        assert found == [answer(MODEL, request, END) for request in requests]
        with pytest.raises(ConfigError, match="prompt is empty"):
            engine.submit(ask([]))
        events = list(engine.submit(requests[0]))
        assert [event.token for event in events] == [*found[0].ids, None] and events[-1].done == found[0]
        assert engine.statistics().running == 0 and engine.alive
    finally:
        engine.stop()


def test_when_the_engine_dies_everyone_who_waits_learns_why_and_nobody_else_is_taken():
    executor = Held(MemoryError("no room for scores"))
    engine = AsyncEngine(engine_of(MODEL, executor))
    first = engine.submit(ask([5, 6]))
    assert executor.entered.wait(20)
    late = [threading.Event() for _ in range(3)]

    def ask_late(event):
        event.set()
        return engine.submit(ask([7, 8])).result()

    threading.Thread(target=lambda: (all(event.wait(20) for event in late), executor.go.set())).start()
    results = in_threads([first.result, *(lambda event=event: ask_late(event) for event in late)])
    for error in results:
        assert isinstance(error, StoppedError) and "MemoryError: no room for scores" in str(error)
        assert isinstance(error.__cause__, MemoryError)
    with pytest.raises(StoppedError, match="no room for scores"):
        engine.submit(ask([5]))
    assert not engine.alive
    engine.stop()


class Failing(ToyExecutor):
    """Fails in some of its steps, after it has spoiled its cache."""

    def __init__(self, faults):
        super().__init__()
        self.faults, self.count = faults, 0

    def run(self, batch):
        logits = super().run(batch)
        self.count += 1
        if self.count in self.faults:
            self.allocate(1)
            raise RuntimeError("a fault")
        return logits


def test_an_engine_begins_anew_after_a_fault_and_answers_those_who_wait():
    engine = engine_of(MODEL, Failing([4, 9, 10]), blocks=40, step_tokens=9, most_rows=2)
    requests = [ask(prompt, 6, index=i) for i, prompt in enumerate(prompts(8))]
    queue = AsyncEngine(engine, restarts=2)
    found = [ticket.result() for ticket in queue.submit_all(requests)]
    failed = [made for made in found if made.finish_reason == "error"]
    assert all(made.error == "a step of the engine failed: RuntimeError: a fault" for made in failed)
    assert 2 <= len(failed) <= 6 and queue.alive and queue.statistics().restarts == 3
    for request, made in zip(requests, found, strict=True):
        assert made.finish_reason == "error" or made == answer(MODEL, request, END)
    queue.stop()


def test_an_engine_that_fails_again_and_again_is_dead():
    queue = AsyncEngine(engine_of(MODEL, Failing(range(1, 99)), step_tokens=9, most_rows=1), restarts=2)
    *others, last = queue.submit_all([ask(prompt, 6) for prompt in prompts(3)])
    assert [ticket.result().finish_reason for ticket in others] == ["error"] * 2
    with pytest.raises(StoppedError, match="a fault"):
        last.result()
    assert not queue.alive


def test_a_stopped_engine_lets_nobody_wait():
    executor = Held()
    engine = AsyncEngine(engine_of(MODEL, executor))
    ticket = engine.submit(ask([5, 6], 200))
    assert executor.entered.wait(20)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    while engine.alive:
        pass
    executor.go.set()
    stopping.join(20)
    with pytest.raises(StoppedError, match="was stopped"):
        ticket.result()
    with pytest.raises(StoppedError, match="was stopped"):
        engine.submit(ask([5]))


def test_a_request_is_cancelled_while_it_runs():
    executor = Held()
    engine = AsyncEngine(engine_of(MODEL, executor))
    ticket = engine.submit(ask([5, 6], 500, min_new_tokens=500))
    assert executor.entered.wait(20)
    engine.cancel(ticket)
    executor.go.set()
    assert ticket.result().finish_reason == "cancelled" and engine.alive
    engine.stop()


def test_an_exception_of_a_callback_ends_only_its_request():
    engine = AsyncEngine(engine_of(MODEL, ToyExecutor()))

    def fail(event):
        raise KeyError("lost")

    bad = engine.submit(ask([5, 6], on_event=fail)).result()
    assert bad.finish_reason == "error" and "lost" in bad.error
    good = ask([5, 6])
    assert engine.submit(good).result() == answer(MODEL, good, END) and engine.alive
    engine.stop()


def test_requests_that_are_submitted_together_are_taken_together():
    executor = Held()
    engine = AsyncEngine(engine_of(MODEL, executor))
    first = engine.submit(ask([5, 6], 3, min_new_tokens=3))
    assert executor.entered.wait(20)
    executor.go.set()
    tickets = engine.submit_all([ask([7, 8, 9], 4), ask([]), ask([8, 9], 4)])
    assert isinstance(tickets[1].number.exception(), ConfigError)
    expected = [answer(MODEL, ask(prompt, 4), END) for prompt in ([7, 8, 9], [8, 9])]
    assert [tickets[0].result(), tickets[2].result()] == expected and len(first.result().ids) == 3
    together = [len(step.block_tables_RM) for step in executor.steps]
    assert max(together) >= 2 and engine.submit_all([]) == []
    engine.stop()


@pytest.mark.parametrize("ahead", [2, 5, 40])
def test_threads_share_a_backend(ahead):
    backend = thread_safe(EngineBackend(engine_of(MODEL, ToyExecutor(), blocks=20), ahead))
    assert isinstance(backend, AsyncBackend)
    batches = [[ask(prompt, 9, index=i) for i, prompt in enumerate([*prompts(7, seed), []])] for seed in range(4)]
    found = in_threads([lambda batch=batch: dict(backend.run(batch)) for batch in batches])
    for batch, answers in zip(batches, found, strict=True):
        assert sorted(answers) == list(range(8)) and isinstance(answers[7].cause, ConfigError)
        assert [answers[i] for i in range(7)] == [answer(MODEL, request, END) for request in batch[:7]]
    backend.close()
    with pytest.raises(StoppedError):
        list(backend.run(batches[0]))


def test_an_iterator_that_is_closed_cancels_what_has_not_ended():
    engine = AsyncEngine(engine_of(MODEL, ToyExecutor()))
    backend = AsyncBackend(engine)
    running = backend.run([ask([5, 6], 1, min_new_tokens=1), *[ask([7, 8], 500, min_new_tokens=500)] * 3])
    assert next(running)[0] == 0
    running.close()
    events = backend.stream(ask([7, 8], 500, min_new_tokens=500))
    next(events)
    events.close()
    good = ask([5, 9], 4)
    assert [event.token for event in backend.stream(good)][:-1] == answer(MODEL, good, END).ids
    assert engine.statistics().running == engine.statistics().waiting == 0
    engine.stop()


def test_an_engine_that_dies_ends_every_run_with_its_cause():
    executor = Held(MemoryError("no room"))
    backend = thread_safe(EngineBackend(engine_of(MODEL, executor)))
    threading.Thread(target=lambda: (executor.entered.wait(20), executor.go.set())).start()
    requests = [ask([5, 6]), ask([7, 8])]
    for error in in_threads([lambda: list(backend.run(requests)), lambda: list(backend.stream(requests[0]))]):
        assert isinstance(error, StoppedError) and isinstance(error.__cause__, MemoryError)


def test_one_thread_may_stream_from_an_engine_of_its_own():
    engine = engine_of(MODEL, ToyExecutor())
    request = ask([5, 6], 6, min_new_tokens=6)
    events = list(EngineBackend(engine).stream(request))
    assert [event.token for event in events[:-1]] == answer(MODEL, request, END).ids and events[-1].done
    events = EngineBackend(engine).stream(request)
    next(events)
    events.close()
    engine.step()
    assert not engine.busy


def test_a_failure_while_a_batch_is_streamed_reaches_the_reader():
    class Broken:
        max_stable_length = None

        def begin(self, max_length, use_cache=True):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(BatchBackend(Broken(), (), 0).stream(ask([5, 6])))
