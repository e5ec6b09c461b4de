"""The configuration of preference optimisation: what ``config`` says of fine-tuning, with sections of its own."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config import MethodConfig, ModelConfig, OutputConfig, StepConfig
from llmctl.schema import option, section

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "sppo_hard", "nca_pair")


@dataclass(kw_only=True)
class DpoDataConfig:
    """Preferences: JSON lines with `src`, `tgt`, `response` and `sort`."""

    train: list[str] = option([], "Files, or folders with train.json(l) and dev.json(l); one text or a list.")
    dev: list[str] = option([], "Files to evaluate on; empty = the dev files of the folders in `train`, if any.")
    max_prompt_length: int = option(
        1024, "Longest prompt in tokens, where not everything fits; the question is cut from the left.", minimum=1
    )
    max_length: int = option(2048, "Longest prompt and both answers together, in tokens.", minimum=3)
    chat_template: str = option(
        "auto", "`auto` = the checkpoint's, `family` = the card's, `none`, or a file or folder with one."
    )
    pad_to_multiple_of: int = option(1, "Rows of a batch are padded to a multiple of so many tokens.", minimum=1)
    packing: str = option(
        "none",
        "Several pairs in one row, each blind to the others: in order, or as they fit best.",
        choices=("none", "first-come", "best-fit"),
    )
    packed_length: int = option(0, "Tokens in a row of packed pairs; 0 = max_length.", minimum=0)
    shuffle: bool = option(True, "Shuffle the pairs anew in every epoch.")


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
