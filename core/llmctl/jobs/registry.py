"""The commands that train, and the parts of each: class of its configuration, checks, data, run.

Nothing is imported before it is asked for: a configuration and its checks need no paddle, the other two do.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any

PARTS: Mapping[str, Mapping[str, str]] = {
    "finetune": {
        "config": "llmctl.config.finetune:FinetuneConfig",
        "checks": "llmctl.jobs.finetune:finetune",
        "prepare": "llmctl.train.methods.sft:prepare",
        "run": "llmctl.train.methods.sft:run",
    },
    "dpo": {
        "config": "llmctl.config.dpo:DpoConfig",
        "checks": "llmctl.jobs.dpo:dpo",
        "prepare": "llmctl.train.methods.dpo:prepare",
        "run": "llmctl.train.methods.dpo:run",
    },
    "pretrain": {
        "config": "llmctl.config.pretrain:PretrainConfig",
        "checks": "llmctl.jobs.pretrain:pretrain",
        "prepare": "llmctl.train.methods.pretrain:prepare",
        "run": "llmctl.train.methods.pretrain:run",
    },
}
"""Command -> part -> where it is. ``checks`` makes a job of a configuration and a family, ``prepare`` what a job trains on,
``run`` takes a job and hooks."""


def part(command: str, name: str) -> Any:
    """The class or function that is a part of a command."""
    return pkgutil.resolve_name(PARTS[command][name])
