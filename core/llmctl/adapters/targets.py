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


def linears(card: Family, dims: Dims) -> dict[str, Tensor]:
    """The linear layers inside the decoder layers: path -> weight on the card."""
    named = (tensor for tensor in card.expand(dims) if tensor.kind == "linear" and tensor.layer is not None)
    return {module_of(tensor.name): tensor for tensor in named}


def module_of(weight: str) -> str:
    """Path of the layer of a weight."""
    return weight.removesuffix(".weight")


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
