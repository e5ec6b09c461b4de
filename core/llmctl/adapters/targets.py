"""Which layers of a family take adapters: the linears inside its layers, by the names on its card.

Router and head are left out. Names are paths in the state dict without ``.weight``.
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
    """The linears inside the layers: path -> its weight's row of the table."""
    rows = (tensor for tensor in card.expand(dims) if tensor.kind == "linear" and tensor.layer is not None)
    return {module_of(tensor.name): tensor for tensor in rows}


def module_of(weight: str) -> str:
    """The path of the layer that holds a weight."""
    return weight.removesuffix(".weight")


def matches(path: str, name: str) -> bool:
    """Whether a path is the name or ends with it, part by part."""
    return path == name or path.endswith("." + name)


def choose(card: Family, dims: Dims, names: Sequence[str], key: str = "method.targets") -> list[str]:
    """The paths of all linears that the names stand for, in the order of the table.

    Args:
        card: The family.
        dims: The model's dims.
        names: ``all``, or ends of paths such as ``q_proj`` or ``mlp.c_proj``.
        key: Where the names come from, for messages.

    Raises:
        ConfigError: A name matches no linear inside the layers, or there are no names.
    """
    known = list(linears(card, dims))
    if not names:
        raise ConfigError(f"{key} is empty; write all, or names such as {', '.join(_short(known)[:3])}")
    for name in names:
        if name != ALL and not any(matches(path, name) for path in known):
            near = difflib.get_close_matches(name, [ALL, *_short(known)], 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_short(known))}"
            raise ConfigError(f"{key}: {name!r} matches no linear layer of {card.name}; {hint}")
    return [path for path in known if any(name == ALL or matches(path, name) for name in names)]


def check_rank(card: Family, dims: Dims, paths: Collection[str], rank: int, principal: bool) -> None:
    """Passes when matrices of a rank can stand beside these linears.

    Args:
        card: The family.
        dims: The model's dims.
        paths: Of the linears.
        rank: Of the matrices.
        principal: Whether they begin as the principal parts of the weights (PiSSA), which have no more than their shorter
            side.

    Raises:
        ConfigError: One has a side that is shorter, or all have.
    """
    known = linears(card, dims)
    longest = max(max(known[path].shape) for path in paths)
    if rank > longest:
        raise ConfigError(
            f"method.rank={rank} is over {longest}, the longest side of the layers, beyond which it adds nothing but memory"
        )
    least = min(paths, key=lambda path: min(known[path].shape))
    shape = known[least].shape
    if principal and rank > min(shape):
        raise ConfigError(
            f"method.rank={rank}: with method.pissa the small matrices begin as parts of the weights, and {least} {list(shape)} "
            f"has no more than {min(shape)}; set method.rank to that or less, or leave it out of method.targets"
        )


def _short(paths: Iterable[str]) -> list[str]:
    """The last part of each path, once."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def torch_modules(plugin: Any, dims: Dims) -> dict[str, list[str]]:
    """Path in the torch model -> the linears that it holds, in order; several where torch packs what is split here."""
    known = linears(plugin.card, dims)
    held: dict[str, list[tuple[int, str]]] = {}
    for rename in plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch"):
        path = module_of(rename.target)
        if path in known and rename.target.endswith(".weight"):
            place = rename.src_slice.start if rename.src_slice else 0
            held.setdefault(module_of(rename.source), []).append((place, path))
    return {torch: [path for _, path in sorted(rows)] for torch, rows in held.items()}
