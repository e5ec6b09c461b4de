"""Names of tensors in GGUF, by the slots of a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.card.family import Family, Tensor
from llmctl.errors import UnsupportedError

LAYER = {
    "ln": "attn_norm", "qkv": "attn_qkv", "qkv.0": "attn_q", "qkv.1": "attn_k", "qkv.2": "attn_v", "out": "attn_output", "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm", "ffn_ln": "ffn_norm", "ffn1.0": "ffn_gate", "ffn1.1": "ffn_up", "ffn1": "ffn_up", "ffn2": "ffn_down",
    "gate": "ffn_gate_inp",
}  # fmt: skip
"""Slot of a layer -> name."""

OUTER = {
    "embed": "token_embd", "embed_ln": "token_embd_norm", "positions": "position_embd", "final_ln": "output_norm", "head": "output",
}  # fmt: skip
"""Slot outside the layers -> name."""

EXPERTS = "_exps"
"""Ends the name of a tensor that holds all experts of a layer."""

FREQUENCIES = "rope_freqs.weight"
"""By what frequencies of RoPE are divided."""


def gguf_name(tensor: Tensor, card: Family) -> str:
    """The name of a tensor.

    Raises:
        UnsupportedError: GGUF has no place for it that is known here.
    """
    slot, bias = tensor.slot, ""
    base, dot, part = slot.partition(".")
    if base.endswith("_bias"):
        slot, bias = base.removesuffix("_bias") + dot + part, "bias"
    own = card.gguf.names if card.gguf else {}
    name = own.get(tensor.param.name) or (OUTER if tensor.layer is None else LAYER).get(slot)
    if name is None:
        raise UnsupportedError(
            f"GGUF files of the family {card.name} are not supported: its tensor {tensor.name} has no name there"
        )
    experts = EXPERTS if tensor.expert is not None else ""
    layer = "" if tensor.layer is None else f"blk.{tensor.layer}."
    return f"{layer}{name}{experts}.{bias or 'weight'}"


def present(card: Family, dims: Mapping[str, Any], names: frozenset[str]) -> dict[str, bool]:
    """Fields of a card that say whether tensors exist -> whether a file has them, for fields that are true or false.

    Args:
        card: The family.
        dims: Sizes; whether tensors exist is not read.
        names: Names of the file.
    """
    found: dict[str, bool] = {}
    everything = {name: True for name in _switches(card)}
    nothing = {name: False for name in everything}
    for values in (everything, nothing):
        for tensor in card.expand({**dims, **values}):
            negated, name = tensor.param.when.startswith("not "), tensor.param.when.removeprefix("not ")
            if name in everything:
                found[name] = found.get(name, False) or (gguf_name(tensor, card) in names) is not negated
    return found


def _switches(card: Family) -> set[str]:
    return {param.when.removeprefix("not ") for param in card.params if param.when}
