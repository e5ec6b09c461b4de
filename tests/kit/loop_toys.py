"""A toy task for the training loop, and what it recorded."""

from kit.train_toys import collate, toy_rows

from llmctl.train.callbacks.base import Callback
from llmctl.train.methods.sft import SftTask

ROWS = toy_rows(24)


class Record(Callback):
    """Everything that happens, in order."""

    def __init__(self):
        self.events, self.losses, self.norms = [], [], []

    def on_train_begin(self, first, plan):
        self.events.append(("start", first))

    def on_step_end(self, update):
        self.events.append(("update", update.step))
        self.losses.append(update.loss)
        self.norms.append(update.grad_norm)

    def on_evaluate(self, step, epoch, metrics):
        self.events.append(("evaluation", step))

    def on_save(self, step):
        self.events.append(("save", step))

    def on_train_end(self):
        self.events.append(("end",))


def task(batch_size=4, accumulation=1, dev=(), rows=ROWS, **options):
    return SftTask(rows, dev, collate, batch_size, accumulation, eval_batch_size=3, seed=5, **options)


def weights(model):
    return {name: p.numpy() for name, p in model.named_parameters()}
