"""One step of training low-rank adapters on a 58M decoder here and with peft on torch, in one run.

Rank 8 beside every linear of the layers: forward, backward, and AdamW over the adapters. Both sides hold the same base, A
and B (which is not zero) and see the same tokens; a run whose losses differ by more than 1e-4 fails. How the two take turns
is in ``turns.py``; the model is that of ``train_step.py``.

    python benchmarks/lora_step.py --peer-python /path/to/python/with/peft
"""

from __future__ import annotations

import train_step
from lib import turns
from train_step import TOLERANCE

RANK, SCALE, STD = 8, 2.0, 0.02
"""Of every adapter; deviation of the values that A and B begin with."""


def adapters():
    """Path of each linear of the layers, as in transformers, -> A [rank, in] and B [out, rank]; the same on both sides."""
    import numpy as np

    rng = np.random.default_rng(2)
    shapes = {
        name.removesuffix(".weight"): value.shape for name, value in train_step.tensors().items() if ".layers." in name
    }
    return {
        path: tuple(rng.standard_normal(shape, dtype="float32") * STD for shape in ((RANK, inputs), (outputs, RANK)))
        for path, (outputs, inputs) in shapes.items()
    }


def our_step(options):
    """A function that makes one step and returns the loss before it; and our name."""
    from llmctl import runtime

    runtime.configure()
    import paddle

    from llmctl.adapters.attach import add_lora

    model = train_step.our_model()
    parts = {path.replace("model.", "llama.", 1): pair for path, pair in adapters().items()}
    layers = add_lora(model, parts, RANK, SCALE)
    for path, (a, b) in parts.items():
        layers[path].set_weights(a.T.copy(), b.T.copy())
    step = train_step.our_update(model, train_step.our_optimizer(model))
    return step, f"llmctl, paddle {paddle.__version__}"


def peer_step(options):
    """The same with peft, transformers and torch."""
    import peft
    import torch

    parts = adapters()
    names = sorted({path.rpartition(".")[2] for path in parts})
    config = peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=names, task_type="CAUSAL_LM")
    model = peft.get_peft_model(train_step.peer_model(options.threads), config).train()
    with torch.no_grad():
        for path, (a, b) in parts.items():
            layer = model.base_model.model.get_submodule(path)
            layer.lora_A["default"].weight.copy_(torch.from_numpy(a))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(b))
    step = train_step.peer_update(model, train_step.peer_optimizer(model))
    return step, f"peft {peft.__version__}, {train_step.peer_name()}"


if __name__ == "__main__":
    turns.main(__doc__, __file__, {"ours": our_step, "peer": peer_step}, TOLERANCE)
