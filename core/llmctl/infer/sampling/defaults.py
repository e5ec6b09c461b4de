"""Sampling parameters of requests that leave them out: those of the model's generation_config.json, else our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.infer.sampling.params import SAMPLE_ONLY, SamplingParams
from llmctl.io.json_object import read_json

FILE = "generation_config.json"
KEYS = {
    "do_sample": "sample", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_new_tokens", "min_new_tokens": "min_new_tokens",
    "stop_strings": "stop",
}  # fmt: skip
"""Key of generation_config.json -> parameter."""

OTHERS = {
    "num_beams": 1, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "penalty_alpha": None, "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "sequence_bias": None, "guidance_scale": None,
}  # fmt: skip
"""Key of what llmctl does not do -> value without effect; see transformers' GenerationConfig."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What generation_config.json says.

    Attributes:
        values: By parameter.
        notes: Values that cannot be used, and why.
        unused: Keys of what llmctl does not do.
        own: Defaults of a command where the file says nothing, by parameter.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)

    def params(self, given: Mapping[str, Any] | None = None) -> SamplingParams:
        """Sampling parameters.

        Args:
            given: Parameters that were given; they go first, and those that only sampling has turn it on. None = none.

        Raises:
            ConfigError: A value that was given cannot be used.
        """
        given = given or {}
        drawn = [name for name in SAMPLE_ONLY if name in given]
        sample = given.get("sample", bool(drawn) or self.values.get("sample", False))
        if given.get("temperature") == 0 and not given.get("sample"):
            # What other programs call temperature 0 is greedy decoding.
            given, sample = {name: value for name, value in given.items() if name != "temperature"}, False
        defaults = {name: value for name, value in self.values.items() if sample or name not in SAMPLE_ONLY}
        values = {**self.own, **defaults, **given, "sample": sample}
        if "min_new_tokens" in defaults and "min_new_tokens" not in given:
            longest = values.get("max_new_tokens", SamplingParams().max_new_tokens)
            values["min_new_tokens"] = min(values["min_new_tokens"], longest)
        return SamplingParams(**values)

    def origins(self, given: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Parameter -> where its value comes from, of those of `params` that are not our own defaults; arguments as there."""
        given, chosen, plain = given or {}, self.params(given), SamplingParams()
        found = {}
        for name in (row.name for row in fields(SamplingParams)):
            if name in given and getattr(chosen, name) == given[name]:
                found[name] = "given"
            elif getattr(chosen, name) != getattr(plain, name):
                found[name] = FILE if name in self.values else "default" if name in self.own else "implied"
        return found


def read_defaults(*folders: Path) -> SamplingDefaults:
    """The defaults in the first of some folders that has a generation_config.json; without one there are none.

    Args:
        *folders: Folders of an adapter or a model.

    Raises:
        FileError: The file is not valid JSON.
    """
    path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if path is None:
        return SamplingDefaults()
    content, values, notes = read_json(path), dict[str, Any](), []
    for key, name in KEYS.items():
        value = content.get(key)
        if value is None:
            continue
        if name in ("temperature", "top_p", "min_p", "repetition_penalty") and type(value) is int:
            value = float(value)
        try:
            values[name] = getattr(SamplingParams(**{"max_new_tokens": 1 << 30, name: value}), name)
        except (ConfigError, TypeError) as error:
            if content.get("do_sample") or name not in SAMPLE_ONLY:
                notes.append(f"{path}: {key}={value!r} is left out: {error}")
    unused = tuple(key for key, idle in OTHERS.items() if content.get(key) not in (None, idle))
    return SamplingDefaults(values, tuple(notes), unused)


def shortened(params: SamplingParams, prompt: int, positions: int) -> SamplingParams:
    """Parameters whose ``max_new_tokens`` is what a prompt leaves of the model's positions, if that is less.

    Args:
        params: The parameters.
        prompt: Tokens of the prompt.
        positions: Maximum number of tokens of prompt and answer; 0 = any.
    """
    room = positions - prompt
    if not positions or room >= params.max_new_tokens or room < 1:
        return params
    return replace(params, max_new_tokens=room, min_new_tokens=min(params.min_new_tokens, room))
