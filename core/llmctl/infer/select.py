"""Which engine runs MODEL: what was asked for, or the quickest that can, and the reason where that is not the fused one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from llmctl.errors import ConfigError, LlmctlError, UnsupportedError
from llmctl.infer.model_source import ModelSource, open_model
from llmctl.runtime import operators

if TYPE_CHECKING:
    from llmctl.adapters.folder import Opened
    from llmctl.card.decoder_spec import PrefixLM
    from llmctl.card.dims import Dims
    from llmctl.infer.runner import Runner

FUSED_ONLY = ("weights", "group", "kv", "cache_memory", "speculate", "beams", "length_penalty")
"""Options that only the fused engine knows."""

CHAT = 8192
"""Tokens of a conversation where the model has no limit."""

BATCH_SIZE = {"dynamic": 8, "static": 8, "fused": 64}
"""Prompts answered together, unless one says otherwise."""


class Ends(Protocol):
    """What an engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def pad_id(self) -> int:
        """Fills rows."""


@dataclass(frozen=True)
class Chosen:
    """An engine for a model that has been looked at, not loaded.

    Attributes:
        engine: ``dynamic``, ``static`` or ``fused``.
        wording: What the tokenizer needs of the family.
        folder: Of the tokenizer.
        vocab: Rows of the embedding.
        adapters: Names that lines of a file may give.
        prefix_lm: Tokens that every prompt needs, where the family reads contexts in both directions.
        load: From the tokenizer and the tokens of each prompt with its answer (none for a conversation) to what answers, and
            its longest rows.
    """

    engine: str
    wording: Any
    folder: Path
    vocab: int
    adapters: tuple[str, ...]
    prefix_lm: PrefixLM | None
    load: Callable[[Ends, Sequence[int]], tuple[Runner, int]]


def choose(model: Path, family: str, given: Mapping[str, Any]) -> Chosen:
    """The engine.

    Args:
        model: MODEL.
        family: Name of a family, or ``auto``.
        given: Values of the options.

    Raises:
        LlmctlError: The model cannot be opened, the engine cannot run it, or an option has no effect on it.
    """
    from llmctl.adapters.folder import is_adapter
    from llmctl.infer.eager import exported
    from llmctl.infer.packed.folder import is_packed

    if exported.is_exported(model):
        return _static(model, given)
    if is_packed(model):
        return _packed(model, given)
    if given["base"] and not given["adapters"] and is_adapter(model) and is_packed(given["base"]):
        return _packed(given["base"], {**given, "adapters": [str(model)], "base": None})
    if given["engine"] == "static":
        raise ConfigError(
            f"--engine static: {model} holds no exported program; make one: llmctl export {model} --out FOLDER"
        )
    single, named = _adapters(given["adapters"])
    source = open_model(model, family, single, given["base"], given["allow_other_base"] and not named)
    others = _named(named, model, family, given["allow_other_base"])
    if given["engine"] == "dynamic":
        return _dynamic(source, others, given)
    reason = _not_fused(source, given)
    wanted = [name for name in FUSED_ONLY if given.get(name) is not None] + ["adapter"] * bool(others)
    if reason and (given["engine"] == "fused" or wanted):
        what = "--engine fused" if given["engine"] == "fused" else f"--{wanted[0].replace('_', '-')}"
        raise UnsupportedError(f"{what} needs the fused engine: {reason}")
    if reason:
        click.echo(f"engine: dynamic ({reason})", err=True)
        return _dynamic(source, others, given)
    return _fused(source, others, given)


def _not_fused(source: ModelSource, given: Mapping[str, Any]) -> str:
    """Why the fused engine cannot run a model; empty = it can."""
    from llmctl.infer.executors import native
    from llmctl.infer.packed.pack import graph_of

    if given["no_cache"]:
        return "--no-cache computes without a cache, which the fused engine is made of"
    try:
        graph_of(source.plugin, source.dims)
    except LlmctlError as error:
        return str(error)
    if given["engine"] == "auto" and not native.available():
        return f"{_no_kernels()}; --engine fused runs it by paddle's operations"
    return ""


