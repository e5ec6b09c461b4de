"""Checks of a whole job that need no paddle: everything that can be known to be wrong is known here, before heavy work.

A passed check yields a `FinetuneJob`: the configuration with its paths resolved, the plugin, dims and examples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl import capabilities, config, plugins
from llmctl.card import Dims
from llmctl.checkpoint.hf_config import read_config
from llmctl.errors import ConfigError


@dataclass(frozen=True)
class FinetuneJob:
    """A checked fine-tuning job.

    Attributes:
        config: The configuration.
        plugin: The family.
        dims: The model's dims, from its config.json.
        model: The checkpoint folder.
        train: Training examples.
        dev: Examples to evaluate on; may be empty.
        template: What ``data.chat_template`` names: ``"auto"``, ``"none"`` or a path.
        output: The output folder.
    """

    config: config.FinetuneConfig
    plugin: plugins.Plugin
    dims: Dims
    model: Path
    train: list[Any]
    dev: list[Any]
    template: str
    output: Path

    def summary(self) -> str:
        """One line on what would run."""
        size = self.plugin.card.count(self.dims)
        return (
            f"{self.plugin.card.name} with {size:,} parameters from {self.model}, "
            f"{len(self.train)} examples to train on, {len(self.dev)} held out, output in {self.output}"
        )


def finetune(settings: config.FinetuneConfig, family: str) -> FinetuneJob:
    """The job, if every check passes.

    Args:
        settings: The configuration.
        family: Name of a family or ``"auto"``.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    _combinations(settings)
    plugin = plugins.load(family) if family != "auto" else None
    model = _path(settings.model.path, "model.path", plugin)
    raw = read_config(model)
    plugin = plugins.resolve(family, raw["architectures"], str(model / "config.json"))
    capabilities.require(plugin.card, "sft")
    dims = plugin.card.dims_from_config(raw, str(model / "config.json"))
    limit = dims.get("max_positions")
    if limit and settings.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={settings.data.max_length} is over the {limit} positions that {model} was made for; "
            f"set data.max_length to {limit} or less"
        )
    output = _output(settings.output)
    config.parse_bytes(settings.output.max_shard_bytes)
    train, dev = _data(settings, plugin)
    template = settings.data.chat_template
    if template not in ("auto", "none"):
        template = str(_path(template, "data.chat_template", plugin))
    return FinetuneJob(settings, plugin, dims, model, train, dev, template, output)


def _combinations(settings: config.FinetuneConfig) -> None:
    for section, key in (("model", "path"), ("data", "train"), ("output", "dir")):
        if not getattr(getattr(settings, section), key):
            raise ConfigError(
                f"{section}.{key} is not set; give it in the configuration or with --set {section}.{key}=..."
            )
    data, train, output = settings.data, settings.train, settings.output
    if data.src_length >= data.max_length:
        raise ConfigError(
            f"data.src_length={data.src_length} leaves no room for answers in data.max_length={data.max_length}; "
            "make src_length smaller"
        )
    if train.best_metric == "exact_match" and not train.eval_generate:
        raise ConfigError("train.best_metric=exact_match needs train.eval_generate=true")
    if output.resume and output.overwrite:
        raise ConfigError("output.resume and output.overwrite exclude each other; choose one")


def _data(settings: config.FinetuneConfig, plugin: plugins.Plugin) -> tuple[list[Any], list[Any]]:
    from llmctl.data import reading

    def paths(entries: list[str], key: str) -> list[Path]:
        return [_path(entry, key, plugin) for entry in entries]

    train = reading.read_split(paths(settings.data.train, "data.train"), "train")
    if settings.data.dev:
        return train, reading.read_split(paths(settings.data.dev, "data.dev"), "dev")
    folders = [path for path in paths(settings.data.train, "data.train") if path.is_dir()]
    dev = reading.read_split(folders, "dev", optional=True)
    if not dev and settings.train.best_metric != "eval_loss":
        raise ConfigError(f"train.best_metric={settings.train.best_metric} needs held-out examples; set data.dev")
    return train, dev


def _path(text: str, key: str, plugin: plugins.Plugin | None) -> Path:
    if text.startswith("plugin:"):
        if plugin is None:
            raise ConfigError(f"{key}={text}: a path inside a plugin needs the family; name it with --model")
        path = plugin.folder / text.removeprefix("plugin:")
    else:
        path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={text}: there is no such file or folder")
    return path


def _output(settings: config.OutputConfig) -> Path:
    folder = Path(settings.dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output.dir={settings.dir} is a file; name a folder")
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and not (settings.resume or settings.overwrite):
        raise ConfigError(
            f"the output folder {folder} is not empty; continue it with --resume, replace it with --overwrite, "
            "or choose another"
        )
    if settings.resume and not filled:
        warnings.warn(f"nothing to resume in {folder}; the run starts from the beginning", UserWarning, stacklevel=2)
    return folder
