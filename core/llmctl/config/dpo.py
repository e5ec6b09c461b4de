"""The configuration of preference optimisation: what ``config`` says of fine-tuning, with sections of its own."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import LinesConfig, MethodConfig, ModelConfig, OutputConfig, StepConfig
from llmctl.config.schema import option, section

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "sppo_hard", "nca_pair")


@dataclass(kw_only=True)
class DpoDataConfig(LinesConfig):
    """Preferences: JSON lines with `src`, `tgt`, `response` and `sort`."""

    max_prompt_length: int = option(
        1024, "Longest prompt in tokens, where not everything fits; the question is cut from the left.", minimum=1
    )
    max_length: int = option(2048, "Longest prompt and both answers together, in tokens.", minimum=3)


@dataclass(kw_only=True)
class PreferenceConfig:
    """The loss on a pair, and the model it is measured against."""

    loss: str = option("sigmoid", "Loss of a pair.", choices=LOSSES)
    beta: float = option(0.1, "How closely the model is held to the reference; tau of `ipo`.", above=0)
    label_smoothing: float = option(
        0.0, "Part of the pairs whose order is taken to be wrong; of `sigmoid` alone.", minimum=0, maximum=0.49
    )
    reference_free: bool = option(False, "Measure against a model to which all answers are equally likely.")
    precompute_reference: bool = option(
        False, "Compute the reference's log-probabilities once before training, and let the reference go."
    )


@dataclass(kw_only=True)
class DpoTrainConfig(StepConfig):
    """Steps, optimiser (AdamW), schedule, evaluation and checkpoints."""

    best_metric: str = option(
        "eval_loss", "What the best checkpoint is chosen by.", choices=("eval_loss", "rewards/accuracies")
    )


@dataclass(kw_only=True)
class DpoConfig:
    """Direct preference optimisation."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)
    data: DpoDataConfig = section(DpoDataConfig)
    dpo: PreferenceConfig = section(PreferenceConfig)
    train: DpoTrainConfig = section(DpoTrainConfig)
    output: OutputConfig = section(OutputConfig)
