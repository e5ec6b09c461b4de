"""Pretraining: a run over samples of corpora, of a checkpoint or of a new model with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import runtime
from llmctl.checkpoint.build import build, load_model
from llmctl.config import common
from llmctl.data.corpus.samples import Samples, Setting, open_split
from llmctl.jobs import precision
from llmctl.jobs.pretrain import PretrainJob
from llmctl.tokenizers import Tokenizer
from llmctl.train import trainer as runs
from llmctl.train.callbacks.progress import format_metric, table
from llmctl.train.loop import Hook
from llmctl.train.methods.pretrain_task import PretrainTask
from llmctl.train.trainable import full
from llmctl.train.trainable.base import Subject
from llmctl.train.trainable.model_folder import ModelWriter

SHOWN_TOKENS = 32
"""Tokens of a prompt, and of its continuation, that are shown before and after training."""


@dataclass(frozen=True)
class PretrainData:
    """The task of a run, and what is measured beside it.

    Attributes:
        task: What the loop trains and evaluates on.
        test: Samples to measure the final model on; None = none.
        tokenizer: For the texts that are shown.
        held_out: What the metrics are measured on, for a table's title.
        shown: How many continuations are shown.
    """

    task: PretrainTask
    test: Samples | None
    tokenizer: Tokenizer
    held_out: str
    shown: int

    def samples(self, model: Any) -> list[dict[str, str]]:
        """Beginnings of valid samples, how the corpus goes on, and how the model does, greedily."""
        from llmctl.infer.eager.generate import generate
        from llmctl.infer.sampling import SamplingOptions

        valid = self.task.valid
        count = min(self.shown, len(valid)) if valid else 0
        length = min(SHOWN_TOKENS, self.task.train.seq_length // 2)
        if not valid or not count:
            return []
        rows = [valid[i].input_ids[: 2 * length].tolist() for i in range(count)]
        prompts = [row[:length] for row in rows]
        made = generate(model, prompts, SamplingOptions(max_new_tokens=length), (), self.tokenizer.pad_id)
        texts = [[self.tokenizer.decode(ids) for ids in (row[:length], row[length:], answer.ids)]
                 for row, answer in zip(rows, made, strict=True)]  # fmt: skip
        return [dict(zip(("prompt", "expected", "answer"), text, strict=True)) for text in texts]


def run(job: PretrainJob, hooks: Sequence[Hook] = ()) -> dict[str, Any]:
    """Trains, and writes the output folder; see ``run.run``. ``run.json`` also has the metrics of the test split."""
    return runs.run(job, prepare, load, hooks, _test)


def prepare(job: PretrainJob) -> PretrainData:
    """Opens the samples of all splits, building indices where there are none.

    Raises:
        DataError: A split has no documents, or another process is building an index for too long.
    """
    data, train = job.config.data, job.config.train
    setting, wanted = Setting.of(data), job.config.samples()
    opened = {name: open_split(setting, name, count, job.dims.vocab) for name, count in wanted.items() if count}
    for name, samples in opened.items():
        print(f"{name}: {len(samples):,} samples of {data.seq_length} tokens", flush=True)
    tokens = sum(part.tokens_per_pass for part in opened["train"].parts)
    task = PretrainTask(
        opened["train"], opened.get("valid"), train.batch_size, train.grad_accumulation, train.eval_batch_size, tokens
    )
    return PretrainData(
        task, opened.get("test"), job.tokenizer, f"{wanted['valid']} valid samples", job.config.output.samples
    )


def load(job: PretrainJob, start: Path | None) -> Subject:
    """The job's model: a checkpoint, or a new one whose weights are drawn as the card's modeling code says."""
    dims, dtype = job.dims, precision.of(job.config.model.dtype, job.config.train).held
    source = start or job.model
    if source:
        model, _, _ = load_model(source, job.plugin.card.name, dtype)
    else:
        runtime.seed(job.config.train.seed)
        model = build(job.plugin, dims, dtype)
    limit = common.parse_bytes(job.config.output.max_shard_bytes)
    return full.whole(model, ModelWriter(job.plugin, dims, job.model, job.tokenizer, limit, job.raw))


def _test(model: Any, data: Any) -> dict[str, Any]:
    if data.test is None:
        return {}
    metrics = data.task.measure(model, data.test)
    rows = [[name.removeprefix("eval_"), format_metric(name, value)] for name, value in metrics.items()]
    table(f"{len(data.test)} test samples", ["metric", "value"], rows)
    return {"test": metrics}
