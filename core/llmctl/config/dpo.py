"""The configuration of ``llmctl dpo``: that of fine-tuning with preference data and the section ``dpo``."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import EpochTrainConfig, JsonlDataConfig, MethodConfig, ModelConfig, OutputConfig
from llmctl.config.parallel import ParallelConfig
from llmctl.config.schema import option, section

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "sppo_hard", "nca_pair")
FORMATS = (
    "auto",
    "llmctl",
    "ShareGPT",
    "PaddleFormers",
    "ms-swift",
    "ms-swift-messages",
    "Alpaca",
    "prompt-chosen-rejected",
)
"""Names of the formats of preferences; ``auto`` = recognised by the keys of each line."""


@dataclass(kw_only=True)
class DpoDataConfig(JsonlDataConfig):
    """Preference pairs, in any format of docs/data.md."""

    format: str = option(
        "auto",
        "Format of the lines; `auto` = recognised by their keys.",
        choices=FORMATS,
    )
    max_prompt_length: int = option(
        0,
        "Longest prompt in tokens, where prompt and answers exceed max_length; truncated from the left. "
        "0 = half of max_length, up to 1024.",
        minimum=0,
    )
    max_length: int = option(
        0,
        "Longest prompt and both answers together, in tokens; 0 = 2048, or fewer if the model has fewer positions.",
        minimum=0,
    )


@dataclass(kw_only=True)
class DpoLossConfig:
    """The loss of a preference pair, and the reference model."""

    loss: str = option("sigmoid", "Loss of a preference pair.", choices=LOSSES)
    beta: float = option(0.1, "DPO beta: how strongly the model is kept close to the reference; tau of `ipo`.", above=0)
    label_smoothing: float = option(
        0.0, "Assumed fraction of pairs with wrong labels (cDPO); only for `sigmoid`.", minimum=0, maximum=0.49
    )
    reference_free: bool = option(False, "No reference model: the reference gives every answer the same probability.")
    precompute_reference: bool = option(
        False, "Compute the reference log-probabilities once before training, then free the reference model."
    )


@dataclass(kw_only=True)
class DpoTrainConfig(EpochTrainConfig):
    """Optimizer (AdamW), schedule, evaluation and checkpoints."""

    best_metric: str = option(
        "eval_loss", "Metric that chooses the best checkpoint.", choices=("eval_loss", "rewards/accuracies")
    )


@dataclass(kw_only=True)
class DpoConfig:
    """Direct preference optimization (DPO)."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)
    data: DpoDataConfig = section(DpoDataConfig)
    dpo: DpoLossConfig = section(DpoLossConfig)
    train: DpoTrainConfig = section(DpoTrainConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    output: OutputConfig = section(OutputConfig)
