"""Chooses the codes of a layer's linears, one after the other, as the streams show their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.errors import DataError
from llmctl.infer.packed.linear import PackedLinear, joined, pack_codes
from llmctl.infer.packed.model import Layer, Linear
from llmctl.infer.quantize.block import Block, Matrix
from llmctl.infer.quantize.folds import Fold
from llmctl.infer.quantize.scales import Found, refolded, search_layer
from llmctl.infer.quantize.settings import PADDLESLIM, Settings
from llmctl.infer.quantize.streams import CALIBRATE, HOLD, Pairs, Streams, chosen_rows
from llmctl.quant.methods.choose import Chosen, Inputs, Recipe, choose
from llmctl.quant.methods.statistics import HeldRows, Products

Folds = list[tuple[str, int, Fold, bool]]
"""Stage, expert, what the inputs of the stage become, and whether by factors of its linears; in the order in which they were applied."""


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that is done.

    Attributes:
        layer: The layer, packed.
        folds: Scales and offsets in it.
        rows: What is reported of each linear and stage: JSON.
    """

    layer: Layer
    folds: Folds
    rows: list[dict[str, Any]]


def quantize_layer(streams: Streams, index: int, block: Block, settings: Settings) -> QuantizedLayer:
    """Quantizes a layer; the streams move on behind it.

    Raises:
        DataError: Inputs are not finite.
    """
    where = f"layer {index}"
    try:
        found: dict[tuple[str, int], Found] = {}
        read: dict[str, Any] | None = None
        if settings.observes and (settings.scales or settings.offsets):
            block, found, read = search_layer(streams, index, block, settings)
        rows = [_scales_row(index, stage, expert, one) for (stage, expert), one in found.items()]

        def pack(stage: str, expert: int, linear: Matrix, pairs: Callable[[], Pairs]) -> Linear:
            nonlocal where
            where = f"layer {index}, {stage}" + (f" of expert {expert}" if len(block.up) > 1 else "")
            inputs = _inputs(linear, pairs, settings) if settings.observes else Inputs(0)
            packed, chosen = pack_linear(streams.graph, stage, linear, inputs, settings)
            rows.extend(_linear_row(index, name, expert, inputs.tokens, *one) for name, one in chosen.items())
            return packed

        layer = streams.walk(index, block, pack, read)
    except ValueError as error:
        raise DataError(f"{where} cannot be quantized: {error}") from None
    applied = [(*key, one.fold, one.as_factors) for key, one in found.items() if one.fold is not None]
    return QuantizedLayer(layer, applied, rows)


def quantize_unseen(graph: DecoderSpec, index: int, block: Block, settings: Settings) -> QuantizedLayer:
    """Quantizes a layer without any inputs."""
    rows: list[dict[str, Any]] = []

    def pack(stage: str, expert: int, linear: Matrix) -> Linear:
        packed, chosen = pack_linear(graph, stage, linear, Inputs(0), settings)
        rows.extend(_linear_row(index, name, expert, 0, *one) for name, one in chosen.items())
        return packed

    layer = Layer(
        block.norm, pack("qkv", 0, block.qkv), pack("out", 0, block.out), block.ffn_norm,
        tuple(pack("up", expert, linear) for expert, linear in enumerate(block.up)),
        tuple(pack("down", expert, linear) for expert, linear in enumerate(block.down)),
        block.router, block.q_norm, block.k_norm,
    )  # fmt: skip
    return QuantizedLayer(layer, [], rows)


def replay_layer(streams: Streams, index: int, block: Block, done: QuantizedLayer) -> None:
    """Moves the streams on behind a layer that was quantized by an earlier run, to the same bits."""
    # Scales round what is computed with them otherwise than what was read before them.
    read = streams.scan(index, block, lambda *seen: None) if done.folds else {}
    for folded in done.folds:
        block = refolded(streams.graph, block, folded, read)

    def pack(stage: str, expert: int, linear: Matrix, pairs: Callable[[], Pairs]) -> Linear:
        part = getattr(done.layer, stage)
        return part[expert] if isinstance(part, tuple) else part  # type: ignore[no-any-return]

    streams.walk(index, block, pack, read)


