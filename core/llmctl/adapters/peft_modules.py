"""Whole modules and rows of tokens in the files of PEFT: ``modules_to_save``, ``trainable_token_indices``, and embeddings that PEFT
saves because the vocabulary was resized or because it was told to (``save_embedding_layers``).

PEFT gives each adapter copies of its modules. So where the base ties its head to its embedding and the two have other values in
the adapter, or only one is the adapter's, the model with the adapter is untied.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmctl.adapters.adapter import Adapter, TokenRows
from llmctl.adapters.own_tensors import EMBED, HEAD, TIED, tensor_of, with_rows
from llmctl.adapters.peft_weights import as_planned, load
from llmctl.adapters.targets import module_path
from llmctl.card.dims import Dims
from llmctl.card.weight_map import WeightMapping, select_variant
from llmctl.checkpoint.convert import LazyTensor
from llmctl.checkpoint.formats.safetensors import PlannedTensor
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.load import same_values
from llmctl.checkpoint.naming import HF, mappings_for
from llmctl.checkpoint.resize import VOCAB, vocab_axes
from llmctl.checkpoint.save import plan_tensors
from llmctl.checkpoint.slices import source_shape
from llmctl.errors import CheckpointError

PREFIX, ROWS = "base_model.model.", ".token_adapter.trainable_tokens_delta"
MODULES, TOKENS = "modules_to_save", "trainable_token_indices"

_NAME = re.compile(
    r"(?P<module>.+?)\.(?:(?P<rows>token_adapter\.trainable_tokens_delta)|(?P<base>token_adapter\.trainable_tokens_original)|"
    r"(?:modules_to_save\.|(?P<copy>original_module\.)|token_adapter\.base_layer\.)?(?P<leaf>[^.]+))"
)
"""How PEFT names the tensors of a module: those of a resized embedding come with those of its wrapper."""


@dataclass(frozen=True)
class SavedModules:
    """What an adapter has in place of tensors of its base.

    Attributes:
        tensors: As ``Adapter.tensors``.
        tokens: As ``Adapter.tokens``.
        dims: Dims of the model with them.
        names: Names in the file that belong to them.
    """

    tensors: Mapping[str, LazyTensor]
    tokens: Mapping[str, TokenRows]
    dims: Dims
    names: Collection[str] = ()


@dataclass
class _Found:
    """Tensors of a file by their names in the torch model."""

    whole: dict[str, TensorInfo] = field(default_factory=dict)
    rows: dict[str, TensorInfo] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


def read(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], plugin: Any, dims: Dims
) -> SavedModules:
    """Reads the modules and rows of an adapter; whole tensors stay in the file.

    Args:
        folder: Folder of the adapter.
        config: Content of ``adapter_config.json``.
        tensors: The tensors in its weight file.
        plugin: Plugin of the base model's family.
        dims: Dims of the base model.

    Raises:
        CheckpointError: Tensors are missing, have another shape, or cannot be those of a model of this family.
    """
    card, listed = plugin.card, list(config.get(MODULES) or ())
    untied = dims.replace(**{TIED: False}) if dims.get(TIED) else dims
    mappings = list(plugin.hooks.weight_map(card=card, dims=untied, source="torch"))
    embed, head = tensor_of(card, untied, EMBED), tensor_of(card, untied, HEAD)
    outer = {tensor.name for tensor in (embed, head) if tensor is not None}
    found = _sort(tensors, mappings, listed, outer)
    mappings = [m for m in select_variant(mappings, found.whole) if m.source in found.whole or m.source in found.rows]
    _check_listed(folder, listed, found)
    if not found.whole and not found.rows:
        return SavedModules({}, {}, dims)
    where = {mapping.target: mapping.source for mapping in mappings}
    rows = {m.target: _rows(folder, config, found.rows[m.source], m.source, where.get(embed.name) if embed else None)
            for m in mappings if m.source in found.rows}  # fmt: skip
    whole = {mapping.target for mapping in mappings if mapping.source in found.whole}
    if dims.get(TIED) and embed and head:
        by_config = {name for name in (embed.name, head.name) if name in where and _is_named(where[name], listed)}
        if by_config and rows:
            raise CheckpointError(
                f"{folder}: {MODULES} and {TOKENS} together on an embedding that is also the head are not supported; merge the adapter "
                "with peft instead"
            )
        if _stays_tied(embed.name, head.name, whole, rows, by_config, found.whole, where):
            untied = dims
            mappings = [mapping for mapping in mappings if mapping.target != head.name]
            whole, rows = whole - {head.name}, {name: value for name, value in rows.items() if name != head.name}
    dims = _with_vocab(folder, plugin, untied, mappings, whole, found)
    return _made(folder, plugin, dims, mappings, whole, rows, found)


def _sort(
    tensors: Mapping[str, TensorInfo], mappings: Sequence[WeightMapping], listed: Sequence[str], outer: Collection[str]
) -> _Found:
    """The tensors of the file that belong to modules of the base; an embedding and a head may be there without being listed."""
    found = _Found()
    ours = {m.source for m in mappings if m.target in outer or _is_named(m.source, listed)}
    for name, info in tensors.items():
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        if match is None or f"{match['module']}.{match['leaf'] or 'weight'}" not in ours:
            continue
        source = f"{match['module']}.{match['leaf'] or 'weight'}"
        found.names.add(name)
        if match["rows"]:
            found.rows[source] = info
        elif not (match["base"] or match["copy"]):
            found.whole.setdefault(source, info)
    return found


def _is_named(source: str, names: Collection[str]) -> bool:
    """Whether a tensor is one of the named modules, by the end of its path as PEFT has it."""
    return module_path(source).endswith(tuple(names)) if names else False


def _check_listed(folder: Path, listed: Sequence[str], found: _Found) -> None:
    absent = [name for name in listed if not any(_is_named(source, [name]) for source in found.whole)]
    if absent:
        raise CheckpointError(
            f"{folder}: {MODULES} names {', '.join(absent)}, of which the file has no tensor that the base model has; the files do not "
            "belong together, or the adapter belongs to another model"
        )


def _rows(folder: Path, config: Mapping[str, Any], info: TensorInfo, source: str, embed: str | None) -> TokenRows:
    """The rows of tokens in a file."""
    stated, module = config.get(TOKENS) or (), module_path(source)
    if isinstance(stated, Mapping):
        ids = next((ids for name, ids in stated.items() if module.endswith(name)), None)
        if ids is None and embed is not None:  # a tied head has the rows of the embedding
            ids = next((ids for name, ids in stated.items() if module_path(embed).endswith(name)), None)
        ids = ids or ()
    else:
        ids = stated
    if len(info.shape) != 2 or len(ids) != info.shape[0] or len(set(ids)) != len(ids):
        raise CheckpointError(
            f"{folder}: {PREFIX}{module}{ROWS} is {list(info.shape)}, but {TOKENS} names {len(set(ids))} tokens of it; the files do not "
            "belong together"
        )
    return TokenRows(tuple(map(int, ids)), load(info))


def _stays_tied(
    embed: str,
    head: str,
    whole: Collection[str],
    rows: Mapping[str, TokenRows],
    listed: Collection[str],
    infos: Mapping[str, TensorInfo],
    where: Mapping[str, str],
) -> bool:
    """Whether embedding and head of a tied base are still the same with the adapter."""
    if head in whole and not (embed in whole and same_values(infos[where[embed]], infos[where[head]])):
        return False
    if head in rows and not rows[head].same(rows.get(embed)):
        return False
    # A copy of the embedding alone leaves the head as it was.
    return not (embed in listed and head not in whole)


def _with_vocab(
    folder: Path, plugin: Any, dims: Dims, mappings: Sequence[WeightMapping], whole: Collection[str], found: _Found
) -> Dims:
    """The dims with the vocabulary of the adapter.

    Raises:
        CheckpointError: Tensors have different numbers of rows, or one that has other rows than the base's is missing.
    """
    counting = {tensor.name: axes[0] for tensor in plugin.card.expand(dims) if (axes := vocab_axes(tensor))}
    sizes: dict[str, int] = {}
    for mapping in mappings:
        if mapping.target in counting and mapping.target in whole:
            shape = found.whole[mapping.source].shape
            shape = shape[::-1] if mapping.transpose else shape
            if counting[mapping.target] < len(shape):
                sizes[mapping.source] = int(shape[counting[mapping.target]])
    if not sizes or set(sizes.values()) == {dims[VOCAB]}:
        return dims
    shown = ", ".join(f"{name} has {size}" for name, size in sizes.items())
    absent = sorted(counting.keys() - whole)
    if absent or len(set(sizes.values())) > 1:
        more = f", and {', '.join(absent)} of as many is missing" if absent else ""
        raise CheckpointError(
            f"the adapter in {folder} does not fit the base model, whose vocabulary has {dims[VOCAB]} rows: {shown}{more}"
        )
    return dims.replace(**{VOCAB: next(iter(sizes.values()))})


def _made(
    folder: Path,
    plugin: Any,
    dims: Dims,
    mappings: Sequence[WeightMapping],
    whole: Collection[str],
    rows: Mapping[str, TokenRows],
    found: _Found,
) -> SavedModules:
    """What was found, with shapes checked."""
    card = plugin.card
    shapes = {tensor.name: tensor.shape for tensor in card.expand(dims)}
    lines = []
    tensors: dict[str, LazyTensor] = {}
    for name in dict.fromkeys(mapping.target for mapping in mappings if mapping.target in whole):
        parts = [mapping for mapping in mappings if mapping.target == name]
        lines += [f"missing: {PREFIX}{mapping.source}" for mapping in parts if mapping.source not in found.whole]
        sources = [(found.whole[mapping.source], mapping) for mapping in parts if mapping.source in found.whole]
        lines += [
            f"wrong shape: {PREFIX}{mapping.source} is {list(info.shape)}, expected {list(shape)}"
            for info, mapping in sources
            if info.shape != (shape := source_shape(shapes[name], mapping))
        ]
        tensors[name] = LazyTensor(shapes[name], sources[0][0].dtype, sources)
    for name, row in rows.items():
        (axis,) = vocab_axes(next(tensor for tensor in card.expand(dims) if tensor.name == name))
        width = shapes[name][1 - axis]
        if row.values.shape[1] != width:
            lines.append(
                f"wrong shape: rows of {name} are {list(row.values.shape)}, expected [{len(row.ids)}, {width}]"
            )
        if outside := [token for token in row.ids if not 0 <= token < dims[VOCAB]]:
            lines.append(f"token {outside[0]} of {TOKENS} is not among the {dims[VOCAB]} of {name}")
    if lines:
        raise CheckpointError("\n  ".join([f"the adapter in {folder} does not fit the base model:", *lines[:10]]))
    for name in tensors.keys() & rows.keys():
        tensors[name] = LazyTensor(
            shapes[name], tensors[name].dtype, [with_rows(card, dims, name, tensors[name].sources, rows[name])]
        )
    return SavedModules(tensors, {name: row for name, row in rows.items() if name not in tensors}, dims, found.names)


def planned(adapter: Adapter, plugin: Any, dims: Dims, dtype: str) -> dict[str, PlannedTensor]:
    """Name in the file -> tensor to write, for the modules and rows of an adapter.

    Args:
        adapter: The adapter.
        plugin: Plugin of the base model's family.
        dims: Dims of the model with the adapter.
        dtype: Data type of the tensors.

    Raises:
        CheckpointError: A module that the torch model fuses is there in part only, or a value does not fit into the data type.
    """

    sources = _written(adapter.tensors, plugin, dims)
    state: dict[str, Any] = dict(adapter.tensors)
    if head := _tied_head(adapter, plugin, dims):
        embed = tensor_of(plugin.card, dims, EMBED)
        assert embed is not None
        sources = [*sources, *(replace(m, source=head) for m in sources if m.target == embed.name)]
    found = {PREFIX + name: each for name, each in plan_tensors(state, sources, dtype).items()}
    for mapping in _written(adapter.tokens, plugin, dims):
        name = PREFIX + module_path(mapping.source) + ROWS
        found[name] = as_planned(name, adapter.tokens[mapping.target].values, dtype)
    return found


def settings(adapter: Adapter, plugin: Any, dims: Dims) -> dict[str, Any]:
    """What ``adapter_config.json`` says of the modules and rows of an adapter; arguments as for ``planned``."""
    modules = [mapping.source for mapping in _written(adapter.tensors, plugin, dims)]
    tied = _tied_head(adapter, plugin, dims)
    modules += [tied] if tied else []
    tokens = {m.source: list(adapter.tokens[m.target].ids) for m in _written(adapter.tokens, plugin, dims)}
    every = {mapping.source for mapping in mappings_for(HF, plugin, dims)} | set(modules)
    return {
        MODULES: [_short(name, every) for name in dict.fromkeys(modules)] or None,
        TOKENS: {_short(name, every): ids for name, ids in tokens.items()} or None,
        **({"ensure_weight_tying": True} if tied or (tokens and dims.get(TIED)) else {}),
    }


def _written(names: Collection[str], plugin: Any, dims: Dims) -> list[WeightMapping]:
    return [mapping for mapping in mappings_for(HF, plugin, dims) if mapping.target in names]


def _tied_head(adapter: Adapter, plugin: Any, dims: Dims) -> str:
    """The torch name of a tied head whose embedding the adapter has as a whole; PEFT keeps a copy of it. Empty = there is none."""
    embed = tensor_of(plugin.card, dims, EMBED)
    if not dims.get(TIED) or embed is None or embed.name not in adapter.tensors:
        return ""
    untied = dims.replace(**{TIED: False})
    head = tensor_of(plugin.card, untied, HEAD)
    assert head is not None, "a family whose head may be tied has one"
    return next(mapping.source for mapping in mappings_for(HF, plugin, untied) if mapping.target == head.name)


def _short(source: str, every: Collection[str]) -> str:
    """The last component of a module's path, or the whole path if others end in it."""
    module = module_path(source)
    last = module.rpartition(".")[2]
    alike = {path for path in map(module_path, every) if path.endswith(last)}
    return last if alike == {module} else module
