"""Sections that several commands share, and checks across their fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from llmctl.config.schema import changed_fields, option
from llmctl.errors import ConfigError


def model_dtype() -> Any:
    """The field ``dtype`` of the section ``model``."""
    return option(
        "float32",
        "Data type of parameters and computation. On a CPU a half type applies to checkpoints only; computation is float32.",
        choices=("float32", "float64", "float16", "bfloat16"),
    )


def model_revision() -> Any:
    """The field ``revision`` of the section ``model``."""
    return option(
        "", "Branch, tag or commit of a `path` on a hub; empty = the one after `@` in `path`, else the newest."
    )


def ignored_config_keys() -> Any:
    """The field ``ignore_config_keys`` of the section ``model``."""
    return option(
        [], "Keys of the model's config.json that llmctl does not know and that do not change what the model computes."
    )


@dataclass(kw_only=True)
class ModelConfig:
    """The pretrained model."""

    path: str = option(
        "",
        "Checkpoint folder, or a name on the Hugging Face Hub (`OWNER/NAME`, `hf:NAME`) or ModelScope "
        "(`modelscope:OWNER/NAME`); `plugin:NAME` is a folder in the plugin's package.",
    )
    revision: str = model_revision()
    dtype: str = model_dtype()
    ignore_config_keys: list[str] = ignored_config_keys()
    add_tokens: list[str] = option(
        [], "Tokens to add to vocabulary, embedding and output head; new rows are initialized to the mean."
    )
    add_special_tokens: list[str] = option(
        [], "As `add_tokens`, for special tokens: left out of answers, and not produced by text in the data."
    )


@dataclass(kw_only=True)
class MethodConfig:
    """What is trained: every parameter, a LoRA adapter, or a prefix."""

    name: str = option(
        "full",
        "What is trained: `full` all parameters, `lora` a LoRA adapter, `prefix` virtual tokens (prefix tuning).",
        choices=("full", "lora", "prefix"),
    )
    rank: int = option(8, "LoRA rank.", minimum=1, methods=("lora",))
    alpha: float = option(
        0.0, "LoRA alpha; the update is scaled by alpha / rank. 0 = 2 x rank.", minimum=0, methods=("lora",)
    )
    dropout: float = option(0.0, "LoRA dropout.", minimum=0, maximum=0.99, methods=("lora",))
    targets: list[str] = option(
        ["all"], "Target modules: `all` linear layers, or suffixes of their names such as `q_proj`.", methods=("lora",)
    )
    modules_to_save: list[str] = option(
        [],
        "Modules that are trained whole beside the adapter and saved with it: `embed_tokens` and `lm_head` in every family, or suffixes "
        "of names. A head that is the embedding stays it.",
        methods=("lora",),
    )
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead (rsLoRA).", methods=("lora",))
    lora_plus_ratio: float = option(1.0, "LoRA+: learning rate of B divided by that of A.", above=0, methods=("lora",))
    pissa: bool = option(
        False, "PiSSA: initialize from the SVD of each weight; slow for large models.", methods=("lora",)
    )
    dora: bool = option(False, "DoRA: also train the magnitude of each column of the weight.", methods=("lora",))
    base: str = option(
        "float",
        "Linear layers of the frozen base model: `float` keeps them, in `model.dtype` or as the codes of a quantized checkpoint; the "
        "others quantize to 8 or 4 bits (QLoRA).",
        choices=("float", "int8", "int4", "nf4"),
        methods=("lora",),
    )
    virtual_tokens: int = option(
        128, "Number of virtual tokens; each takes one of the model's positions.", minimum=1, methods=("prefix",)
    )
    prefix_projection: bool = option(
        False, "Reparametrize the prefix with an MLP during training; only its output is saved.", methods=("prefix",)
    )
    projection_hidden: int = option(
        0, "Hidden width of the prefix MLP; 0 = kv_heads x head_dim.", minimum=0, methods=("prefix",)
    )
    neftune_alpha: float = option(0.0, "NEFTune alpha: noise added to embeddings in training; 0 = off.", minimum=0)


@dataclass(kw_only=True)
class JsonlDataConfig:
    """Files of examples, and how examples become batches."""

    train: list[str] = option([], "Files, patterns such as `data/*.jsonl`, or folders with train and dev files.")
    weights: list[float] = option(
        [], "Share of each entry of `train` in an epoch, as weights; empty = every example once.", above=0
    )
    max_examples: int = option(
        0, "Maximum number of examples of each entry of `train`, the first ones; 0 = all.", minimum=0
    )
    dev: list[str] = option([], "Files to evaluate on; empty = the dev files in the folders of `train`, if any.")
    dev_size: float = option(
        0.0,
        "Held out of `train` at random, by `train.seed`: a share below 1, or a number of examples; 0 = none.",
        minimum=0,
    )
    streaming: bool = option(
        False, "For files larger than memory: read and encode examples when they are needed; the batches are the same."
    )
    index_cache: str = option("", "Folder for the indices of `streaming`; empty = `index-cache` next to each file.")
    columns: list[str] = option(
        [], "Other names of the keys of the format, as `theirs=ours`: `[question=instruction]`."
    )
    chat_template: str = option(
        "auto",
        "`auto` = the checkpoint's own, `family` = the one of the family's card, `none`, or a file or folder that has one.",
    )
    pad_to_multiple_of: int = option(1, "Pad the length of a batch to a multiple of this.", minimum=1)
    packing: str = option(
        "none",
        "Pack several examples into a sequence, masked from each other: `first-come` in order, `best-fit` decreasing length.",
        choices=("none", "first-come", "best-fit"),
    )
    packed_length: int = option(0, "Tokens in a packed sequence; 0 = max_length.", minimum=0)
    shuffle: bool = option(True, "Shuffle the examples in every epoch.")


@dataclass(kw_only=True)
class CommonTrainConfig:
    """Optimizer, schedule, precision and logging, for every command that trains."""

    batch_size: int = option(8, "Examples in a micro-batch (one forward pass).", minimum=1)
    eval_batch_size: int = option(8, "Examples in a forward pass of an evaluation.", minimum=1)
    grad_accumulation: int = option(
        1, "Micro-batches in an optimizer step; the loss is the mean over the tokens of all of them.", minimum=1
    )
    learning_rate: float = option(5e-5, "Peak learning rate.", above=0)
    schedule: str = option("linear", "Learning-rate schedule.", choices=("linear", "cosine", "constant"))
    warmup_steps: int = option(0, "Steps of linear warm-up; overrides warmup_ratio if above 0.", minimum=0)
    warmup_ratio: float = option(0.0, "Warm-up as a fraction of all steps.", minimum=0, maximum=1)
    decay_steps: int = option(0, "Step at which the learning rate reaches its minimum; 0 = the last one.", minimum=0)
    weight_decay: float = option(0.0, "Decoupled weight decay (AdamW); norms and biases are not decayed.", minimum=0)
    adam_beta1: float = option(0.9, "AdamW beta1.", minimum=0, maximum=0.9999)
    adam_beta2: float = option(0.999, "AdamW beta2.", minimum=0, maximum=0.99999)
    adam_eps: float = option(1e-8, "AdamW epsilon.", above=0)
    max_grad_norm: float = option(1.0, "Clip gradients to this global norm; 0 = no clipping.", minimum=0)
    amp: str = option(
        "off",
        "Mixed precision on GPUs. `O1`: matrix products in `amp_dtype`; `O2`: everything, with float32 master weights.",
        choices=("off", "O1", "O2"),
    )
    amp_dtype: str = option("bfloat16", "Half precision type of `amp`.", choices=("bfloat16", "float16"))
    loss_scale: float = option(
        64.0,
        "Initial loss scale in float16 (of the loss summed over tokens); it halves when gradients overflow.",
        above=0,
    )
    loss_scale_every: int = option(2000, "Steps without overflow after which the loss scale doubles.", minimum=1)
    seed: int = option(42, "Random seed of initialization, data order and dropout.", minimum=0, maximum=2**32 - 1)
    eval_before: bool = option(True, "Evaluate the model before training too, and show its answers.")
    log_every: int = option(10, "Log metrics every N steps.", minimum=1)
    log_to: list[str] = option(
        ["none"],
        "Where to log metrics, in addition to metrics.jsonl.",
        choices=("none", "tensorboard", "visualdl", "wandb", "swanlab", "mlflow"),
    )
    project: str = option("llmctl", "Project of `wandb` and `swanlab`, experiment of `mlflow`.")
    run_name: str = option("", "Name of the run there; empty = that of the output folder.")
    save_total_limit: int = option(2, "Newest checkpoints to keep, in addition to the best one; 0 = all.", minimum=0)
    recompute: str = option(
        "none",
        "Gradient checkpointing: recompute whole layers (`full`) or only their attention in the backward pass.",
        choices=("none", "full", "attention"),
    )
    recompute_interval: int = option(1, "Recompute every N-th layer.", minimum=1)
    ema_decay: float = option(
        0.0, "Decay of an exponential moving average of the weights, which is then evaluated and saved; 0 = off.",
        minimum=0, maximum=0.99999,
    )  # fmt: skip
    patience: int = option(0, "Early stopping: stop after N evaluations without improvement; 0 = off.", minimum=0)
    stats_every: int = option(
        0, "Write norms of weights and gradients to statistics.jsonl every N steps; 0 = off.", minimum=0
    )


@dataclass(kw_only=True)
class EpochTrainConfig(CommonTrainConfig):
    """Training in epochs over examples, with evaluations and checkpoints."""

    epochs: float = option(3.0, "Number of epochs; ignored when max_steps is set.", above=0)
    max_steps: int = option(0, "Number of steps; 0 = as many as the epochs have.", minimum=0)
    min_lr_ratio: float = option(0.0, "Final learning rate as a fraction of the peak.", minimum=0, maximum=1)
    eval_every: int = option(0, "Evaluate every N steps; 0 = after each epoch.", minimum=0)
    save_every: int = option(0, "Save a checkpoint every N steps; 0 = after each epoch.", minimum=0)
    eval_max_new_tokens: int = option(64, "Longest answer that evaluations and samples generate, in tokens.", minimum=1)


@dataclass(kw_only=True)
class OutputConfig:
    """The output folder: checkpoints and the final model."""

    dir: str = option("", "Output folder; must be new or empty, unless `resume` or `overwrite` is set.")
    overwrite: bool = option(False, "Delete the results of an earlier run in the output folder.")
    resume: bool = option(False, "Continue from the newest checkpoint in the output folder.")
    save_dtype: str = option(
        "float32", "Type of the weights in the final model.", choices=("float32", "float16", "bfloat16")
    )
    checkpoint_dtype: str = option(
        "same",
        "Type of the weights in checkpoints; `same` = as trained. Resuming from a half type continues with rounded weights.",
        choices=("same", "float16", "bfloat16"),
    )
    async_save: bool = option(
        False,
        "Save asynchronously: write checkpoints to memory (/dev/shm), copy them to disk while training continues.",
    )
    max_shard_bytes: str | int = option("5GB", "Maximum size of a weight file, such as 500MB, 5GB or 4GiB.")
    load_best: bool = option(True, "Save the best checkpoint as the final model, not the last step.")
    samples: int = option(3, "Number of dev prompts whose answers are shown before and after training.", minimum=0)


NO_EFFECT = (
    ("recompute", "none", ("recompute_interval",)),
    ("schedule", "constant", ("decay_steps", "min_lr_ratio", "min_learning_rate")),
)
"""(key, value, fields): with ``train.<key> = value`` these fields of ``train`` have no effect."""


def warmup_steps(steps: int, fixed: int, ratio: float) -> int:
    """Number of warm-up steps: ``fixed`` if above 0, else this fraction of all steps, rounded up."""
    return fixed if fixed > 0 else math.ceil(steps * ratio)


def check_updates(train: Any) -> None:
    """Checks that the warm-up ends before ``decay_steps`` and that every field that is set has an effect.

    Args:
        train: The section ``train`` of any command.

    Raises:
        ConfigError: One of the two is not so.
    """
    warmup = warmup_steps(train.max_steps, train.warmup_steps, train.warmup_ratio)
    if 0 < train.decay_steps <= warmup:
        key = f"train.warmup_{'steps' if train.warmup_steps else 'ratio'}"
        raise ConfigError(f"train.decay_steps={train.decay_steps} must be above the {warmup} warm-up steps of {key}")
    changed = changed_fields(train)
    for key, value, fields in NO_EFFECT:
        unused = [field for field in fields if field in changed]
        if unused and getattr(train, key) == value:
            raise ConfigError(f"train.{unused[0]} has no effect with train.{key}={value}; leave it out")


def check_method(method: MethodConfig) -> None:
    """Checks that every field that differs from its default belongs to the chosen method.

    Raises:
        ConfigError: Lists the fields that do not.
    """
    problems = []
    for field in dataclasses.fields(method):
        default = getattr(type(method)(), field.name)
        methods = field.metadata["methods"]
        if methods and method.name not in methods and getattr(method, field.name) != default:
            problems.append(f"method.{field.name} has no effect with method.name={method.name}; leave it out, or set "
                            f"method.name={' or '.join(methods)}")  # fmt: skip
    if problems:
        raise ConfigError("\n".join(problems))
