"""Checks that fine-tuning and preference optimisation share: model, method, tokenizer, examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from llmctl import tokenizers
from llmctl.adapters.folder import is_adapter
from llmctl.card import support
from llmctl.card.dims import Dims
from llmctl.checkpoint.build import CheckedModel, open_model
from llmctl.checkpoint.hf_config import NAME as CONFIG
from llmctl.checkpoint.hf_config import read_config
from llmctl.config import common
from llmctl.data.sft import examples
from llmctl.errors import ConfigError
from llmctl.jobs import loggers, precision
from llmctl.jobs.paths import find_path, output_folder
from llmctl.plugins import Families, Plugin
from llmctl.tokenizers import Tokenizer

E = TypeVar("E")


def find_model(config: Any, family: str, task: str, families: Families) -> tuple[CheckedModel, Tokenizer, Path]:
    """The model, tokenizer and output folder of a job on examples, checked.

    Args:
        config: The configuration.
        family: Name of a family or ``"auto"``.
        task: What the family must support, besides the training method.
        families: The installed families.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    named = families.load(family) if family != "auto" else None
    folder = find_path(config.model.path, "model.path", named)
    if is_adapter(folder):
        raise ConfigError(
            f"model.path={folder} holds an adapter; make a model of it with llmctl merge, or name its base"
        )
    raw, where = read_config(folder), str(folder / CONFIG)
    plugin = families.resolve(family, raw, where)
    support.require(plugin.card, task)
    dims = plugin.card.dims_from_config(raw, where)
    _method(config.method, plugin, dims)
    if config.method.name != "full" and config.output.max_shard_bytes != common.OutputConfig().max_shard_bytes:
        raise ConfigError(
            f"output.max_shard_bytes has no effect with method.name={config.method.name}: an adapter is one file; "
            "leave it out"
        )
    _lengths(config, dims, folder, packed=task == "dpo" or config.data.packing != "none")
    model = open_model(folder, plugin, dims, raw)
    output = output_folder(config.output, {"model.path": folder})
    return model, _tokenizer(config, plugin, folder, dims), output


