"""Lengths of examples: defaults that suit the model, and whether those that are set fit its positions and its window."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.rope import context_length
from llmctl.errors import ConfigError

LONGEST, LONGEST_PROMPT = 2048, 1024
"""Default tokens of an example and of its prompt, where the model has as many positions."""


def fitted(config: Any, dims: Dims, model: Path, answers: int, packed: bool) -> Any:
    """The configuration with lengths in place of zeros, checked against the model.

    Args:
        config: The configuration of a job on examples.
        dims: Dims of the model.
        model: Its folder, for messages.
        answers: Fewest tokens that must be left for answers.
        packed: Whether rows hold several texts.

    Raises:
        ConfigError: Lengths that are set contradict each other or the model.
    """
    data = config.data
    prompt_key = "src_length" if hasattr(data, "src_length") else "max_prompt_length"
    prompt, longest = getattr(data, prompt_key), data.max_length
    if not longest:
        longest = max(LONGEST, 2 * prompt)
        room = _room(config, dims, packed)
        longest = max(answers + 1, min(longest, room)) if room is not None else longest
    if longest <= answers:
        raise ConfigError(
            f"data.max_length={longest} leaves no room for prompt and {_words(answers)}; set it to {answers + 1} or more"
        )
    if not prompt:
        prompt = min(LONGEST_PROMPT, max(1, longest // 2), longest - answers)
    changed = dataclasses.replace(config, data=dataclasses.replace(data, max_length=longest, **{prompt_key: prompt}))
    _check_positions(changed, dims, model, packed)
    if prompt > longest - answers:
        raise ConfigError(
            f"data.{prompt_key}={prompt} leaves no room for {_words(answers)} in "
            f"data.max_length={longest}; make {prompt_key} smaller"
        )
    if 0 < data.packed_length < longest:
        raise ConfigError(
            f"data.packed_length={data.packed_length} is less than data.max_length={longest}; make it at least that"
        )
    return changed


def virtual_tokens(config: Any) -> int:
    """Positions that a prefix takes."""
    return config.method.virtual_tokens if config.method.name == "prefix" else 0


def _room(config: Any, dims: Dims, packed: bool) -> int | None:
    """Most tokens of an example; None = any number."""
    limit, virtual, window = context_length(dims), virtual_tokens(config), dims.get("window")
    limits = [limit] if limit else []
    if virtual and window and packed:
        limits.append(window)
    if not limits:
        return None
    room = min(limits) - virtual
    return room if packed else room - room % config.data.pad_to_multiple_of


def _words(answers: int) -> str:
    return "answers" if answers == 1 else "two answers"


def _check_positions(config: Any, dims: Dims, model: Path, packed: bool) -> None:
    """Checks that the longest example, with virtual tokens if any, fits into the model's positions and window."""
    virtual = virtual_tokens(config)
    extra = f" plus method.virtual_tokens={virtual}" if virtual else ""
    longest, limit, window = config.data.max_length, context_length(dims), dims.get("window")
    if limit and longest + virtual > limit:
        room = (
            f"set data.max_length to {limit - virtual} or less" if limit - virtual > 1 else "use fewer virtual tokens"
        )
        raise ConfigError(f"data.max_length={longest}{extra} exceeds the {limit} positions of {model}; {room}")
    multiple = config.data.pad_to_multiple_of
    padded = longest if packed else -(-longest // multiple) * multiple
    if limit and padded + virtual > limit:
        raise ConfigError(
            f"data.pad_to_multiple_of={multiple} pads rows of data.max_length={longest} to {padded} tokens, which{extra} "
            f"exceeds the {limit} positions of {model}; make one of them smaller"
        )
    if virtual and window and packed and longest + virtual > window:
        fits = (
            f"set data.max_length to {window - virtual} or less" if window - virtual > 1 else "use fewer virtual tokens"
        )
        raise ConfigError(
            f"data.max_length={longest}{extra} exceeds the attention window of {window} positions, and virtual tokens "
            f"cannot leave the window in rows of several texts; {fits}"
            f"{', or data.packing to none' if config.data.packing != 'none' else ''}"
        )