def pack_linear(
    graph: DecoderSpec, stage: str, linear: Matrix, inputs: Inputs, settings: Settings
) -> tuple[Linear, dict[str, tuple[int, Chosen]]]:
    """The codes of a linear in panels; and bits and codes by the names of its parts: the stage, or ``q`` and ``kv`` if bits differ."""
    chosen, parts = {}, []
    for name, bits, outputs in _parts(graph, stage, settings):
        recipe = recipe_of(settings, bits)
        chosen[name] = bits, choose(linear.weight[:, outputs], inputs.of(outputs), recipe)
        parts.append(_packed(chosen[name][1], recipe, linear))
    return Linear(joined(parts), linear.bias), chosen


def _parts(graph: DecoderSpec, stage: str, settings: Settings) -> list[tuple[str, int, slice]]:
    """Name, bits and outputs of the parts of a stage's linears that have one number of bits."""
    if stage != "qkv" or settings.q_bits == settings.kv_bits:
        return [(stage, settings.q_bits if stage == "qkv" else settings.bits, slice(None))]
    queries = graph.heads * graph.head_dim
    return [("q", settings.q_bits, slice(queries)), ("kv", settings.kv_bits, slice(queries, None))]


def recipe_of(settings: Settings, bits: int) -> Recipe:
    """How codes are chosen that have this number of bits."""
    form = "symmetric" if bits == 8 and settings.form == "signed" else settings.form
    observed = settings.observes
    return Recipe(
        bits, settings.group, form, search=observed and settings.method != "ptq-a8w8", gptq=settings.method == "gptq",
        correction=settings.correction, damping=settings.damping or None, by_paddleslim=settings.backend == PADDLESLIM,
    )  # fmt: skip


def _packed(chosen: Chosen, recipe: Recipe, linear: Matrix) -> PackedLinear:
    grid = chosen.grid
    zeros = grid.zeros_GO if grid.zeros_GO.any() else None
    kind = "int8" if recipe.bits == 8 else "int4"
    inputs = len(chosen.codes_IO)
    group = 0 if not recipe.group or recipe.group >= inputs else recipe.group
    return pack_codes(chosen.codes_IO, grid.scales_GO, zeros, kind, group, factors_I=linear.factors)


def _inputs(linear: Matrix, pairs: Callable[[], Pairs], settings: Settings) -> Inputs:
    """What the calibration shows of the inputs of a linear."""
    weight = linear.weight
    products = Products(weight, missing=settings.method == "gptq" and settings.correction > 0)
    held = HeldRows()
    for exact_TI, quantized_TI, role_T in pairs():
        exact_TI, quantized_TI = linear.seen(exact_TI), linear.seen(quantized_TI)
        products.add(*(chosen_rows(x_TI, role_T == CALIBRATE) for x_TI in (quantized_TI, exact_TI)))
        held.add(*(chosen_rows(x_TI, role_T == HOLD) for x_TI in (quantized_TI, exact_TI)))
    quantized_TI, exact_TI = held.arrays(2)
    wanted = exact_TI @ weight if len(exact_TI) else np.zeros((0, weight.shape[1]), np.float32)
    return Inputs(products.tokens, products.gram_II, products.missing_IK, quantized_TI, wanted, products.times_KO)


def _linear_row(index: int, stage: str, expert: int, tokens: int, bits: int, chosen: Chosen) -> dict[str, Any]:
    return {
        "layer": index, "stage": stage, "expert": expert, "bits": bits, "how": chosen.how, "tokens": tokens,
        "damping": _number(chosen.damping), "rounded_error": _number(chosen.rounded_error), "error": _number(chosen.error),
    }  # fmt: skip


def _scales_row(index: int, stage: str, expert: int, found: Found) -> dict[str, Any]:
    return {
        "layer": index, "stage": stage, "expert": expert, "scales": found.choice or None, "reason": found.reason,
        "before": _number(found.before), "after": _number(found.after), "spread": [_number(value) for value in found.spread],
    }  # fmt: skip


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
