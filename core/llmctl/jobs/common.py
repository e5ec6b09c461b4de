"""Checks that fine-tuning and preference optimisation share: model, method, tokenizer, data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from llmctl import plugins, tokenizers
from llmctl.adapters.folder import is_adapter
from llmctl.card import support
from llmctl.card.dims import Dims
from llmctl.checkpoint.hf_config import read_config
from llmctl.config import common
from llmctl.data.sft import examples
from llmctl.errors import ConfigError
from llmctl.jobs import loggers, precision
from llmctl.jobs.paths import find_path, output_folder
from llmctl.tokenizers import Tokenizer

C = TypeVar("C")


E = TypeVar("E")


class Found(NamedTuple):
    """What a job is about, all of it checked."""

    plugin: plugins.Plugin
    dims: Dims
    model: Path
    tokenizer: Tokenizer
    output: Path


@dataclass(frozen=True)
class TextJob(Generic[C, E]):
    """A checked job on lines of text.

    Attributes:
        config: The configuration.
        plugin: The family.
        dims: The model's dims, from its config.json.
        model: The checkpoint folder; what is trained begins with it, and is measured against it.
        train: What to train on.
        dev: What to evaluate on; may be empty.
        tokenizer: With the chat template that ``data.chat_template`` names.
        output: The output folder.
        command: Name of the command that runs it.
        rows: What its lines are called.
    """

    config: C
    plugin: plugins.Plugin
    dims: Dims
    model: Path
    train: list[E]
    dev: list[E]
    tokenizer: Tokenizer
    output: Path
    command: str
    rows: str

    def summary(self) -> str:
        """One line on what would run."""
        size = self.plugin.card.count(self.dims)
        return (
            f"{self.plugin.card.name} with {size:,} parameters from {self.model}, "
            f"{len(self.train)} {self.rows} to train on, {len(self.dev)} held out, output in {self.output}"
        )


def job_of(settings: C, found: Found, train: list[E], dev: list[E], command: str, rows: str) -> TextJob[C, E]:
    """The job of what has been checked; arguments as the attributes of `TextJob`."""
    return TextJob(
        settings, found.plugin, found.dims, found.model, train, dev, found.tokenizer, found.output, command, rows
    )


def find_model(settings: Any, family: str, task: str) -> Found:
    """The family, model, tokenizer and output folder of a job on lines of text, checked.

    Args:
        settings: The configuration.
        family: Name of a family or ``"auto"``.
        task: What the family must support, besides the way to train.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    plugin = plugins.load(family) if family != "auto" else None
    model = find_path(settings.model.path, "model.path", plugin)
    if is_adapter(model):
        raise ConfigError(
            f"model.path={model} holds an adapter; make a model of it with llmctl merge, or name its base"
        )
    raw = read_config(model)
    plugin = plugins.resolve(family, raw, str(model / "config.json"))
    support.require(plugin.card, task)
    dims = plugin.card.dims_from_config(raw, str(model / "config.json"))
    _method(settings.method, plugin, dims)
    if settings.method.name != "full" and settings.output.max_shard_bytes != common.OutputConfig().max_shard_bytes:
        raise ConfigError(
            f"output.max_shard_bytes has no effect with method.name={settings.method.name}: an adapter is one file; "
            "leave it out"
        )
    _lengths(settings, dims, model, packed=task == "dpo" or settings.data.packing != "none")
    check_tensors(model, plugin, dims, settings.model.dtype)
    output = output_folder(settings.output, {"model.path": model})
    tokenizer = _tokenizer(settings, plugin, model, dims)
    return Found(plugin, dims, model, tokenizer, output)


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


def _method(method: common.MethodConfig, plugin: plugins.Plugin, dims: Dims) -> None:
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


def check_tensors(model: Path, plugin: plugins.Plugin, dims: Dims, dtype: str) -> None:
    """Passes when a checkpoint's tensors are exactly the card's.

    Raises:
        CheckpointError: Names those that are missing, unexpected or of another shape.
    """
    from llmctl.checkpoint.build import open_model

    open_model(model, plugin, dims, {})


def _tokenizer(settings: Any, plugin: plugins.Plugin, model: Path, dims: Dims) -> Tokenizer:
    template = settings.data.chat_template
    if template not in ("auto", "family", "none"):
        template = str(find_path(template, "data.chat_template", plugin))
    tokenizer = tokenizers.load(model, template, plugin.card)
    tokenizers.check_fits(tokenizer, dims.vocab, model)
    return tokenizer


def read_data(settings: Any, plugin: plugins.Plugin, parse: examples.Parse[E]) -> tuple[list[E], list[E]]:
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
