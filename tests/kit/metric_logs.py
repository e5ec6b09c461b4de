"""A run's log lines played to a metrics log."""

from llmctl.train.callbacks.base import LoopSettings, StepMetrics

PLAN = LoopSettings(max_steps=7, eval_every=4, save_every=4)


def update(step, loss=2.0):
    return StepMetrics(step, epoch=step / 4, loss=loss, lr=1e-3, grad_norm=0.5, tokens=100, seconds=0.25)


def play(callback, first=1, last=7):
    callback.on_train_begin(first, PLAN)
    for step in range(first, last + 1):
        callback.on_step_end(update(step))
        if step == 4:
            callback.on_evaluate(4, 1.0, {"eval_loss": 1.5, "accuracy": 0.25})
    callback.on_train_end()
