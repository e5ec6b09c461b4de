"""Sections that several commands share, and the checks of their combinations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from llmctl.config.schema import chosen_of, option
from llmctl.errors import ConfigError


def model_dtype() -> Any:
    """The field ``dtype`` of a model."""
    return option(
        "float32",
        "Type that parameters are held and computed in; on a CPU half types are what checkpoints are stored in.",
        choices=("float32", "float64", "float16", "bfloat16"),
    )


@dataclass(kw_only=True)
class ModelConfig:
    """The model that training starts from."""

    path: str = option("", "Checkpoint folder; `plugin:NAME` is a folder inside the family's package.")
    dtype: str = model_dtype()


@dataclass(kw_only=True)
class MethodConfig:
    """How the model is trained."""

    name: str = option(
        "full",
        "`full` trains every parameter, `lora` small matrices beside layers, `prefix` virtual tokens before the text.",
        choices=("full", "lora", "prefix"),
    )
    rank: int = option(8, "Rank of the small matrices.", minimum=1, methods=("lora",))
    alpha: float = option(
        0.0, "What the matrices do is multiplied by alpha / rank; 0 = twice the rank.", minimum=0, methods=("lora",)
    )
    dropout: float = option(
        0.0, "Part of a layer's input that its matrices do not see.", minimum=0, maximum=0.99, methods=("lora",)
    )
    targets: list[str] = option(
        ["all"], "`all` linear layers, or ends of their names such as `q_proj`.", methods=("lora",)
    )
    rslora: bool = option(False, "Multiply by alpha / sqrt(rank) instead.", methods=("lora",))
    lora_plus_ratio: float = option(
        1.0, "LoRA+: learning rate of B as a multiple of that of A.", above=0, methods=("lora",)
    )
    pissa: bool = option(
        False, "Begin with the principal part of each layer; takes a while for large models.", methods=("lora",)
    )
    dora: bool = option(False, "DoRA: learn the lengths of the columns of weights too.", methods=("lora",))
    base: str = option(
        "float",
        "How the linears of the base are held: in `model.dtype`, or in 8 or 4 bits (QLoRA).",
        choices=("float", "int8", "int4", "nf4"),
        methods=("lora",),
    )
    virtual_tokens: int = option(
        128, "Virtual tokens, which take up so many of the model's positions.", minimum=1, methods=("prefix",)
    )
    prefix_projection: bool = option(
        False, "Train two linear layers that the virtual tokens come out of; not kept afterwards.", methods=("prefix",)
    )
    projection_hidden: int = option(
        0, "Width between these layers; 0 = that of all keys of a token.", minimum=0, methods=("prefix",)
    )
    neftune_alpha: float = option(0.0, "NEFTune: noise on token vectors in training; 0 = none.", minimum=0)


@dataclass(kw_only=True)
class LinesConfig:
    """Files of JSON lines, and how their texts become rows."""

    train: list[str] = option([], "Files, or folders with train.json(l) and dev.json(l); one text or a list.")
    dev: list[str] = option([], "Files to evaluate on; empty = the dev files of the folders in `train`, if any.")
    chat_template: str = option(
        "auto", "`auto` = the checkpoint's, `family` = the card's, `none`, or a file or folder with one."
    )
    pad_to_multiple_of: int = option(1, "Rows of a batch are padded to a multiple of so many tokens.", minimum=1)
    packing: str = option(
        "none",
        "Several lines in one row, each blind to the others: in order, or as they fit best.",
        choices=("none", "first-come", "best-fit"),
    )
    packed_length: int = option(0, "Tokens in a row of packed lines; 0 = max_length.", minimum=0)
    shuffle: bool = option(True, "Shuffle the lines anew in every epoch.")


@dataclass(kw_only=True)
class UpdateConfig:
    """Updates, whatever is trained on."""

    batch_size: int = option(8, "Examples in one forward pass.", minimum=1)
    eval_batch_size: int = option(8, "Examples in one forward pass of an evaluation.", minimum=1)
    grad_accumulation: int = option(1, "Forward passes in a step; tokens are weighted as in one big batch.", minimum=1)
    learning_rate: float = option(5e-5, "Peak learning rate.", above=0)
    schedule: str = option("linear", "Course of the learning rate.", choices=("linear", "cosine", "constant"))
    warmup_steps: int = option(0, "Steps of linear warm-up; above 0 it replaces warmup_ratio.", minimum=0)
    warmup_ratio: float = option(0.0, "Warm-up as a part of all steps.", minimum=0, maximum=1)
    decay_steps: int = option(0, "Steps until the learning rate is at its end; 0 = all steps.", minimum=0)
    weight_decay: float = option(0.0, "Decoupled decay of weights; norms and biases have none.", minimum=0)
    adam_beta1: float = option(0.9, "Decay of AdamW's first moment.", minimum=0, maximum=0.9999)
    adam_beta2: float = option(0.999, "Decay of AdamW's second moment.", minimum=0, maximum=0.99999)
    adam_eps: float = option(1e-8, "AdamW's epsilon.", above=0)
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this global norm; 0 = never.", minimum=0)
    amp: str = option(
        "off",
        "Mixed precision on GPUs: `O1` computes products of matrices in `amp_dtype`, `O2` everything, on rounded weights.",
        choices=("off", "O1", "O2"),
    )
    amp_dtype: str = option("bfloat16", "Type of mixed precision.", choices=("bfloat16", "float16"))
    loss_scale: float = option(
        64.0,
        "Float16: losses, sums over tokens, are multiplied by this at first; it halves when gradients overflow.",
        above=0,
    )
    loss_scale_every: int = option(2000, "Updates in a row without an overflow after which it doubles.", minimum=1)
    seed: int = option(42, "Seed of the order of examples and of everything random.", minimum=0, maximum=2**32 - 1)
    log_every: int = option(10, "Steps between two lines of metrics.", minimum=1)
    log_to: list[str] = option(
        ["none"], "Where metrics go besides metrics.jsonl; one or a list.", choices=("none", "tensorboard", "visualdl")
    )
    save_total_limit: int = option(2, "Checkpoints kept besides the best one; 0 = all.", minimum=0)
    recompute: str = option(
        "none",
        "What is computed again for its gradient rather than kept: whole layers, or their attention.",
        choices=("none", "full", "attention"),
    )
    recompute_interval: int = option(1, "Of so many layers one is recomputed.", minimum=1)
    ema_decay: float = option(
        0.0, "Above 0: a moving average of the weights is evaluated and kept; the part kept each step.",
        minimum=0, maximum=0.99999,
    )  # fmt: skip
    patience: int = option(0, "Stop after so many evaluations without a better one; 0 = never.", minimum=0)
    stats_every: int = option(0, "Steps between two lines of statistics.jsonl; 0 = none.", minimum=0)


@dataclass(kw_only=True)
class StepConfig(UpdateConfig):
    """Steps in passes over examples, and what happens between them."""

    epochs: float = option(3.0, "Passes over the data; ignored when max_steps is set.", above=0)
    max_steps: int = option(0, "Stop after so many steps; 0 = by epochs.", minimum=0)
    min_lr_ratio: float = option(0.0, "Learning rate at the end as a part of the peak.", minimum=0, maximum=1)
    eval_every: int = option(0, "Steps between two evaluations; 0 = after each epoch.", minimum=0)
    save_every: int = option(0, "Steps between two checkpoints; 0 = after each epoch.", minimum=0)
    eval_max_new_tokens: int = option(64, "Longest answer generated to be shown or compared, in tokens.", minimum=1)


@dataclass(kw_only=True)
class OutputConfig:
    """Where results go."""

    dir: str = option("", "Output folder; must be new or empty unless resume or overwrite is set.")
    overwrite: bool = option(False, "Delete what an earlier run left in the output folder.")
    resume: bool = option(False, "Continue from the newest checkpoint in the output folder.")
    save_dtype: str = option(
        "float32", "Type of weights in the final model.", choices=("float32", "float16", "bfloat16")
    )
    checkpoint_dtype: str = option(
        "same",
        "Type of weights in checkpoints: that of training, or a half type, from which a run goes on with rounded weights.",
        choices=("same", "float16", "bfloat16"),
    )
    async_save: bool = option(
        False, "Write checkpoints into memory (/dev/shm) and move them to the disk while training goes on."
    )
    max_shard_bytes: str | int = option("5GB", "Largest weight file, such as 500MB, 5GB or 4GiB.")
    load_best: bool = option(True, "The final model is the best checkpoint rather than the last step.")
    samples: int = option(3, "Answers to held-out prompts shown before and after training.", minimum=0)


IDLE = (
    ("recompute", "none", ("recompute_interval",)),
    ("schedule", "constant", ("decay_steps", "min_lr_ratio", "min_learning_rate")),
)
"""A field of ``train``, a value of it, and the fields that then have no effect."""


def warmup_steps(steps: int, fixed: int, ratio: float) -> int:
    """Number of warm-up updates: ``fixed`` if above 0, else this part of all, rounded up."""
    return fixed if fixed > 0 else math.ceil(steps * ratio)


def check_updates(train: Any) -> None:
    """Passes when the warm-up ends before the learning rate does, and no field is without effect.

    Args:
        train: The section ``train`` of any command.

    Raises:
        ConfigError: It does not, or one is.
    """
    warmup = warmup_steps(train.max_steps, train.warmup_steps, train.warmup_ratio)
    if 0 < train.decay_steps <= warmup:
        said = f"train.warmup_{'steps' if train.warmup_steps else 'ratio'}"
        raise ConfigError(
            f"train.decay_steps={train.decay_steps} ends before the warm-up of {warmup} steps that {said} asks for; "
            "make it longer"
        )
    chosen = chosen_of(train)
    for key, value, fields in IDLE:
        idle = [field for field in fields if field in chosen]
        if idle and getattr(train, key) == value:
            raise ConfigError(f"train.{idle[0]} has no effect with train.{key}={value}; leave it out")


def check_method(method: MethodConfig) -> None:
    """Passes when every field that differs from its default has an effect with the method's name.

    Raises:
        ConfigError: Names the fields that have none.
    """
    idle = []
    for row in dataclasses.fields(method):
        default = getattr(type(method)(), row.name)
        methods = row.metadata["methods"]
        if methods and method.name not in methods and getattr(method, row.name) != default:
            idle.append(f"method.{row.name} has no effect with method.name={method.name}; leave it out, or set "
                        f"method.name={' or '.join(methods)}")  # fmt: skip
    if idle:
        raise ConfigError("\n".join(idle))
