"""A run's log lines played to a metrics log."""

from llmctl.train.loop import Plan, Update

PLAN = Plan(steps=7, eval_every=4, save_every=4)


def update(step, loss=2.0):
    return Update(step, epoch=step / 4, loss=loss, lr=1e-3, grad_norm=0.5, tokens=100, seconds=0.25)


def play(hook, first=1, last=7):
    hook.on_start(first, PLAN)
    for step in range(first, last + 1):
        hook.on_update(update(step))
        if step == 4:
            hook.on_evaluation(4, 1.0, {"eval_loss": 1.5, "accuracy": 0.25})
    hook.on_end()
