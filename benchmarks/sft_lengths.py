"""One fine-tuning update over examples of different lengths, here and in transformers on torch, in one run.

Here examples are packed (``data.packing: best-fit``) into rows of 1024 tokens, two rows to a pass, and the update is the
training loop's. The peer pads (``--peer padded``: batches of 8 in the order of the file, on the right) or gets the very
rows that are used here (``--peer packed``: positions restart and attention is block-diagonal). It accumulates gradients of
the sum over answers, divided by all labels of the update. Mean losses must agree to 1e-3, so no document may see another.
How the two take turns is in ``turns.py``; the model is that of ``train_step.py``, whose vocabulary bounds the tokenizer.

    python benchmarks/sft_lengths.py --data train.jsonl --tokenizer FOLDER --peer-python /path/to/python/with/transformers
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import train_step
from lib import turns
from train_step import ADAMW, VOCAB

ROW, ROWS, PADDED = 1024, 2, 8
"""Tokens of a packed row, packed rows of a pass, and padded rows of a pass."""
TOLERANCE = 1e-3
NO_LABEL = -100


def arguments(parser):
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with src and tgt")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a tokenizer")
    parser.add_argument("--examples", type=int, default=32, help="so many, from the beginning of the file")
    parser.add_argument("--peer", choices=("padded", "packed"), default="padded")
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)


@contextmanager
def encoded(options) -> Iterator[list[str]]:
    """Ids and shifted labels of all examples, and which of them share a row, in a file for both sides."""
    import numpy as np

    from llmctl import tokenizers
    from llmctl.data.encoded import encode
    from llmctl.data.packing import best_fit
    from llmctl.data.reading import read_split
    from llmctl.data.sft.encoding import Encoder
    from llmctl.data.sft.examples import parse_example

    tokenizer = tokenizers.load(options.tokenizer, "none")
    examples = read_split([options.data], "train", parse_example)[: options.examples]
    found = encode(examples, Encoder(tokenizer, ROW // 2, ROW).coder)
    rows = found.rows
    ids, labels = (np.concatenate([getattr(row, name) for row in rows]) for name in ("input_ids", "labels"))
    if ids.max() >= VOCAB:
        raise SystemExit(f"the tokenizer gives the id {ids.max()}; the model knows {VOCAB}: use a smaller one")
    lengths = [len(row.input_ids) for row in rows]
    packed = sorted(best_fit(lengths, ROW), key=lambda row: sum(lengths[index] for index in row))
    width = [max(lengths[at : at + PADDED]) * len(lengths[at : at + PADDED]) for at in range(0, len(rows), PADDED)]
    print(
        f"{len(rows)} examples ({found.truncated} cut, {found.dropped} dropped) of {min(lengths)} to {max(lengths)} "
        f"tokens, {len(ids)} in all, {(labels != NO_LABEL).sum()} with a label; "
        f"packed: {len(packed)} rows of {ROW}; padded: {sum(width)} positions",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        order = [index for row in packed for index in row]
        np.savez(path, ids=ids, labels=labels, lengths=lengths, order=order, sizes=[len(row) for row in packed])
        yield ["--arrays", str(path)]


def documents(arrays):
    """Ids and shifted labels of each example."""
    import numpy as np

    borders = np.cumsum(arrays["lengths"])[:-1]
    return list(zip(*(np.split(arrays[name], borders) for name in ("ids", "labels")), strict=True))


def our_step(options):
    """A function that makes one update and returns its mean loss; and our name."""
    from llmctl import runtime

    runtime.configure()
    import numpy as np
    import paddle

    from llmctl.data import packing
    from llmctl.data.sft.encoding import EncodedExample
    from llmctl.train.callbacks.base import LoopSettings
    from llmctl.train.loop import Loop
    from llmctl.train.methods.sft import SftTask

    with np.load(options.arrays) as arrays:
        found = [EncodedExample(ids.tolist(), labels.tolist(), "", False) for ids, labels in documents(arrays)]
    rows = packing.pack(found, ROW, "best-fit")
    task = SftTask(rows, [], partial(packing.collate, pad_id=0), ROWS, -(-len(rows) // ROWS), shuffle=False)
    model = train_step.our_model()
    loop = Loop(model, task, train_step.our_optimizer(model), lambda step: ADAMW["lr"], LoopSettings(1, 1, 1))
    return lambda: loop.train_step(1).loss, f"llmctl, paddle {paddle.__version__}, packed"


def peer_step(options):
    """The same with transformers and torch."""
    import numpy as np
    import torch

    with np.load(options.arrays) as arrays:
        found = documents(arrays)
        rows = np.split(arrays["order"], np.cumsum(arrays["sizes"])[:-1])
    if options.peer == "padded":
        batches = [_padded(found[at : at + PADDED]) for at in range(0, len(found), PADDED)]
    else:
        chosen = [[found[index] for index in row] for row in rows]
        batches = [_packed(chosen[at : at + ROWS]) for at in range(0, len(chosen), ROWS)]
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    count = sum(int((batch["shift_labels"] != NO_LABEL).sum()) for batch in batches)
    model = train_step.peer_model(options.threads)
    optimizer = train_step.peer_optimizer(model)

    def step():
        total = 0.0
        for batch in batches:
            # The loss of transformers' own trainer: its labels are only asked whether there are any.
            loss = model(**batch, labels=batch["shift_labels"], num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step, f"{train_step.peer_name()}, {options.peer}"


def _padded(rows):
    """Arrays of a batch of examples, padded on the right."""
    import numpy as np

    width = max(len(ids) for ids, _ in rows)
    batch = {name: np.zeros((len(rows), width), np.int64) for name in ("input_ids", "attention_mask", "shift_labels")}
    batch["shift_labels"][:] = NO_LABEL
    for i, (ids, labels) in enumerate(rows):
        batch["input_ids"][i, : len(ids)] = ids
        batch["attention_mask"][i, : len(ids)] = 1
        batch["shift_labels"][i, : len(ids)] = labels
    return batch


def _packed(rows):
    """Arrays of a batch of rows of examples: a token sees those before it in its own example, padding sees padding."""
    import numpy as np

    joined = [tuple(np.concatenate(column) for column in zip(*row, strict=True)) for row in rows]
    batch = _padded(joined)
    width = batch["input_ids"].shape[1]
    document = np.full((len(rows), width), -1)
    batch["position_ids"] = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        lengths = [len(ids) for ids, _ in row]
        document[i, : sum(lengths)] = np.repeat(np.arange(len(row)), lengths)
        batch["position_ids"][i, : sum(lengths)] = np.concatenate([np.arange(length) for length in lengths])
    same = document[:, :, None] == document[:, None, :]
    batch["attention_mask"] = (same & np.tri(width, dtype=bool))[:, None]
    return batch


if __name__ == "__main__":
    turns.main(__doc__, __file__, {"ours": our_step, "peer": peer_step}, TOLERANCE, arguments, encoded)
