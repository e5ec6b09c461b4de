"""The metric loggers of ``train.log_to``, and whether their packages are installed."""

from __future__ import annotations

import importlib.util

from llmctl.config.common import CommonTrainConfig
from llmctl.config.schema import changed_fields
from llmctl.errors import DISTRIBUTION, ConfigError, MissingDependencyError

PACKAGES = {
    "tensorboard": "tensorboardX",
    "visualdl": "visualdl",
    "wandb": "wandb",
    "swanlab": "swanlab",
    "mlflow": "mlflow",
}
"""Value of ``train.log_to``, which is also the name of its extra and of its folder in the output folder -> module."""


SERVICES = ("wandb", "swanlab", "mlflow")
"""Those that know projects and runs."""


def check(train: CommonTrainConfig) -> None:
    """Checks that the packages of ``train.log_to`` are installed, and that the keys about them have an effect.

    Raises:
        ConfigError: ``none`` is combined with others, or a key has no effect.
        MissingDependencyError: A package is absent.
    """
    names, idle = train.log_to, [key for key in ("project", "run_name") if key in changed_fields(train)]
    if idle and not set(names) & set(SERVICES):
        raise ConfigError(f"train.{idle[0]} has no effect without train.log_to {', '.join(SERVICES)}; leave it out")
    if "none" in names and len(set(names)) > 1:
        raise ConfigError(f"train.log_to={list(names)}: 'none' cannot be combined with others; leave it out")
    for name in names:
        if name != "none" and importlib.util.find_spec(PACKAGES[name]) is None:
            raise MissingDependencyError(
                f"train.log_to={name} needs {PACKAGES[name]}, which is not installed. Run: pip install '{DISTRIBUTION}[{name}]'"
            )
