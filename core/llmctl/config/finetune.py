"""The configuration of fine-tuning, in sections ``model / method / data / train / output``, and checks across its fields.

What a field is and how files become configurations is in ``schema.py``, other methods' sections in ``config_pretrain.py``
and ``config_dpo.py``, reading of files and ``--set`` in ``configfile.py``; combinations that need files are checked in
``preflight.py``. Nothing here imports paddle, numpy or rich.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.common import LinesConfig, MethodConfig, ModelConfig, OutputConfig, StepConfig
from llmctl.config.schema import option, section


@dataclass(kw_only=True)
class DataConfig(LinesConfig):
    """Training data: JSON lines with `src` and `tgt`."""

    src_length: int = option(1024, "Longest source in tokens; what is over is cut from the left.", minimum=1)
    max_length: int = option(2048, "Longest source and target together, in tokens.", minimum=2)


@dataclass(kw_only=True)
class TrainConfig(StepConfig):
    """Steps, optimiser (AdamW), schedule, evaluation and checkpoints."""

    best_metric: str = option(
        "eval_loss", "What the best checkpoint is chosen by.", choices=("eval_loss", "accuracy", "exact_match")
    )
    eval_generate: bool = option(False, "Evaluate by generation too: the part of exactly right answers.")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)
    data: DataConfig = section(DataConfig)
    train: TrainConfig = section(TrainConfig)
    output: OutputConfig = section(OutputConfig)
