"""Quantization: what every family must satisfy; ``FamilyConformance`` inherits it.

The tiny model of the fused engine's tests is quantized; its float weights with scales folded into them must compute what they did.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.testing.evidence import proves
from llmctl.testing.fused import Fused, executor, expected, mixed

SAME = 1e-4
"""Absolute tolerance of logits of a model that was rewritten exactly."""

GROUP = 32


class QuantizationConformance:
    """Tests that use the fixtures of ``FusedConformance``."""

    def texts(self, dims: Dims) -> list[Any]:
        """As in ``FusedConformance``."""
        raise NotImplementedError

    @proves("quantize")
    @pytest.mark.parametrize("offsets", [False, True], ids=["scales", "scales and offsets"])
    def test_scales_that_are_folded_into_layers_leave_the_model_as_it_is(
        self, dims: Dims, fused: Fused, offsets: bool
    ) -> None:
        from llmctl.infer.packed.linear import pack
        from llmctl.infer.packed.model import Linear

        graph, rng, layers = fused.packed.graph, np.random.default_rng(3), []

        def as_floats(stage: str, expert: int, linear: Any, pairs: Any) -> Linear:
            factors = 1 if linear.factors is None else linear.factors[:, None]
            return Linear(pack(linear.weight * factors, "float32"), linear.bias)

        streams = self._streams(dims, fused)
        for index, layer in enumerate(fused.packed.layers):
            block = folds_of(graph, layer, rng, offsets)
            layers.append(streams.walk(index, block, as_floats))
        model = replace(fused.packed, layers=tuple(layers))
        texts = self.texts(dims)
        found = mixed(executor("twin", model), graph, texts)
        for logits, right in zip(found, expected(fused.layer, texts), strict=True):
            np.testing.assert_allclose(logits, right, atol=SAME, rtol=0)

    @proves("quantize")
    def test_layers_in_numpy_compute_what_the_layer_computes(self, dims: Dims, fused: Fused) -> None:
        from llmctl.infer.packed.linear import pack
        from llmctl.infer.packed.model import Linear
        from llmctl.infer.quantize.block import block_of, matrix, normed

        streams, model = self._streams(dims, fused), fused.packed
        for index, layer in enumerate(model.layers):
            streams.walk(
                index, block_of(layer), lambda stage, expert, one, pairs: Linear(pack(one.weight, "float32"), one.bias)
            )
        hidden = normed(model.graph, model.final_norm, streams.quantized_TD)
        hidden = hidden if model.project_out is None else matrix(model.project_out)(hidden)
        right = np.concatenate(expected(fused.layer, self.texts(dims)))
        np.testing.assert_allclose(matrix(model.head)(hidden), right, atol=SAME, rtol=0)

    @proves("quantize")
    @pytest.mark.parametrize("method", ["gptq", "awq", "ptq-a8w8"])
    def test_codes_stand_for_the_same_weights_packed_and_unpacked(
        self, plugin: plugins.Plugin, dims: Dims, fused: Fused, method: str
    ) -> None:
        from llmctl.infer.packed.linear import pack, unpack
        from llmctl.infer.packed.model import Linear
        from llmctl.infer.quantize.block import block_of
        from llmctl.infer.quantize.quantizer import quantize_layer
        from llmctl.infer.quantize.settings import BITS, Settings

        targets = {one.name for one in plugin.hooks.quant_layers(card=plugin.card, dims=dims, method=method)}
        linears = {one.name for one in plugin.card.expand(dims) if one.kind == "linear" and one.layer is not None}
        assert targets == linears, "the fused engine quantizes all linears of the layers"
        bits, mixed_bits = BITS[method], method == "awq"
        # With awq keys and values have 8 bits beside queries of 4.
        kv_bits = 8 if mixed_bits else bits
        settings = Settings(
            method, bits, GROUP, q_bits=bits, kv_bits=kv_bits, offsets=method == "ptq-a8w8", factors=True
        )
        streams, layers = self._streams(dims, fused), []
        for index, layer in enumerate(fused.packed.layers):
            done = quantize_layer(streams, index, block_of(layer), settings)
            stages = {row["stage"] for row in done.rows if "how" in row}
            assert stages == {*(("q", "kv") if mixed_bits else ("qkv",)), "out", "up", "down"}
            assert done.layer.qkv.weight.kind == ("int4+int8" if mixed_bits else f"int{bits}")
            layers.append(done.layer)
        model = replace(fused.packed, layers=tuple(layers))

        def plain(linear: Linear) -> Linear:
            return Linear(pack(unpack(linear.weight), "float32"), linear.bias)

        unpacked = [
            replace(layer, qkv=plain(layer.qkv), out=plain(layer.out), up=tuple(map(plain, layer.up)), down=tuple(map(plain, layer.down)))
            for layer in layers
        ]  # fmt: skip
        graph, texts = model.graph, self.texts(dims)
        found = mixed(executor("twin", model), graph, texts)
        right = mixed(executor("paddle", replace(model, layers=tuple(unpacked))), graph, texts)
        for ours, theirs in zip(found, right, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=SAME, rtol=0)
            assert np.array_equal(ours.argmax(axis=1), theirs.argmax(axis=1))

    def _streams(self, dims: Dims, fused: Fused) -> Any:
        from llmctl.infer.quantize.streams import Streams, Tokens

        texts = self.texts(dims)
        streams = Streams(fused.packed.graph, Tokens([ids.tolist() for ids in texts], [0] * len(texts)))
        streams.embed(fused.packed, fused.packed)
        return streams


def folds_of(graph: Any, layer: Any, rng: Any, offsets: bool) -> Any:
    """A layer with random scales, as factors where nothing before a stage takes them, and with offsets in every stage that takes them."""
    from llmctl.infer.quantize import folds
    from llmctl.infer.quantize.block import block_of

    block = block_of(layer)
    for stage in folds.STAGES:
        for expert in range(len(block.down) if stage == "down" else 1):
            pool = folds.pooled(graph, stage)
            scale = rng.uniform(0.5, 2, pool.max() + 1).astype(np.float32)[pool]
            if folds.no_scale(graph, stage):
                block = folds.apply_as_factors(block, stage, folds.Fold(scale), expert)
                continue
            offset = None
            if offsets and not folds.no_offset(graph, stage):
                offset = rng.normal(size=pool.max() + 1, scale=0.5).astype(np.float32)[pool]
            block = folds.apply(graph, block, stage, folds.Fold(scale, offset), expert)
    return block