def _lengths(settings: Any, dims: Dims, model: Path, packed: bool) -> None:
    """Passes when examples, and virtual tokens if there are any, fit into the model's positions and windows."""
    virtual = settings.method.virtual_tokens if settings.method.name == "prefix" else 0
    beside = f" with the {virtual} of method.virtual_tokens" if virtual else ""
    longest, limit, window = settings.data.max_length, dims.get("max_positions"), dims.get("window")
    if limit and longest + virtual > limit:
        room = f"set data.max_length to {limit - virtual} or less" if limit - virtual > 1 else "take fewer of them"
        raise ConfigError(
            f"data.max_length={longest}{beside} is over the {limit} positions that {model} was made for; {room}"
        )
    multiple = settings.data.pad_to_multiple_of
    padded = longest if packed else -(-longest // multiple) * multiple
    if limit and padded + virtual > limit:
        raise ConfigError(
            f"data.pad_to_multiple_of={multiple} pads rows of data.max_length={longest} to {padded} tokens, which{beside} is "
            f"over the {limit} positions that {model} was made for; make one of them smaller"
        )
    if virtual and window and packed and longest + virtual > window:
        fits = f"set data.max_length to {window - virtual} or less" if window - virtual > 1 else "take fewer of them"
        raise ConfigError(
            f"an example of data.max_length={longest}{beside} is over the window of {window} positions, and which virtual "
            f"tokens it still sees cannot be said where a row holds several texts; {fits}"
            f"{', or data.packing to none' if settings.data.packing != 'none' else ''}"
        )


def _method(method: common.MethodConfig, plugin: Plugin, dims: Dims) -> None:
    """Passes when the family offers the way to train, and the layers that it names are there."""
    if method.name == "prefix":
        support.require(plugin.card, "prefix-tuning")
        if method.projection_hidden and not method.prefix_projection:
            raise ConfigError("method.projection_hidden has no effect without method.prefix_projection; set that, too")
    if method.name != "lora":
        return
    from llmctl.adapters import targets

    support.require(plugin.card, "lora")
    chosen = set(targets.choose(plugin.card, dims, method.targets))
    targets.check_rank(plugin.card, dims, chosen, method.rank, method.pissa)
    if method.dora:
        for torch, paths in targets.torch_modules(plugin, dims).items():
            absent = [path for path in paths if path not in chosen]
            if absent and len(absent) < len(paths):
                raise ConfigError(
                    f"method.dora: checkpoints keep {', '.join(paths)} as one layer {torch}, and lengths must be of the "
                    f"whole; add {', '.join(path.rpartition('.')[2] for path in absent)} to method.targets"
                )


def check_common(settings: Any) -> None:
    """Passes when the parts that all jobs on lines of text have go together.

    Raises:
        ConfigError: They do not.
    """
    common.check_method(settings.method)
    if settings.method.pissa and settings.method.base != "float":
        raise ConfigError(
            f"method.pissa leaves the base a remainder that method.base={settings.method.base} would round otherwise than "
            "the base itself, so that no adapter of the base could express it; choose one of the two"
        )
    for section, key in (("model", "path"), ("data", "train"), ("output", "dir")):
        if not getattr(getattr(settings, section), key):
            raise ConfigError(
                f"{section}.{key} is not set; give it in the configuration or with --set {section}.{key}=..."
            )
    data, output = settings.data, settings.output
    if data.packed_length and data.packing == "none":
        raise ConfigError("data.packed_length has no effect with data.packing=none; choose first-come or best-fit")
    if 0 < data.packed_length < data.max_length:
        raise ConfigError(
            f"data.packed_length={data.packed_length} is shorter than the longest example may be, "
            f"data.max_length={data.max_length}; make it at least that"
        )
    common.check_updates(settings.train)
    precision.check(settings.model.dtype, settings.train)
    precision.of(settings.model.dtype, settings.train)
    loggers.check(settings.train.log_to)
    if output.resume and output.overwrite:
        raise ConfigError("output.resume and output.overwrite exclude each other; choose one")


def _tokenizer(settings: Any, plugin: Plugin, model: Path, dims: Dims) -> Tokenizer:
    template = settings.data.chat_template
    if template not in ("auto", "family", "none"):
        template = str(find_path(template, "data.chat_template", plugin))
    tokenizer = tokenizers.load(model, template, plugin.card)
    tokenizers.check_fits(tokenizer, dims.vocab, model)
    return tokenizer


def read_data(settings: Any, plugin: Plugin, parse: examples.Parse[E]) -> tuple[list[E], list[E]]:
    """Examples to train on and to evaluate on, from ``data.train`` and ``data.dev``.

    Args:
        settings: The configuration.
        plugin: The family.
        parse: Makes an example from a line.

    Raises:
        DataError: Lines are broken: all are listed.
        ConfigError: ``train`` asks for what needs examples to evaluate on, and there are none.
    """

    def paths(entries: list[str], key: str) -> list[Path]:
        return [find_path(entry, key, plugin) for entry in entries]

    train = examples.read_examples(paths(settings.data.train, "data.train"), "train", parse)
    if settings.data.dev:
        return train, examples.read_examples(paths(settings.data.dev, "data.dev"), "dev", parse)
    folders = [path for path in paths(settings.data.train, "data.train") if path.is_dir()]
    dev = examples.read_examples(folders, "dev", parse, optional=True)
    for key, idle in (("best_metric", "eval_loss"), ("patience", 0), ("eval_generate", False)):
        value = getattr(settings.train, key, idle)
        if not dev and value != idle:
            raise ConfigError(f"train.{key}={value} needs held-out examples; set data.dev")
    return train, dev
