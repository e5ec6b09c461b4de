"""Which layers of a family are computed again for their gradient, by the rows of its card."""

from __future__ import annotations

from typing import Any

from llmctl.card import Dims, Family
from llmctl.nn.recompute import recompute_layers


def apply(model: Any, card: Family, dims: Dims, what: str, interval: int) -> None:
    """Sets up ``train.recompute`` on a model.

    Args:
        model: The model; adapters may have replaced its linears.
        card: Its family.
        dims: Its dims.
        what: ``none``, ``full`` (whole layers of the decoder) or ``attention``.
        interval: Of so many layers, one is computed again.
    """
    if what == "none":
        return
    names: dict[str, None] = {}
    for tensor in card.expand(dims):
        if tensor.layer is None or tensor.layer % interval:
            continue
        if what == "attention" or _balances(model):
            # What a router computed must stay: its balancing loss has a gradient of its own.
            slots = ("qkv",) if what == "attention" else ("qkv", "ffn1")
            if tensor.slot.partition(".")[0] in slots and (tensor.expert is not None or tensor.slot.startswith("qkv")):
                names[tensor.name.rsplit(".", 2)[0]] = None
        else:
            head, _, _ = tensor.name.partition(f".{tensor.layer}.")
            names[f"{head}.{tensor.layer}"] = None
    recompute_layers(model, names)


def _balances(model: Any) -> bool:
    return bool(getattr(model, "aux_loss", 0))
