"""Checks of a whole job of preference optimisation that need no paddle; those that all jobs share are in ``preflight``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmctl import plugins
from llmctl.config_dpo import DpoConfig
from llmctl.data.pairs import check_preference
from llmctl.data.preferences import Preference, parse_preference
from llmctl.dims import Dims
from llmctl.errors import ConfigError
from llmctl.preflight import check_common, find_model, read_data
from llmctl.tokenizers import Tokenizer


@dataclass(frozen=True)
class DpoJob:
    """A checked job of preference optimisation.

    Attributes:
        config: The configuration.
        plugin: The family.
        dims: The model's dims, from its config.json.
        model: The checkpoint folder, which is the reference too.
        train: Preferences to train on.
        dev: Preferences to evaluate on; may be empty.
        tokenizer: With the chat template that ``data.chat_template`` names.
        output: The output folder.
        command: Name of the command that runs it.
    """

    config: DpoConfig
    plugin: plugins.Plugin
    dims: Dims
    model: Path
    train: list[Preference]
    dev: list[Preference]
    tokenizer: Tokenizer
    output: Path
    command: str = "dpo"

    def summary(self) -> str:
        """One line on what would run."""
        size = self.plugin.card.count(self.dims)
        return (
            f"{self.plugin.card.name} with {size:,} parameters from {self.model}, "
            f"{len(self.train)} pairs to train on, {len(self.dev)} held out, output in {self.output}"
        )


def dpo(settings: DpoConfig, family: str) -> DpoJob:
    """The job, if every check passes.

    Args:
        settings: The configuration.
        family: Name of a family or ``"auto"``.

    Raises:
        LlmctlError: The first check that fails; nothing has been written.
    """
    _combinations(settings)
    found = find_model(settings, family, "dpo")
    train, dev = read_data(settings, found.plugin, parse_preference)
    for row in (*train, *dev):
        check_preference(row, found.tokenizer)
    return DpoJob(settings, found.plugin, found.dims, found.model, train, dev, found.tokenizer, found.output)


def _combinations(settings: DpoConfig) -> None:
    check_common(settings)
    data, dpo, method = settings.data, settings.dpo, settings.method
    if data.max_prompt_length > data.max_length - 2:
        raise ConfigError(
            f"data.max_prompt_length={data.max_prompt_length} leaves no room for two answers in "
            f"data.max_length={data.max_length}; make max_prompt_length smaller"
        )
    if dpo.label_smoothing and dpo.loss != "sigmoid":
        raise ConfigError(
            f"dpo.label_smoothing has no effect with dpo.loss={dpo.loss}; it is defined for sigmoid alone"
        )
    if dpo.reference_free and dpo.precompute_reference:
        raise ConfigError("dpo.precompute_reference has no effect with dpo.reference_free=true; choose one")
    for name in ("dropout", "neftune_alpha"):
        if getattr(method, name):
            raise ConfigError(
                f"method.{name} has no place in preference optimisation, where model and reference are compared without "
                "noise; leave it out"
            )
