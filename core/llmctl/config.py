"""Configurations: dataclasses that state every field's meaning, range and default, and the checks of values.

Sections are ``model / method / data / train / output``. An unknown key is an error that names the nearest known one; a
value of the wrong type or out of range is an error that says what is allowed. Files and ``--set`` are read in
``configfile.py``; combinations that need files are checked in ``preflight.py``. Nothing here imports paddle, numpy or
rich.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmctl.errors import ConfigError

T = TypeVar("T")


def option(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    methods: Sequence[str] = (),
) -> Any:
    """A field: its default, one line of documentation, what values are allowed, and the methods it has an effect with.

    No methods stands for all.
    """
    bounds = {"choices": tuple(choices), "minimum": minimum, "maximum": maximum, "above": above}
    bounds["methods"] = tuple(methods)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc, **bounds})
    return field(default=default, metadata={"doc": doc, **bounds})


def section(cls: type[T]) -> T:
    """A field that holds a section."""
    return field(default_factory=cls, metadata={"doc": (cls.__doc__ or "").strip()})


@dataclass(kw_only=True)
class ModelConfig:
    """The model that training starts from."""

    path: str = option("", "Checkpoint folder; `plugin:NAME` is a folder inside the family's package.")
    dtype: str = option("float32", "Type that parameters are held and computed in.", choices=("float32", "float64"))


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
class DataConfig:
    """Training data: JSON lines with `src` and `tgt`."""

    train: list[str] = option([], "Files, or folders with train.json(l) and dev.json(l); one text or a list.")
    dev: list[str] = option([], "Files to evaluate on; empty = the dev files of the folders in `train`, if any.")
    src_length: int = option(1024, "Longest source in tokens; what is over is cut from the left.", minimum=1)
    max_length: int = option(2048, "Longest source and target together, in tokens.", minimum=2)
    chat_template: str = option(
        "auto", "`auto` = the checkpoint's, `family` = the card's, `none`, or a file or folder with one."
    )
    pad_to_multiple_of: int = option(1, "Rows of a batch are padded to a multiple of so many tokens.", minimum=1)
    packing: str = option(
        "none",
        "Several examples in one row of max_length tokens, each blind to the others: in order, or as they fit best.",
        choices=("none", "first-come", "best-fit"),
    )
    packed_length: int = option(0, "Tokens in a row of packed examples; 0 = max_length.", minimum=0)
    shuffle: bool = option(True, "Shuffle the examples anew in every epoch.")


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
    seed: int = option(42, "Seed of the order of examples and of everything random.", minimum=0)
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
class TrainConfig(StepConfig):
    """Steps, optimiser (AdamW), schedule, evaluation and checkpoints."""

    best_metric: str = option(
        "eval_loss", "What the best checkpoint is chosen by.", choices=("eval_loss", "accuracy", "exact_match")
    )
    eval_generate: bool = option(False, "Evaluate by generation too: the part of exactly right answers.")


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
    max_shard_bytes: str = option("5GB", "Largest weight file, such as 500MB or 5GB.")
    load_best: bool = option(True, "The final model is the best checkpoint rather than the last step.")
    samples: int = option(3, "Answers to held-out prompts shown before and after training.", minimum=0)


@dataclass(kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning."""

    model: ModelConfig = section(ModelConfig)
    method: MethodConfig = section(MethodConfig)
    data: DataConfig = section(DataConfig)
    train: TrainConfig = section(TrainConfig)
    output: OutputConfig = section(OutputConfig)


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """A configuration of this class from nested mappings.

    Raises:
        ConfigError: Lists every unknown key, wrong type and value out of range at once.
    """
    problems: list[str] = []
    made = _build(cls, data, "", problems)
    if problems:
        head = f"{where}: " if where else ""
        raise ConfigError(f"{head}the configuration is not valid:\n  " + "\n  ".join(problems))
    return typing.cast(T, made)


