"""Checks of a whole job of preference optimisation that need no paddle; those that all jobs share are in ``preflight``."""

from __future__ import annotations

from llmctl.config.dpo import DpoConfig
from llmctl.data.preference.encoding import check_preference
from llmctl.data.preference.examples import Preference, parse_preference
from llmctl.errors import ConfigError
from llmctl.jobs.common import TextJob, check_common, find_model, job_of, read_data

DpoJob = TextJob[DpoConfig, Preference]


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
    return job_of(settings, found, train, dev, "dpo", "pairs")


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
