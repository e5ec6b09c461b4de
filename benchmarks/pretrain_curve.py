"""Loss curves of one pretraining from scratch, here and in transformers: same weights, samples and optimizer settings.

``llmctl pretrain`` makes a corpus of a text, draws a small decoder and trains it. The peer starts from the weights that
were drawn, sees the samples of each step, and takes the same AdamW steps. Both compute in float32, so the curves part
slowly; the run fails if they are further apart than rounding explains.

    python benchmarks/pretrain_curve.py --text FILE --tokenizer FOLDER --peer-python /path/to/python/with/transformers
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 32,
    "intermediate_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
TRAIN = {
    "batch_size": 8, "learning_rate": 2e-3, "min_learning_rate": 2e-4, "warmup_steps": 20, "weight_decay": 0.1,
    "adam_beta2": 0.95, "max_grad_norm": 1.0, "eval_iters": 10, "test_iters": 0, "log_every": 20,
}  # fmt: skip
TOLERANCE = {"first": 1e-5, "any": 0.01, "valid": 0.005}
"""Largest difference of the losses of the first ten steps, of any step, and of the valid split at the end."""


def ours(options: argparse.Namespace, folder: Path) -> dict:
    """Trains with llmctl; leaves initial weights, samples and learning rates for the peer, returns the losses."""
    import numpy as np

    from llmctl import runtime
    from llmctl.config import schema
    from llmctl.config.pretrain import PretrainConfig
    from llmctl.data.corpus import build, documents
    from llmctl.jobs import pretrain as preflight_pretrain

    runtime.import_paddle("the benchmark")
    encoder = build.BatchEncoder(options.tokenizer, append_eos=True)
    made = build.build(documents.Source([options.text]), folder / "corpus", encoder)
    steps = {"max_steps": options.steps, "eval_every": options.steps, "save_every": options.steps}
    sections = {
        "model": {"size": "tiny", "changes": [f"{key}={value}" for key, value in SIZES.items()],
                  "tokenizer": str(options.tokenizer)},
        "data": {"corpora": [str(folder / "corpus")], "split": "90,10", "seq_length": 256},
        "train": {**TRAIN, **steps},
        "output": {"dir": str(folder / "out"), "samples": 2, "load_best": False},
    }  # fmt: skip
    job = preflight_pretrain.check(schema.build(PretrainConfig, sections), options.family)

    from llmctl.train import trainer
    from llmctl.train.callbacks.base import Callback
    from llmctl.train.methods import pretrain

    class Kept(Callback):
        def __init__(self):
            self.updates = []

        def on_step_end(self, update):
            self.updates.append(update)

    (folder / "initial").mkdir()
    pretrain.load(job, None).save(folder / "initial", "float32")
    task, kept = pretrain.prepare(job).task, Kept()
    rows = [batch.arrays for step in range(1, options.steps + 1) for batch in task.micro_batches(step)]
    valid = [task.valid[i] for i in range(len(task.valid))]
    info = trainer.run(job, [kept])
    np.savez(
        folder / "samples.npz",
        inputs=np.stack([arrays["input_ids"] for arrays in rows]),
        labels=np.stack([arrays["labels"] for arrays in rows]),
        valid_inputs=np.stack([sample.input_ids for sample in valid]),
        valid_labels=np.stack([sample.labels for sample in valid]),
        lr_scales=np.array([update.lr for update in kept.updates]),
    )
    return {
        "losses": [update.loss for update in kept.updates],
        "norms": [update.grad_norm for update in kept.updates],
        "valid": info["after"]["metrics"]["eval_loss"],
        "what": f"{job.model.plugin.card.count(job.model.dims):,} parameters, {made.tokens:,} tokens in {made.documents:,} documents",
    }


def peer(options: argparse.Namespace, folder: Path) -> dict:
    """The same steps with transformers on torch."""
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "initial", torch_dtype=torch.float32).train()
    samples = np.load(folder / "samples.npz")
    norms = {id(p) for name, p in model.named_parameters() if "norm" in name}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": TRAIN["weight_decay"]},
        {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, TRAIN["adam_beta2"]), eps=1e-8)
    losses, grad_norms = [], []

    def loss_of(inputs, labels):
        logits = model(input_ids=torch.from_numpy(inputs)).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())

    for inputs, labels, rate in zip(samples["inputs"], samples["labels"], samples["rates"], strict=True):
        loss = loss_of(inputs, labels)
        loss.backward()
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN["max_grad_norm"])))
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    with torch.no_grad():
        valid = [float(loss_of(x[None], y[None]))
                 for x, y in zip(samples["valid_inputs"], samples["valid_labels"], strict=True)]  # fmt: skip
    return {"losses": losses, "norms": grad_norms, "valid": sum(valid) / len(valid),
            "what": f"transformers {transformers.__version__}, torch {torch.__version__}"}  # fmt: skip


def compare(mine: dict, other: dict) -> int:
    """Prints both curves; 1 if they part further than allowed."""
    apart = [abs(a - b) for a, b in zip(mine["losses"], other["losses"], strict=True)]
    print(f"{mine['what']}; peer: {other['what']}")
    print(f"{'step':>6} {'llmctl':>10} {'peer':>10} {'difference':>12} {'grad norms':>18}")
    count = len(apart)
    for step in sorted({1, 2, 5, 10, 20, 50, *range(100, count + 1, 100), count}):
        if step <= count:
            i = step - 1
            print(f"{step:6} {mine['losses'][i]:10.5f} {other['losses'][i]:10.5f} {apart[i]:12.1e} "
                  f"{mine['norms'][i]:9.4f} {other['norms'][i]:8.4f}")  # fmt: skip
    found = {"first": max(apart[:10]), "any": max(apart), "valid": abs(mine["valid"] - other["valid"])}
    print(f"valid loss at the end: {mine['valid']:.4f} and {other['valid']:.4f}")
    print(f"mean difference {sum(apart) / count:.1e}; largest: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    wrong = [name for name, value in found.items() if value > TOLERANCE[name]]
    print(f"further apart than allowed: {', '.join(wrong)}" if wrong else "the curves agree")
    return 1 if wrong else 0


def main() -> int:
    """Runs both sides and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--family", default="llama")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"))
    parser.add_argument("--peer-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_of:
        (options.peer_of / "peer.json").write_text(json.dumps(peer(options, options.peer_of)), encoding="utf-8")
        return 0
    if not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch and transformers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine = ours(options, folder)
        command = [options.peer_python, __file__, *sys.argv[1:], "--peer-of", name]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)})
        return compare(mine, json.loads((folder / "peer.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
