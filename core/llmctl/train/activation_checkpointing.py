"""Activation checkpointing: which layers of a family are recomputed in the backward pass, by the rows of its card."""

from __future__ import annotations

from typing import Any

from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.card.slots import base_slot
from llmctl.nn.recompute import recompute_layers


def apply(model: Any, card: Family, dims: Dims, what: str, interval: int) -> None:
    """Sets up ``train.recompute`` on a model.

    Args:
        model: The model; adapters may have replaced its linears, and it may lack layers that other ranks have.
        card: Its family.
        dims: Its dims.
        what: ``none``, ``full`` (whole layers of the decoder) or ``attention``.
        interval: Every ``interval``-th layer is recomputed.
    """
    if what == "none":
        return
    # The router scores must be kept: the balancing loss has a gradient of its own.
    balances = bool(getattr(model, "aux_loss", 0))
    names: dict[str, None] = {}
    for tensor in card.expand(dims):
        if tensor.layer is None or tensor.layer % interval:
            continue
        slot = base_slot(tensor.slot)
        if what == "full" and not balances:
            head, _, _ = tensor.name.partition(f".{tensor.layer}.")
            names[f"{head}.{tensor.layer}"] = None
        elif slot == "qkv" or (what == "full" and slot == "ffn1" and tensor.expert is not None):
            names[tensor.name.rsplit(".", 2)[0]] = None
    here = dict(model.named_sublayers())
    recompute_layers(model, filter(here.__contains__, names))
