"""What a plan needs of a job, where there is nothing but a config.json: no weights, no tokenizer, no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmctl.card import support
from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.checkpoint.quantized import without_scheme
from llmctl.config import common, parallel
from llmctl.errors import ConfigError
from llmctl.jobs import added_tokens, degrees, lengths, quantized_base
from llmctl.jobs.memory_plan import Outline
from llmctl.jobs.paths import find_model_folder
from llmctl.jobs.pretrain import new_config
from llmctl.plugins import Families
from llmctl.tokenizers.base import FILES

TASKS = {"finetune": "sft", "dpo": "dpo", "pretrain": "pretrain"}
"""Command -> what the family must support."""


def is_complete(config: Any, family: str, families: Families) -> bool:
    """Whether a configuration names data, and a model or folder with a tokenizer, so that its batches can be built.

    Args:
        config: The configuration.
        family: Name of a family or ``"auto"``.
        families: The installed families.
    """
    if not (getattr(config.data, "train", None) or getattr(config.data, "corpora", None)):
        return False
    home = getattr(config.model, "tokenizer", "") or config.model.path
    if not home:
        return True  # The checks say what is missing.
    folder = _folder(home, config.model.revision if home == config.model.path else "", family, families)
    return any(next(folder.glob(pattern), None) for pattern in FILES)


def outline(command: str, config: Any, family: str, families: Families) -> Outline:
    """The job of a configuration whose model has a config.json, whatever else is missing.

    Args:
        command: Name of the command.
        config: The configuration.
        family: Name of a family or ``"auto"``.
        families: The installed families.

    Raises:
        LlmctlError: The config.json is missing or cannot be used, or lengths contradict it.
    """
    size = getattr(config.model, "size", "")
    if size and not config.model.path:
        return _of_size(config, size, family, families)
    if not config.model.path:
        raise ConfigError(
            "without data and tokenizer a plan needs the config.json of a model: name its folder with --model or model.path"
        )
    folder = _folder(config.model.path, config.model.revision, family, families)
    raw, where, scheme = read_config(folder), str(folder / NAME), None
    card = (plugin := families.resolve(family, raw, where)).card
    support.require(card, TASKS[command])
    if command != "pretrain":
        raw, scheme = without_scheme(folder, raw)
        quantized_base.check(scheme, config.method, any(added_tokens.wanted(config)), folder)
    raw = card.without_keys(raw, config.model.ignore_config_keys, where)
    dims = card.dims_from_config(raw, where)
    if command != "pretrain":
        common.check_method(config.method)
        config = lengths.fitted(config, dims, folder)
    return _checked(command, config, CheckedModel(plugin, dims, raw, home=folder, scheme=scheme))


def _of_size(config: Any, size: str, family: str, families: Families) -> Outline:
    """The job of a new model of a size on a card, with the size's own vocabulary."""
    if family == "auto":
        raise ConfigError(f"model.size={size} is a size of a family; set the family: llmctl --model FAMILY plan")
    card = (plugin := families.load(family)).card
    support.require(card, "pretrain")
    raw, where = new_config(config.model, plugin)
    return _checked("pretrain", config, CheckedModel(plugin, card.dims_from_config(raw, where), raw))


def _checked(command: str, config: Any, model: CheckedModel) -> Outline:
    parallel.check(config.parallel, config.train)
    degrees.check(config.parallel, getattr(config, "method", None), model.plugin.card, model.dims)
    return Outline(command, config, model)


def _folder(text: str, revision: str, family: str, families: Families) -> Path:
    named = families.load(family) if family != "auto" else None
    return find_model_folder(text, "model.path", named, revision, weights=False)
