"""Checks of a job of preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmctl.config.dpo import DpoConfig
from llmctl.data.preference.encoding import check_preference
from llmctl.data.preference.examples import Preference, PreferenceReader
from llmctl.errors import ConfigError
from llmctl.jobs.common import check_common, find_model
from llmctl.jobs.examples import read_data
from llmctl.jobs.job import ExamplesJob
from llmctl.plugins import Families


@dataclass(frozen=True)
class DpoJob(ExamplesJob[DpoConfig, Preference]):
    """A checked job of preference optimization; the model is also the reference."""

    command: ClassVar[str] = "dpo"
    noun: ClassVar[str] = "pairs"


def check(config: DpoConfig, family: str = "auto", families: Families | None = None, weights: bool = True) -> DpoJob:
    """The job of a configuration; see ``job.Check``."""
    _combinations(config)
    config, model, tokenizer, output = find_model(config, family, "dpo", families or Families(), weights)
    examples = read_data(config, model.plugin, PreferenceReader)
    for row in (*examples.train, *examples.dev):
        check_preference(row, tokenizer)
    return DpoJob(config, model, tokenizer, output, examples)


def _combinations(config: DpoConfig) -> None:
    check_common(config)
    dpo, method = config.dpo, config.method
    if dpo.label_smoothing and dpo.loss != "sigmoid":
        raise ConfigError(
            f"dpo.label_smoothing has no effect with dpo.loss={dpo.loss}; it is defined for sigmoid alone"
        )
    if dpo.reference_free and dpo.precompute_reference:
        raise ConfigError("dpo.precompute_reference has no effect with dpo.reference_free=true; choose one")
    for name in ("dropout", "neftune_alpha"):
        if getattr(method, name):
            raise ConfigError(
                f"method.{name} has no place in preference optimization, where model and reference are compared without "
                "noise; leave it out"
            )