def check_updates(train: UpdateConfig) -> None:
    """Passes when the warm-up ends before the learning rate does.

    Raises:
        ConfigError: It does not.
    """
    if 0 < train.decay_steps <= train.warmup_steps:
        raise ConfigError(
            f"train.decay_steps={train.decay_steps} ends before the warm-up of train.warmup_steps={train.warmup_steps}; "
            "make it longer"
        )


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


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain nested data."""
    return dataclasses.asdict(config)


def chosen(config: Any) -> list[str]:
    """Keys whose values differ from the defaults."""
    defaults = type(config)()
    return [
        f"{part.name}.{row.name}"
        for part in dataclasses.fields(config)
        for row in dataclasses.fields(getattr(config, part.name))
        if getattr(getattr(config, part.name), row.name) != getattr(getattr(defaults, part.name), row.name)
    ]


def to_yaml(config: Any, header: str = "") -> str:
    """A configuration as YAML, each field with its documentation behind it; a list that is empty is commented out."""
    lines = [f"# {line}" for line in header.splitlines()]
    for part in dataclasses.fields(config):
        lines.append(f"{part.name}:")
        value = getattr(config, part.name)
        for row in dataclasses.fields(value):
            content = getattr(value, row.name)
            text = (
                f"  {row.name}: {json.dumps(content, ensure_ascii=False)}"
                if content != []
                else f"  # {row.name}: [...]"
            )
            lines.append(f"{text:<34}  # {row.metadata['doc']}{_allowed(row.metadata)}")
    return "\n".join(lines) + "\n"


def describe(cls: type) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows (key, type, default, allowed, documentation) of every field, for the reference page."""
    for part in dataclasses.fields(cls):
        sub = typing.get_type_hints(cls)[part.name]
        hints = typing.get_type_hints(sub)
        for row in dataclasses.fields(sub):
            default = getattr(sub(), row.name)
            allowed = _allowed(row.metadata).strip(" ()")
            yield (
                f"{part.name}.{row.name}",
                _type_name(hints[row.name]),
                json.dumps(default),
                allowed,
                row.metadata["doc"],
            )


def parse_bytes(text: str) -> int:
    """Number of bytes that ``"500MB"`` or ``"5GB"`` stands for.

    Raises:
        ConfigError: It is not a number with one of the units B, KB, MB, GB.
    """
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
    for unit, factor in units.items():
        number = text.strip().upper().removesuffix(unit)
        if number != text.strip().upper():
            try:
                size = int(float(number) * factor)
            except (ValueError, OverflowError):
                break
            if size > 0:
                return size
    raise ConfigError(f"{text!r} is not a size; write a number and B, KB, MB or GB, such as 500MB")


def _build(cls: type, data: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    rows = {row.name: row for row in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in rows:
            problems.append(_unknown(str(key), prefix, list(rows)))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                values[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.", problems)
            elif value is not None:
                problems.append(f"{prefix}{key} is a section with keys of its own, not {value!r}")
        else:
            values[key] = _check(prefix + key, value, hints[key], rows[key].metadata, problems)
    return cls(**values)


def _check(name: str, value: Any, hint: Any, rules: Mapping[str, Any], problems: list[str]) -> Any:
    value, fits = _convert(value, hint)
    if not fits:
        problems.append(f"{name}={value!r}: expected {_type_name(hint)}")
        return value
    chosen = value if isinstance(value, list) else [value]
    strange = [one for one in chosen if rules["choices"] and one not in rules["choices"]]
    if strange:
        near = difflib.get_close_matches(str(strange[0]), [str(c) for c in rules["choices"]], 1)
        hint_text = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"{name}={value!r}: allowed are {', '.join(map(str, rules['choices']))}{hint_text}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _in_range(value, rules):
        problems.append(f"{name}={value!r}: must be{_allowed(rules).replace('(', '').replace(')', '')}")
    return value


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    if hint is bool:
        return value, isinstance(value, bool)
    if hint is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        if isinstance(value, str):
            # YAML 1.1 reads 1e-4, which has no point, as text.
            try:
                return float(value), True
            except ValueError:
                return value, False
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value), True) if good else (value, False)
    if hint is str:
        return value, isinstance(value, str)
    if typing.get_origin(hint) is list:
        if isinstance(value, str):
            return [value], True
        return value, isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(hint, types.UnionType):
        return value, any(_convert(value, part)[1] for part in typing.get_args(hint) if part is not type(None))
    raise TypeError(f"no rule for fields of type {hint}")


def _in_range(value: float, rules: Mapping[str, Any]) -> bool:
    low, high, above = rules["minimum"], rules["maximum"], rules["above"]
    if value != value or value in (float("inf"), float("-inf")):
        return False
    return (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)


def _allowed(rules: Mapping[str, Any]) -> str:
    parts = [
        " | ".join(map(str, rules["choices"])),
        f"at least {rules['minimum']}" if rules["minimum"] is not None else "",
        f"at most {rules['maximum']}" if rules["maximum"] is not None else "",
        f"above {rules['above']}" if rules["above"] is not None else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""


def _unknown(key: str, prefix: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {prefix}{key}; {hint}"


def _type_name(hint: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint, "text or a list of texts")
