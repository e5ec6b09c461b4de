"""One DPO step of a 58M decoder here and in TRL's trainer, in one run: model, frozen reference, backward, AdamW.

Here both answers of a pair stand behind one prompt; TRL runs prompt and chosen, and prompt and rejected, as rows of their
own. Both sides hold the same weights and see the same pairs; a run whose losses differ by more than 1e-4 fails. How the
two take turns is in ``turns.py``; the model is that of ``train_step.py``.

    python benchmarks/dpo_step.py --peer-python /path/to/python/with/trl
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import nullcontext
from functools import partial

from lib import turns
from train_step import VOCAB, our_model, our_optimizer, peer_model, peer_name, peer_optimizer

PAIRS, PROMPT, ANSWER, BETA = 4, (224, 288), (48, 96), 0.1
"""Pairs of a step; smallest and largest number of tokens of prompts and of answers."""
RATE = 2e-6
"""Learning rate, small enough that losses stay of a size that a difference would show in."""
TOLERANCE = 1e-4


def pairs():
    """Ids of prompt, chosen and rejected answer of each pair."""
    import numpy as np

    rng = np.random.default_rng(1)
    lengths = [[int(rng.integers(*bounds, endpoint=True)) for bounds in (PROMPT, ANSWER, ANSWER)] for _ in range(PAIRS)]
    return [[rng.integers(0, VOCAB, length).tolist() for length in row] for row in lengths]


def our_step(options):
    """A function that makes one step and returns the loss before it; and our name."""
    from llmctl import runtime

    runtime.configure()
    import paddle

    from llmctl.data.preference import rows as pair_rows
    from llmctl.data.preference.encoding import Pair
    from llmctl.train.methods.dpo_loss import sigmoid
    from llmctl.train.methods.dpo_reference import ReferenceModel
    from llmctl.train.methods.dpo_task import DpoTask

    model, reference = our_model(), our_model()
    rows = pair_rows.rows_of([Pair(*row, f"pair:{i}") for i, row in enumerate(pairs())])
    task = DpoTask(rows, [], partial(pair_rows.collate, pad_id=0), partial(sigmoid, beta=BETA), BETA, PAIRS)
    task.reference = ReferenceModel(lambda: nullcontext(reference))
    optimizer = our_optimizer(model)
    batch = task.micro_batches(1)[0]
    model.train()

    def step():
        loss = task.loss(model, batch)
        mean = loss.total / loss.items
        mean.backward()
        optimizer.step(RATE)
        return float(mean)

    return step, f"llmctl, paddle {paddle.__version__}"


def peer_step(options):
    """The same on torch, eager, with SDPA attention and fused AdamW: TRL's trainer, or transformers and the bare loss."""
    import torch
    import transformers
    import trl

    model = peer_model(options.threads)
    reference = copy.deepcopy(model)
    loss_of = _trainer_loss(trl, transformers, model, reference) if options.peer == "trainer" else _bare_loss(reference)
    optimizer = peer_optimizer(model, RATE)
    batch = _peer_batch(torch)
    model.train()

    def step():
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step, f"trl {trl.__version__}, {peer_name()}" if options.peer == "trainer" else peer_name()


def _trainer_loss(trl, transformers, model, reference):
    """What TRL's trainer computes of a batch, its metrics included."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, "<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    settings = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(), beta=BETA, use_cpu=True, report_to=[], bf16=False, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    # Its own data is never asked for: the batch is made below, as its collator does.
    unused = Dataset.from_list([{"prompt": "<pad>", "chosen": "<pad>", "rejected": "</s>"}])
    trainer = trl.DPOTrainer(
        model=model, ref_model=reference, args=settings, train_dataset=unused, processing_class=tokenizer
    )
    return trainer.compute_loss


def _bare_loss(reference):
    """The loss alone, of both rows of each pair, with the head where answers are asked for."""
    import torch

    def log_probs(model, batch):
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        asked = batch["completion_mask"][:, 1:] == 1
        labels = batch["input_ids"][:, 1:][asked]
        found = -torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][asked]), labels, reduction="none")
        return torch.zeros(asked.shape).masked_scatter(asked, found).sum(1)

    def loss(model, batch):
        with torch.no_grad():
            before = log_probs(reference, batch)
        chosen, rejected = (log_probs(model, batch) - before).chunk(2)
        return -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()

    return loss


def _peer_batch(torch):
    """Chosen rows, then rejected rows, padded on the right."""
    rows = [(p, answer) for side in (1, 2) for p, answer in ((row[0], row[side]) for row in pairs())]
    width = max(len(p) + len(a) for p, a in rows)
    columns = {"input_ids": [], "attention_mask": [], "completion_mask": []}
    for p, a in rows:
        pad = [0] * (width - len(p) - len(a))
        columns["input_ids"].append([*p, *a, *pad])
        columns["attention_mask"].append([1] * (len(p) + len(a)) + pad)
        columns["completion_mask"].append([0] * len(p) + [1] * len(a) + pad)
    return {name: torch.tensor(values) for name, values in columns.items()}


def arguments(parser):
    parser.add_argument(
        "--peer",
        choices=("trainer", "bare"),
        default="trainer",
        help="TRL's trainer, or transformers and the bare loss",
    )


if __name__ == "__main__":
    turns.main(__doc__, __file__, {"ours": our_step, "peer": peer_step}, TOLERANCE, arguments)
