"""The training commands: import paths of their configurations, checks and methods, imported on use; only methods need paddle."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A training command; each value is ``module:name``.

    Attributes:
        config: The class of its configuration.
        check: Its checks, a ``jobs.job.Check``.
        method: What its runs do, a ``train.methods.base.Method``.
    """

    config: str
    check: str
    method: str


COMMANDS: Mapping[str, Command] = {
    "finetune": Command(
        "llmctl.config.finetune:FinetuneConfig", "llmctl.jobs.finetune:check", "llmctl.train.methods.sft:METHOD"
    ),
    "dpo": Command("llmctl.config.dpo:DpoConfig", "llmctl.jobs.dpo:check", "llmctl.train.methods.dpo:METHOD"),
    "pretrain": Command(
        "llmctl.config.pretrain:PretrainConfig", "llmctl.jobs.pretrain:check", "llmctl.train.methods.pretrain:METHOD"
    ),
}

TRAINABLES: Mapping[str, str] = {
    "full": "llmctl.train.trainable.full:load",
    "lora": "llmctl.train.trainable.lora:load",
    "prefix": "llmctl.train.trainable.prefix:load",
}
"""What loads the trainable model, by ``method.name``: a function of a job and the checkpoint to continue, if any."""


def command_of(data: Mapping[str, Any]) -> str:
    """The command that a configuration is for, by its sections.

    Args:
        data: The configuration as it is written.
    """
    if "dpo" in data:
        return "dpo"
    model, rows = (data.get(part) or {} for part in ("model", "data"))
    return "pretrain" if "corpora" in rows or {"size", "config"} & set(model) else "finetune"


def resolve(where: str) -> Any:
    """The class, function or object at ``module:name``, imported now."""
    return pkgutil.resolve_name(where)