def _no_kernels() -> str:
    """Why there are none; where llmctl-ops is not installed, that is told with it and not once more."""
    from llmctl.infer.executors import native

    operators.note()
    return f"there are no compiled kernels: {native.missing()}"


def _static(model: Path, given: Mapping[str, Any]) -> Chosen:
    from llmctl.infer.eager import exported

    if given["engine"] not in ("auto", "static"):
        raise ConfigError(f"--engine {given['engine']}: {model} holds an exported program; leave out --engine")
    if given["adapters"] or given["base"] or given["allow_other_base"]:
        raise ConfigError(
            f"{model} is an exported program, which takes no adapter; export the model with its adapter instead"
        )
    _refuse_fused_options(given, "static")
    about = exported.read(model)

    def load(tokenizer: Ends, lengths: Sequence[int]) -> tuple[Runner, int]:
        from llmctl import runtime

        runtime.import_paddle("--engine static")
        from llmctl.infer.eager.program import StaticModel

        return _batches(StaticModel(model, about), tokenizer, given, "static"), about.max_positions

    return Chosen("static", about.wording, model, about.vocab, (), None, load)


def _dynamic(source: ModelSource, named: Mapping[str, Any], given: Mapping[str, Any]) -> Chosen:
    if named:
        raise ConfigError("--adapter NAME=FOLDER needs the fused engine; for one adapter leave out its name")
    _refuse_fused_options(given, "dynamic")

    def load(tokenizer: Ends, lengths: Sequence[int]) -> tuple[Runner, int]:
        from llmctl import runtime

        runtime.import_paddle("--engine dynamic")
        if line := operators.note():
            click.echo(line, err=True)
        from llmctl.infer.text import longest

        layer = source.layer()
        return _batches(layer, tokenizer, given, "dynamic"), longest(layer, source.dims)

    return Chosen(
        "dynamic", source.plugin.card, source.tokenizer_folder, source.dims.vocab, (), _prefix_lm(source), load
    )


def _fused(source: ModelSource, named: Mapping[str, Any], given: Mapping[str, Any]) -> Chosen:
    def load(tokenizer: Ends, lengths: Sequence[int]) -> tuple[Runner, int]:
        from llmctl.infer.loader import Packing, packed_model
        from llmctl.infer.packed.pack import graph_of

        rope = graph_of(source.plugin, source.dims).rope
        stable = rope.max_stable_length if rope else None
        if given["engine"] == "auto" and stable is not None and max(lengths, default=0) > stable:
            reason = f"prompt and answer may pass {stable} tokens, and the model's rotation depends on the length then"
            click.echo(f"engine: dynamic ({reason})", err=True)
            return _dynamic(source, named, given).load(tokenizer, lengths)
        packing = Packing(kind=given["weights"] or "", group=given["group"])
        model = packed_model(source.folder, source.plugin, source.dims, packing, source.adapted, named)
        return _continuous(model, source.dims, tokenizer, lengths, given)

    return Chosen(
        "fused", source.plugin.card, source.tokenizer_folder, source.dims.vocab, tuple(named), _prefix_lm(source), load
    )


def _packed(model: Path, given: Mapping[str, Any]) -> Chosen:
    from llmctl import plugins
    from llmctl.adapters.folder import tokenizer_folder
    from llmctl.checkpoint.hf_config import read_config
    from llmctl.infer.eager.exported import HASHED
    from llmctl.infer.loader import put_adapters
    from llmctl.infer.packed.folder import open_packed, read_header

    if given["engine"] not in ("auto", "fused"):
        raise ConfigError(f"--engine {given['engine']}: {model} holds a packed model, which only the fused engine runs")
    single, named = _adapters(given["adapters"])
    if given["base"] or (given["allow_other_base"] and not given["adapters"]):
        raise ConfigError(f"--base and --allow-other-base are for adapters; {model} holds none")
    if given["no_cache"]:
        raise ConfigError("--no-cache has no effect with the fused engine; leave it out")
    for name in ("weights", "group"):
        if given[name] is not None:
            raise ConfigError(f"--{name} has no effect on a packed model, whose weights are packed already")
    header = read_header(model)
    packed = open_packed(model, verify=header["bytes"] <= HASHED)
    plugin = plugins.load(header["family"])
    dims = plugin.card.dims_from_config(read_config(model), str(model / "config.json"))
    folders = {**named, **({"": single} if single else {})}
    opened = _named(folders, model, header["family"], given["allow_other_base"], header["base"])
    adapted, before = opened.pop("", None), len(packed.adapters)
    packed = put_adapters(packed, plugin, dims, adapted, opened)
    # One that has no name is for every sequence.
    every = before if adapted and len(packed.adapters) > before else -1

    def load(tokenizer: Ends, lengths: Sequence[int]) -> tuple[Runner, int]:
        return _continuous(packed, dims, tokenizer, lengths, given, every)

    names = tuple(adapter.name for adapter in packed.adapters[: None if every < 0 else every])
    words = tokenizer_folder(adapted.folder, model) if adapted else model
    return Chosen("fused", plugin.card, words, packed.graph.vocab, names, packed.graph.prefix_lm, load)


