"""Lengths of examples: defaults that suit the model, and whether those that are set fit its positions and its window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmctl.card.dims import Dims
from llmctl.card.rope import context_length
from llmctl.checkpoint.hf_config import NAME, read_config
from llmctl.checkpoint.locate import locate
from llmctl.errors import ConfigError
from llmctl.plugins import Families

LONGEST, LONGEST_PROMPT = 2048, 1024
"""Default tokens of an example and of its prompt, where the model has as many positions."""


def fitted(config: Any, dims: Dims, model: Path) -> Any:
    """The configuration with lengths in place of zeros, checked against the model.

    Args:
        config: The configuration of a job on examples.
        dims: Dims of the model.
        model: Its folder, for messages.

    Raises:
        ConfigError: Lengths that are set contradict each other or the model.
    """
    rows, made = _rows(config), _filled(config, dims)
    prompt, longest = getattr(made.data, rows.prompt_key), made.data.max_length
    if longest <= rows.answers:
        raise ConfigError(
            f"data.max_length={longest} leaves no room for prompt and {rows.words}; set it to {rows.answers + 1} or more"
        )
    _check_positions(made, dims, model, rows.packed)
    if prompt > longest - rows.answers:
        raise ConfigError(
            f"data.{rows.prompt_key}={prompt} leaves no room for {rows.words} in data.max_length={longest}; make "
            f"{rows.prompt_key} smaller"
        )
    if 0 < made.data.packed_length < longest:
        raise ConfigError(
            f"data.packed_length={made.data.packed_length} is less than data.max_length={longest}; make it at least that"
        )
    return made


class _Rows(NamedTuple):
    """What rows of a command hold: the key of the prompt's length, the fewest tokens of answers, whether several texts."""

    prompt_key: str
    answers: int
    packed: bool

    @property
    def words(self) -> str:
        return "answers" if self.answers == 1 else "two answers"


def _rows(config: Any) -> _Rows:
    if hasattr(config.data, "src_length"):
        return _Rows("src_length", 1, config.data.packing != "none")
    return _Rows("max_prompt_length", 2, True)


def _filled(config: Any, dims: Dims) -> Any:
    """The configuration with lengths in place of zeros."""
    rows, room = _rows(config), _room(config, dims)
    prompt, longest = getattr(config.data, rows.prompt_key), config.data.max_length
    if not longest:
        longest = max(LONGEST, 2 * prompt)
        longest = longest if room is None else max(rows.answers + 1, min(longest, room))
    if not prompt:
        prompt = min(LONGEST_PROMPT, max(1, longest // 2), longest - rows.answers)
    return _with(config, {"max_length": longest, rows.prompt_key: prompt})


def _with(config: Any, changes: dict[str, int]) -> Any:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def loosened(config: Any, loose: Sequence[str], family: str, families: Families) -> tuple[Any, str]:
    """The configuration of a recipe whose lengths give way to the model and to lengths that were set.

    Args:
        config: The configuration.
        loose: Keys of the section ``data`` that the recipe has chosen.
        family: Name of a family or ``"auto"``.
        families: The installed families.

    Returns:
        The configuration, and a note on what was changed; empty = nothing.

    Raises:
        LlmctlError: The config.json of the model cannot be used.
    """
    dims = _dims(config, family, families)
    sequences = hasattr(config.data, "seq_length")
    changes = (_loose_sequence if sequences else _loose_example)(config, loose, dims)
    if not changes:
        return config, ""
    made = _with(config, changes)
    used = made if sequences or dims is None else _filled(made, dims)
    words = ", ".join(
        f"{key} {getattr(used.data, key) or 'chosen to fit'} instead of {getattr(config.data, key)}" for key in changes
    )
    positions = f" (the model has {context_length(dims)} positions)" if dims and context_length(dims) else ""
    return made, f"lengths of the recipe: {words}{positions}"


def _dims(config: Any, family: str, families: Families) -> Dims | None:
    """Dims of the model in ``model.path``; None where there is none, or it is in a package."""
    from llmctl.checkpoint.quantized import without_scheme

    path = config.model.path
    if not path or path.startswith("plugin:"):
        return None
    folder = locate(path, config.model.revision, weights=False)
    if not (folder / NAME).is_file():
        return None
    where = str(folder / NAME)
    raw = read_config(folder)
    card = families.resolve(family, raw, where).card
    raw, _ = without_scheme(folder, raw)
    return card.dims_from_config(card.without_keys(raw, config.model.ignore_config_keys, where), where)


def _loose_sequence(config: Any, loose: Sequence[str], dims: Dims | None) -> dict[str, int]:
    limit = context_length(dims) if dims else 0
    return {"seq_length": limit} if "seq_length" in loose and limit and config.data.seq_length > limit else {}


def _loose_example(config: Any, loose: Sequence[str], dims: Dims | None) -> dict[str, int]:
    rows, data, changes = _rows(config), config.data, dict[str, int]()
    prompt, longest = getattr(data, rows.prompt_key), data.max_length
    room = _room(config, dims) if dims else None
    over = room is not None and longest > room
    if (
        "max_length" in loose
        and longest
        and (over or (rows.prompt_key not in loose and prompt > longest - rows.answers))
    ):
        longest = changes["max_length"] = 0
    if rows.prompt_key in loose and prompt and (not longest or prompt > longest - rows.answers):
        changes[rows.prompt_key] = 0
    if "packed_length" in loose and data.packed_length and (not longest or data.packed_length < longest):
        changes["packed_length"] = 0
    return changes


def virtual_tokens(config: Any) -> int:
    """Positions that a prefix takes."""
    return config.method.virtual_tokens if config.method.name == "prefix" else 0


def multiple_of(config: Any) -> int:
    """What rows of a batch are padded to a multiple of: devices that divide the tokens get equally many."""
    parallel = config.parallel
    return math.lcm(config.data.pad_to_multiple_of, parallel.tensor if parallel.sequence else 1)


def _room(config: Any, dims: Dims) -> int | None:
    """Most tokens of an example; None = any number."""
    packed = _rows(config).packed
    limit, virtual, window = context_length(dims), virtual_tokens(config), dims.get("window")
    limits = [limit] if limit else []
    if virtual and window and packed:
        limits.append(window)
    if not limits:
        return None
    room = min(limits) - virtual
    return room if packed else room - room % multiple_of(config)


def _padding(config: Any) -> str:
    """The keys that rows are padded for."""
    given = f"data.pad_to_multiple_of={config.data.pad_to_multiple_of}"
    parallel = config.parallel
    return f"{given} with parallel.sequence and parallel.tensor={parallel.tensor}" if parallel.sequence else given


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
    multiple = multiple_of(config)
    padded = longest if packed else -(-longest // multiple) * multiple
    if limit and padded + virtual > limit:
        raise ConfigError(
            f"{_padding(config)} pads rows of data.max_length={longest} to {padded} tokens, which{extra} "
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
