"""An engine in a thread: many ask at once, and nobody waits for ever."""

import threading

import pytest
from kit.engine_toys import END, ask, engine_of, prompts
from kit.paged_toy import ToyExecutor, answer, graph

from llmctl.errors import ConfigError
from llmctl.infer.engine.async_engine import StoppedError, Worker

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
    worker = Worker(engine_of(MODEL, ToyExecutor(), blocks=20))
    requests = [ask(prompt, 15, index=i) for i, prompt in enumerate(prompts(12))]
    try:
        found = in_threads([lambda request=request: worker.submit(request).result() for request in requests])
        assert found == [answer(MODEL, request, END) for request in requests]
        with pytest.raises(ConfigError, match="prompt is empty"):
            worker.submit(ask([]))
        events = list(worker.submit(requests[0]))
        assert [event.token for event in events] == [*found[0].ids, None] and events[-1].done == found[0]
        assert worker.statistics().running == 0 and worker.alive
    finally:
        worker.stop()


def test_when_the_engine_dies_everyone_who_waits_learns_why_and_nobody_else_is_taken():
    executor = Held(MemoryError("no room for scores"))
    worker = Worker(engine_of(MODEL, executor))
    first = worker.submit(ask([5, 6]))
    assert executor.entered.wait(20)
    late = [threading.Event() for _ in range(3)]

    def ask_late(event):
        event.set()
        return worker.submit(ask([7, 8])).result()

    threading.Thread(target=lambda: (all(event.wait(20) for event in late), executor.go.set())).start()
    results = in_threads([first.result, *(lambda event=event: ask_late(event) for event in late)])
    for error in results:
        assert isinstance(error, StoppedError) and "MemoryError: no room for scores" in str(error)
        assert isinstance(error.__cause__, MemoryError)
    with pytest.raises(StoppedError, match="no room for scores"):
        worker.submit(ask([5]))
    assert not worker.alive
    worker.stop()


def test_a_stopped_engine_lets_nobody_wait():
    executor = Held()
    worker = Worker(engine_of(MODEL, executor))
    ticket = worker.submit(ask([5, 6], 200))
    assert executor.entered.wait(20)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    while worker.alive:
        pass
    executor.go.set()
    stopping.join(20)
    with pytest.raises(StoppedError, match="was stopped"):
        ticket.result()
    with pytest.raises(StoppedError, match="was stopped"):
        worker.submit(ask([5]))


def test_a_request_is_cancelled_while_it_runs():
    executor = Held()
    worker = Worker(engine_of(MODEL, executor))
    ticket = worker.submit(ask([5, 6], 500, min_new_tokens=500))
    assert executor.entered.wait(20)
    worker.cancel(ticket)
    executor.go.set()
    assert ticket.result().finish_reason == "cancelled" and worker.alive
    worker.stop()


def test_an_exception_of_a_callback_ends_only_its_request():
    worker = Worker(engine_of(MODEL, ToyExecutor()))

    def fail(event):
        raise KeyError("lost")

    bad = worker.submit(ask([5, 6], on_event=fail)).result()
    assert bad.finish_reason == "error" and "lost" in bad.error
    good = ask([5, 6])
    assert worker.submit(good).result() == answer(MODEL, good, END) and worker.alive
    worker.stop()
