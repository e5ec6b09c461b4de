"""The configuration of ``llmctl finetune``: sections ``model``, ``method``, ``data``, ``train``, ``parallel``
and ``output``."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import EpochTrainConfig, JsonlDataConfig, MethodConfig, ModelConfig, OutputConfig
from llmctl.config.parallel import ParallelConfig
from llmctl.config.schema import option, section

FORMATS = ("auto", "llmctl", "ShareGPT", "messages", "Alpaca", "prompt-completion")
"""Names of the formats of examples and prompts; ``auto`` = recognised by the keys of each line."""


@dataclass(kw_only=True)
class FinetuneDataConfig(JsonlDataConfig):
    """Prompts and answers, in any format of docs/data.md."""

    format: str = option(
        "auto",
        "Format of the lines; `auto` = recognised by their keys.",
        choices=FORMATS,
    )
    train_on: str = option("all", "Answers of a conversation that have loss.", choices=("all", "last"))
    src_length: int = option(
        0, "Longest prompt in tokens; truncated from the left. 0 = half of max_length, up to 1024.", minimum=0
    )
    max_length: int = option(
        0,
        "Longest prompt and answer together, in tokens; the answer is truncated from the right. "
        "0 = 2048, or fewer if the model has fewer positions.",
        minimum=0,
    )


@dataclass(kw_only=True)
class FinetuneTrainConfig(EpochTrainConfig):
    """Optimizer (AdamW), schedule, evaluation and checkpoints."""

    best_metric: str = option(
        "eval_loss", "Metric that chooses the best checkpoint.", choices=("eval_loss", "accuracy", "exact_match")
    )
    eval_generate: bool = option(False, "Also generate answers in evaluations and report exact_match.")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)
    data: FinetuneDataConfig = section(FinetuneDataConfig)
    train: FinetuneTrainConfig = section(FinetuneTrainConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    output: OutputConfig = section(OutputConfig)