def _prefix_lm(source: ModelSource) -> PrefixLM | None:
    from llmctl.infer.packed.pack import graph_of

    try:
        return graph_of(source.plugin, source.dims).prefix_lm
    except LlmctlError:
        return None


def _continuous(
    model: Any, dims: Dims, tokenizer: Ends, lengths: Sequence[int], given: Mapping[str, Any], adapter: int = -1
) -> tuple[Runner, int]:
    from llmctl import runtime
    from llmctl.infer.executors import native
    from llmctl.infer.executors.base import BLOCK
    from llmctl.infer.loader import engine_of
    from llmctl.infer.runner import Continuous

    rows = given["batch_size"] or BATCH_SIZE["fused"]
    width = given.get("beams") or 1
    if width > rows:
        raise ConfigError(f"--beams {width} is more than the {rows} rows of --batch-size")
    if not native.available() and runtime.device() == "cpu":
        click.echo(f"engine: fused, by paddle's operations ({_no_kernels()})", err=True)
    virtual = 0 if model.prefix is None else model.prefix.shape[2]
    stable = model.graph.rope.max_stable_length if model.graph.rope else None
    limit = stable or int(dims.get("max_positions") or 0)
    limit = max(1, limit - virtual) if limit else 0
    asked = [length for length in lengths for _ in range(width)] or [limit or CHAT]
    engine = engine_of(model, tokenizer.eos_ids, asked, given["kv"] or "float32", given["cache_memory"], rows)
    if not lengths:
        # A conversation grows as long as the cache allows; then it forgets its oldest turns.
        limit = min(asked[0], engine.statistics().blocks * BLOCK - virtual - BLOCK)
    return Continuous(engine, 2 * rows, adapter), limit


def _batches(model: Any, tokenizer: Ends, given: Mapping[str, Any], engine: str) -> Runner:
    from llmctl.infer.runner import Batches

    size = given["batch_size"] or BATCH_SIZE[engine]
    return Batches(model, tokenizer.eos_ids, tokenizer.pad_id, size, not given["no_cache"])


def _refuse_fused_options(given: Mapping[str, Any], engine: str) -> None:
    idle = [f"--{name.replace('_', '-')}" for name in FUSED_ONLY if given.get(name) is not None]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} has no effect with --engine {engine}; leave it out, or use --engine fused"
        )


def _adapters(texts: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """The adapter that all use, or adapters by name."""
    named = dict(text.split("=", 1) for text in texts if "=" in text and not Path(text).exists())
    plain = [text for text in texts if "=" not in text or Path(text).exists()]
    if len(named) + len(plain) < len(texts):
        raise ConfigError("--adapter gives a name twice; each adapter needs its own")
    if "" in named:
        raise ConfigError("--adapter =FOLDER: the name is missing")
    if plain and (named or len(plain) > 1):
        raise ConfigError("several adapters need names: --adapter NAME=FOLDER")
    return (Path(plain[0]) if plain else None), {name: Path(folder) for name, folder in named.items()}


def _named(
    named: Mapping[str, Path], model: Path, family: str, allow_other: bool, noted: Mapping[str, Any] | None = None
) -> dict[str, Opened]:
    from llmctl.adapters.folder import open_adapter

    return {name: open_adapter(folder, model, family, allow_other, noted) for name, folder in named.items()}
