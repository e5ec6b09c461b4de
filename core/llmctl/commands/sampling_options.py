"""Options that say how tokens are chosen. What is left out is what the model's generation_config.json says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from llmctl.commands.messages import Messages
from llmctl.errors import ConfigError
from llmctl.infer.sampling import SAMPLE_ONLY, SamplingParams
from llmctl.infer.sampling.defaults import SamplingDefaults

Command = TypeVar("Command", bound=Callable[..., Any])

NAMES = (
    "max_new_tokens", "min_new_tokens", "sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop", "seed", "logprobs",
)  # fmt: skip
"""Parameters that are options."""


def sampling_options(command: Command) -> Command:
    """The options as a decorator."""
    for option in reversed(
        (
            click.option("--max-new-tokens", type=int, metavar="N",
                         help="Maximum number of new tokens. [default: as generation_config.json says, else 128; chat 1024]"),
            click.option("--min-new-tokens", type=int, metavar="N", help="Minimum number of new tokens. [default: 0]"),
            click.option("--sample/--greedy", default=None,
                         help="Sample, or take the likeliest token. [default: as generation_config.json says, else greedy]"),
            click.option("--temperature", type=float, help="Sample with this softmax temperature; 0 is greedy. [default: 1.0]"),
            click.option("--top-k", type=int, help="Sample from the k most likely tokens. [default: 0, all]"),
            click.option("--top-p", type=float, help="Sample from the nucleus of this probability mass. [default: 1.0]"),
            click.option("--min-p", type=float,
                         help="Sample without tokens below this fraction of the highest probability. [default: 0]"),
            click.option("--repetition-penalty", type=float,
                         help="Above 1: makes tokens of prompt and answer less likely. [default: 1.0]"),
            click.option("--presence-penalty", type=float,
                         help="Subtracted from the logits of tokens that the answer contains. [default: 0]"),
            click.option("--frequency-penalty", type=float,
                         help="Subtracted from the logits of tokens for each time that the answer contains them. [default: 0]"),
            click.option("--stop", multiple=True, metavar="TEXT", help="Stop string; may be repeated."),
            click.option("--seed", type=int, metavar="N", help="Random seed of sampling. [default: 0]"),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def given_params(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among a command's options that were given.

    Raises:
        ConfigError: A value is out of range, or has no effect.
    """
    if "" in given["stop"]:
        raise ConfigError("--stop must not be empty")
    values = {name: given.get(name) for name in NAMES}
    chosen = {name: value for name, value in values.items() if value not in (None, ())}
    if given.get("beams") and chosen.get("sample") is None:
        chosen["sample"] = False
    idle = SamplingDefaults().params(chosen).without_effect
    if idle:
        reason = "beams" if given.get("beams") else "greedy" if "sample" in chosen else "temperature 0"
        raise ConfigError(f"{', '.join(map(spell, idle))} has no effect with --{reason}; leave one out")
    return chosen


def spell(name: str) -> str:
    """A parameter as the option of the command line."""
    return f"--{name.replace('_', '-')}"


def choose_params(defaults: SamplingDefaults, given: Mapping[str, Any], say: Messages) -> SamplingParams:
    """How tokens are chosen; says where values come from.

    Args:
        defaults: Those of the model.
        given: The parameters that were given.
        say: Prints it.
    """
    say.notes(defaults.notes)
    params = defaults.params(given)
    words = [f"{name} {getattr(params, name)} ({_origin(name, where, given)})"
             for name, where in {"sample": "default", **defaults.origins(given)}.items()]  # fmt: skip
    say.detail(f"tokens are chosen with {', '.join(words)}")
    if defaults.unused:
        say.detail(f"of generation_config.json, llmctl has no {', '.join(defaults.unused)}")
    return params


def _origin(name: str, where: str, given: Mapping[str, Any]) -> str:
    if name == "sample" and where == "given":
        return "--sample" if given["sample"] else "--greedy"
    drawn = [spell(other) for other in SAMPLE_ONLY if other in given]
    return ", ".join(drawn) if name == "sample" and drawn else spell(name) if where == "given" else where
