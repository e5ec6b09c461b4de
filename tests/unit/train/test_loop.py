"""The loop: accumulation equals one big batch, callbacks come when due, nothing is saved over a good state."""

import os
import signal

import numpy as np
import paddle
import pytest
from kit.loop_toys import ROWS, Record, task, weights
from kit.train_toys import ToyModel, collate

from llmctl.train.callbacks.base import Callback, LoopSettings
from llmctl.train.interrupt import Interrupted
from llmctl.train.loop import Loop, NonFiniteError
from llmctl.train.methods.sft import SftTask
from llmctl.train.optim.adamw import AdamW


def loop(steps, a_task, callbacks=(), model=None, every=100, max_norm=1.0, lr=0.05):
    model = model or ToyModel()
    adamw = AdamW(dict(model.named_parameters()), max_norm=max_norm)
    return Loop(model, a_task, adamw, lambda step: lr, LoopSettings(steps, every, every, seed=5), callbacks)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (2, 4), (3, 3)])
def test_accumulated_gradients_equal_the_big_batch(batch_size, accumulation):
    """The mean over all tokens of an update, not the mean of means: rows differ in their number of labels."""
    rows = ROWS[: batch_size * accumulation]
    big, small = ToyModel(), ToyModel()
    whole, parts = task(len(rows), 1, rows=rows), task(batch_size, accumulation, rows=rows)
    (batch,) = whole.micro_batches(1)
    loss, count, _ = whole.loss(big, batch, whole.hidden(big, batch))
    (loss / count).backward()
    counts = []
    for batch in parts.micro_batches(1):
        loss, items, _ = parts.loss(small, batch, parts.hidden(small, batch))
        loss.backward()
        counts.append(items)
    assert len(set(counts)) > 1 and len(counts) == accumulation
    AdamW(dict(small.named_parameters())).clip_grads(sum(counts))
    for (name, p), q in zip(big.named_parameters(), small.parameters(), strict=True):
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-12, atol=1e-15, err_msg=name)


def test_training_with_accumulation_follows_the_big_batch():
    runs = []
    for batch_size, accumulation in ((6, 1), (2, 3)):
        record = Record()
        one = loop(8, task(batch_size, accumulation), [record])
        one.run()
        runs.append(record.losses)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-7)


def test_the_loss_falls_on_a_learnable_task():
    record = Record()
    loop(60, task(8), [record]).run()
    assert record.losses[-1] < 0.3 * record.losses[0]


def test_callbacks_come_in_order_and_when_due():
    record = Record()
    one = loop(5, task(8, dev=ROWS[:4]), [record])
    one.settings = LoopSettings(max_steps=5, eval_every=2, save_every=3)
    one.run()
    assert record.events == [
        ("start", 1),
        ("update", 1),
        ("update", 2),
        ("evaluation", 2),
        ("update", 3),
        ("save", 3),
        ("update", 4),
        ("evaluation", 4),
        ("update", 5),
        ("evaluation", 5),
        ("save", 5),
        ("end",),
    ]


def test_a_continued_loop_repeats_what_the_whole_one_did():
    """Dropout draws from the generator that is seeded by the step."""

    class Noisy(ToyModel):
        def logits(self, hidden):
            return super().logits(paddle.nn.functional.dropout(hidden, 0.3, training=self.training))

    whole = Record()
    one = loop(10, task(4), [whole], model=Noisy())
    one.run()
    first, second = Record(), Record()
    two = loop(10, task(4), [first], model=Noisy())
    for step in range(1, 7):
        first.losses.append(two.train_step(step).loss)
    paddle.seed(999)
    two.callbacks = [second]
    two.run(done=6)
    assert first.losses + second.losses == whole.losses
    for name, value in weights(one.model).items():
        np.testing.assert_array_equal(weights(two.model)[name], value)


def test_evaluation_does_not_change_what_is_trained():
    plain, evaluated = Record(), Record()
    loop(6, task(4), [plain]).run()
    loop(6, task(4, dev=ROWS[:7]), [evaluated], every=1).run()
    assert evaluated.losses == plain.losses


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_examples(bad):
    class Poisoned(SftTask):
        def loss(self, model, batch, hidden):
            loss = super().loss(model, batch, hidden)
            return loss._replace(total=loss.total * bad) if "toy.jsonl:7" in batch.sources else loss

    record = Record()
    one = loop(6, Poisoned(ROWS, [], collate, 4, seed=5), [record], every=1)
    with pytest.raises(NonFiniteError, match=r"toy\.jsonl:7") as caught:
        one.run()
    step = caught.value.report["step"]
    assert ("update", step) not in record.events and ("save", step) not in record.events
    assert record.events[-1] == ("end",)
    assert all(np.isfinite(value).all() for value in weights(one.model).values())
    assert len(caught.value.report["examples"]) == 4


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_finishes_the_step_and_saves(number, code):
    class Send(Callback):
        def on_step_end(self, update):
            if update.step == 3:
                os.kill(os.getpid(), number)

    record, before = Record(), signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        loop(6, task(4), [Send(), record]).run()
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (caught.value.step, caught.value.exit_code) == (3, code)
    assert record.events[-2:] == [("save", 3), ("end",)]
    assert signal.getsignal(number) is before


def test_signals_that_were_ignored_stay_ignored():
    class Send(Callback):
        def on_step_end(self, update):
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert loop(2, task(4), [Send()]).run() == 2
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once():
    class Send(Callback):
        def on_step_end(self, update):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    record = Record()
    with pytest.raises(Interrupted) as caught:
        loop(6, task(4), [Send(), record]).run()
    assert (caught.value.step, caught.value.exit_code) == (None, 143)
    assert not any(event[0] == "save" for event in record.events)
