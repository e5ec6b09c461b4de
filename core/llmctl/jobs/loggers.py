"""The metric loggers of ``train.log_to``, and whether their packages are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from llmctl.errors import DISTRIBUTION, ConfigError, MissingDependencyError

PACKAGES = {"tensorboard": "tensorboardX", "visualdl": "visualdl"}
"""Value of ``train.log_to``, which is also the name of its extra and of its folder in the output folder -> module."""


def check(names: Sequence[str]) -> None:
    """Checks that the packages of these values of ``train.log_to`` are installed.

    Raises:
        ConfigError: ``none`` is combined with others.
        MissingDependencyError: A package is absent.
    """
    if "none" in names and len(set(names)) > 1:
        raise ConfigError(f"train.log_to={list(names)}: none cannot be combined with others; leave it out")
    for name in names:
        if name != "none" and importlib.util.find_spec(PACKAGES[name]) is None:
            raise MissingDependencyError(
                f"train.log_to={name} needs {PACKAGES[name]}, which is not installed. Run: pip install '{DISTRIBUTION}[{name}]'"
            )
