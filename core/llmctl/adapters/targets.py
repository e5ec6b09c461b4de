"""Target modules of adapters: the linear layers inside the decoder layers of a family, by their names on its card.

The router and the LM head are not among them. Names are paths in the state dict without ``.weight``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family, Tensor
from llmctl.errors import ConfigError

ALL = "all"
USUAL = {"embed": "embed_tokens", "head": "lm_head"}
"""Slot -> what most families call a module, which names it in every family."""


def linears(card: Family, dims: Dims) -> dict[str, Tensor]:
    """The linear layers inside the decoder layers: path -> weight on the card."""
    named = (tensor for tensor in card.expand(dims) if tensor.kind == "linear" and tensor.layer is not None)
    return {module_of(tensor.name): tensor for tensor in named}


def module_of(weight: str) -> str:
    """Path of the layer of a weight."""
    return weight.removesuffix(".weight")


def module_path(name: str) -> str:
    """Path of the module that has a tensor."""
    return name.rpartition(".")[0]


def matches(path: str, name: str) -> bool:
    """Whether a path is the name or ends with ``.name``."""
    return path == name or path.endswith("." + name)


def choose(card: Family, dims: Dims, names: Sequence[str], key: str = "method.targets") -> list[str]:
    """Paths of the linear layers that the names select, in the order of the card.

    Args:
        card: Card of the family.
        dims: Dims of the model.
        names: ``all``, or suffixes of paths such as ``q_proj`` or ``mlp.c_proj``.
        key: Field that the names come from, for messages.

    Raises:
        ConfigError: A name matches no linear layer, or there are no names.
    """
    known = list(linears(card, dims))
    if not names:
        raise ConfigError(f"{key} is empty; set it to all, or to names such as {', '.join(_short(known)[:3])}")
    for name in names:
        if name != ALL and not any(matches(path, name) for path in known):
            near = difflib.get_close_matches(name, [ALL, *_short(known)], 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_short(known))}"
            raise ConfigError(f"{key}: {name!r} matches no linear layer of {card.name}; {hint}")
    return [path for path in known if any(name == ALL or matches(path, name) for name in names)]


def modules_to_save(plugin: Any, dims: Dims, chosen: Sequence[str]) -> list[Tensor]:
    """The tensors of modules that are trained whole, in the order of the card.

    Args:
        plugin: Plugin of the family.
        dims: Dims of the model.
        chosen: Suffixes of their names, on the card or in the torch model, or those of ``USUAL``. A tied head is the embedding.

    Raises:
        ConfigError: A name matches no module, or linear layers, which have adapters.
    """
    if not chosen:
        return []
    card, key = plugin.card, "method.modules_to_save"
    names = _module_names(plugin, dims)
    inside = linears(card, dims)
    outside = {path: called for path, called in names.items() if path not in inside}
    for name in chosen:
        if any(matches(path, name) for path in inside) and name:
            raise ConfigError(f"{key}: {name!r} are linear layers, which have adapters; name them in method.targets")
        if not any(matches(each, name) for called in outside.values() for each in called):
            known = _short(each for called in outside.values() for each in called)
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{key}: {name!r} matches no module of {card.name}; {hint}")
    found = {path for path, called in outside.items() for name in chosen for each in called if matches(each, name)}
    return [tensor for tensor in card.expand(dims) if module_path(tensor.name) in found]


def _module_names(plugin: Any, dims: Dims) -> dict[str, list[str]]:
    """Path of each module on the card -> its names: this path and that in the torch model, what most families call it, and
    those of the head that it is.
    """
    called: dict[str, list[str]] = {}
    for at in (dims, dims.replace(tied=False)) if dims.get("tied") else (dims,):
        there = {tensor.name: tensor for tensor in plugin.card.expand(at)}
        embed = next((tensor.name for tensor in there.values() if tensor.slot == "embed"), "")
        for mapping in plugin.hooks.weight_map(card=plugin.card, dims=at, source="torch"):
            slot = there[mapping.target].slot
            is_tied = at is not dims and slot == "head"
            path = module_path(embed if is_tied else mapping.target)
            names = (module_path(mapping.target), module_path(mapping.source), USUAL.get(slot, ""))
            called[path] = list(dict.fromkeys([*called.get(path, ()), *filter(None, names)]))
    return called


def check_rank(card: Family, dims: Dims, paths: Collection[str], rank: int, principal: bool) -> None:
    """Checks that a LoRA rank fits linear layers.

    Args:
        card: Card of the family.
        dims: Dims of the model.
        paths: Paths of the layers.
        rank: LoRA rank.
        principal: Whether the adapter is initialized with singular vectors of the weights (PiSSA), which limits the rank to
            the smaller side of each weight.

    Raises:
        ConfigError: The rank exceeds the larger side of all layers or, with ``principal``, the smaller side of one.
    """
    known = linears(card, dims)
    longest = max(max(known[path].shape) for path in paths)
    if rank > longest:
        raise ConfigError(
            f"method.rank={rank} is above {longest}, the largest side of the target layers; more adds nothing but memory"
        )
    least = min(paths, key=lambda path: min(known[path].shape))
    shape = known[least].shape
    if principal and rank > min(shape):
        raise ConfigError(
            f"method.rank={rank}: with method.pissa the rank is limited to the smaller side of each weight, and {least} is "
            f"{list(shape)}; set method.rank to at most {min(shape)}, or leave that layer out of method.targets"
        )


def _short(paths: Iterable[str]) -> list[str]:
    """The distinct last components of paths."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def torch_modules(plugin: Any, dims: Dims) -> dict[str, list[str]]:
    """Path in the torch model -> linear layers on the card, in order; several if the torch model fuses them."""
    known = linears(plugin.card, dims)
    layers: dict[str, list[tuple[int, str]]] = {}
    for mapping in plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch"):
        path = module_of(mapping.target)
        if path in known and mapping.target.endswith(".weight"):
            offset = mapping.src_slice.start if mapping.src_slice else 0
            layers.setdefault(module_of(mapping.source), []).append((offset, path))
    return {torch: [path for _, path in sorted(named)] for torch, named in layers.items()}
