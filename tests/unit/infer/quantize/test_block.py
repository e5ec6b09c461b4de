"""A layer in numpy beside the definition of every form of decoder, and scales and offsets that change nothing."""

import dataclasses

import numpy as np
import pytest
from kit import packed_toys
from kit.packed_toys import FORMS

from llmctl.card.decoder_spec import PrefixLM
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.engine.positions import PositionRule
from llmctl.infer.executors.base import Batch
from llmctl.infer.executors.reference import ReferenceExecutor
from llmctl.infer.packed.linear import pack, unpack
from llmctl.infer.packed.model import Linear
from llmctl.infer.quantize import folds
from llmctl.infer.quantize.block import block_of
from llmctl.infer.quantize.folds import Fold
from llmctl.infer.quantize.quality import _Head
from llmctl.infer.quantize.quantizer import quantize_layer, replay_layer
from llmctl.infer.quantize.settings import Settings
from llmctl.infer.quantize.streams import CHECK, Streams, Tokens

RNG = np.random.default_rng(4)
CAUSAL = [name for name in FORMS if name != "two positions and contexts"]


def as_floats(stage, expert, linear, pairs):
    return Linear(pack(linear.weight, "float32"), linear.bias)


def logits(model, windows, change=lambda block: block):
    """Logits of all tokens by the quantized stream, with linears packed as floats."""
    streams = Streams(model.graph, Tokens(windows, [0] * len(windows)))
    streams.embed(model, model)
    for index, layer in enumerate(model.layers):
        streams.walk(index, change(block_of(layer)), as_floats)
    assert np.abs(streams.float_TD - streams.quantized_TD).max() < 1e-4
    return _Head(streams, model)(streams.quantized_TD)


@pytest.mark.parametrize("name", CAUSAL)
def test_layers_compute_what_they_are_defined_to(name):
    model, texts = packed_toys.build(FORMS[name]), packed_toys.several()
    found = logits(model, [text.ids for text in texts])
    expected = np.concatenate([packed_toys.expected(model, text) for text in texts])
    assert np.abs(found - expected).max() < 3e-4


@pytest.mark.parametrize("name", CAUSAL)
def test_windows_that_are_compared_are_predicted_as_the_engine_does(name):
    """By the float model without, and by the quantized one with rows that are rounded."""
    form = {"score_scales": (0.3, 0.15), **FORMS[name]}
    models = [packed_toys.build(form, kind) for kind in ("float32", "int8")]
    ids = [text.ids for text in packed_toys.several()]
    streams = Streams(models[0].graph, Tokens(ids, [CHECK] * len(ids)))
    streams.embed(*models)
    for index, (exact, layer) in enumerate(zip(*(model.layers for model in models), strict=True)):

        def packed(stage, expert, linear, pairs, layer=layer):
            part = getattr(layer, stage)
            return part[expert] if isinstance(part, tuple) else part

        streams.walk(index, block_of(exact), packed)
    for model, stream_TD in zip(models, (streams.float_TD, streams.quantized_TD), strict=True):
        feeder = SequenceFeeder(
            ReferenceExecutor(model, rounding=True), model.graph, [-1] * len(ids), max(map(len, ids))
        )
        expected = np.concatenate([feeder.feed((number, one))[0] for number, one in enumerate(ids)])
        apart_T = np.abs(_Head(streams, model)(stream_TD) - expected).max(1)
        # A value between two codes may be rounded either way.
        assert (apart_T < 1e-4).mean() > 0.9


def test_prompts_that_are_read_in_both_directions_are_so_here():
    model = packed_toys.build(FORMS["two positions and contexts"])
    graph = dataclasses.replace(model.graph, prefix_lm=PrefixLM(end=3, mask_ids=(2,)))
    model = dataclasses.replace(model, graph=graph)
    ids = [9, 8, 7, 2, 3, 11, 12, 13]
    rule, zeros = PositionRule(graph), np.zeros(len(ids), np.int32)
    place = np.arange(len(ids), dtype=np.int32)
    position, second, begin, end = rule.arrays(place, [(slice(0, len(ids)), rule.prefix(ids))])
    executor = ReferenceExecutor(model)
    executor.allocate(1)
    batch = Batch(np.array(ids, np.int32), zeros, place, position, second, begin, end, np.zeros((1, 1), np.int32),
                  np.array([-1], np.int32), place)  # fmt: skip
    assert np.abs(logits(model, [ids]) - executor.run(batch)).max() < 3e-4


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("with_offsets", [False, True])
def test_scales_and_offsets_leave_the_model_as_it_is(name, with_offsets):
    model, texts = packed_toys.build(FORMS[name]), packed_toys.several()
    graph, stages = model.graph, []

    def change(block):
        for stage in folds.STAGES:
            if folds.no_scale(graph, stage):
                continue
            for expert in range(len(block.down) if stage == "down" else 1):
                pool = folds.pooled(graph, stage)
                scale = RNG.uniform(0.2, 5, pool.max() + 1).astype(np.float32)[pool]
                offset = None
                if with_offsets and not folds.no_offset(graph, stage):
                    offset = RNG.normal(size=pool.max() + 1).astype(np.float32)[pool]
                stages.append(stage)
                block = folds.apply(graph, block, stage, Fold(scale, offset), expert)
        return block

    ids = [text.ids for text in texts]
    assert np.abs(logits(model, ids, change) - logits(model, ids)).max() < 5e-4
    assert "out" in stages


@pytest.mark.parametrize("name", CAUSAL)
def test_linears_see_what_a_scan_read_once_it_has_the_scales(name):
    model, texts = packed_toys.build(FORMS[name]), packed_toys.several()
    graph, tokens = model.graph, Tokens([text.ids for text in texts], [0] * len(texts))
    streams, again = Streams(graph, tokens), Streams(graph, tokens)
    for one in (streams, again):
        one.embed(model, model)
    block = block_of(model.layers[0])
    read = streams.scan(0, block, lambda *seen: None)
    assert list(read) == (["out"] if graph.experts else ["out", "down"])
    for stage in ("out", "down"):
        if stage in read and not folds.no_scale(graph, stage):
            pool = folds.pooled(graph, stage)
            scale = RNG.uniform(0.2, 5, pool.max() + 1).astype(np.float32)[pool]
            offset = None
            if not folds.no_offset(graph, stage):
                offset = RNG.normal(size=pool.max() + 1).astype(np.float32)[pool]
            block = folds.apply(graph, block, stage, Fold(scale, offset))
            Fold(scale, offset).apply_to(read[stage])

    def seeing(inputs):
        def choose(stage, expert, linear, pairs):
            inputs[stage] = np.concatenate([exact for exact, _, _ in pairs()])
            return as_floats(stage, expert, linear, pairs)

        return choose

    found, expected = {}, {}
    streams.walk(0, block, seeing(found), read)
    again.walk(0, block, seeing(expected))
    assert read == {}
    for stage, inputs in expected.items():
        assert np.allclose(found[stage], inputs, rtol=1e-4, atol=1e-4 * np.abs(inputs).max()), stage
    assert np.allclose(streams.float_TD, again.float_TD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["rope and shared heads", "experts"])
def test_a_layer_of_an_earlier_run_moves_the_streams_to_the_same_bits(name):
    model = packed_toys.build(FORMS[name])
    ids = [RNG.integers(0, packed_toys.VOCAB, 60).tolist() for _ in range(8)]
    settings = Settings("ptq-a8w8", 8, 0, q_bits=8, kv_bits=8, offsets=True, factors=True, pieces=1)
    first, again = (Streams(model.graph, Tokens(ids, [0] * 4 + [1] * 2 + [2] * 2)) for _ in range(2))
    for one in (first, again):
        one.embed(model, model)
    outlier = np.where(np.arange(packed_toys.HIDDEN) == 3, 1 / 40, 1).astype(np.float32)
    block = folds.apply(model.graph, block_of(model.layers[0]), "qkv", Fold(outlier))
    done = quantize_layer(first, 0, block, settings)
    assert done.folds
    replay_layer(again, 0, block, done)
    assert np.array_equal(first.float_TD, again.float_TD)
    assert np.array_equal(first.quantized_TD, again.quantized_TD)


def test_what_cannot_take_scales_says_why():
    reasons = {
        name: [folds.no_scale(packed_toys.build(form).graph, s) for s in folds.STAGES] for name, form in FORMS.items()
    }
    assert reasons["rope and shared heads"] == [""] * 4
    assert reasons["norms carried"][0] == "the residual takes the output of the norm"
    assert reasons["norms after and projections"][2] == "the output of the norm is the residual"
    assert reasons["learned positions"][3] == "gelu of a scaled input is not the scaled gelu"
    mixture = packed_toys.build(FORMS["experts"]).graph
    assert folds.no_offset(mixture, "up") == "the router reads the same inputs and has no bias"
    assert folds.no_offset(mixture, "qkv") == ""


@pytest.mark.parametrize("name", ["norms carried", "learned positions", "experts"])
def test_linears_take_scales_that_nothing_before_them_takes_as_factors(name):
    model, texts = packed_toys.build(FORMS[name]), packed_toys.several()

    def change(block):
        for stage in ("qkv", "up", "down"):
            for expert in range(len(block.down) if stage == "down" else 1):
                scale = RNG.uniform(0.2, 5, packed_toys.FFN if stage == "down" else packed_toys.HIDDEN).astype(
                    np.float32
                )
                block = folds.apply_as_factors(block, stage, Fold(scale), expert)
        return block

    ids = [text.ids for text in texts]
    streams = Streams(model.graph, Tokens(ids, [0] * len(ids)))
    streams.embed(model, model)

    def exactly(stage, expert, linear, pairs):
        whole = linear.weight if linear.factors is None else linear.weight * linear.factors[:, None]
        return Linear(pack(whole, "float32"), linear.bias)

    for index, layer in enumerate(model.layers):
        streams.walk(index, change(block_of(layer)), exactly)
    found = _Head(streams, model)(streams.float_TD)
    assert np.abs(found - logits(model, ids)).max() < 5e-4


def test_a_gelu_with_outliers_is_smoothed_by_factors():
    model = packed_toys.build(FORMS["learned positions"])
    rng, ids = np.random.default_rng(0), []
    for _ in range(8):
        ids.append(rng.integers(0, packed_toys.VOCAB, 60).tolist())
    layer = model.layers[0]
    bias = layer.up[0].bias.copy()
    bias[3] += 60
    weight = unpack(layer.down[0].weight).copy()
    weight[3] /= 60
    loud = dataclasses.replace(layer, up=(Linear(layer.up[0].weight, bias),), down=(Linear(pack(weight, "float32"), layer.down[0].bias),))  # fmt: skip
    errors = {}
    for factors in (False, True):
        streams = Streams(model.graph, Tokens(ids, [0] * 4 + [1] * 2 + [2] * 2))
        streams.embed(model, model)
        settings = Settings("ptq-a8w8", 8, 0, q_bits=8, kv_bits=8, factors=factors, pieces=1)
        done = quantize_layer(streams, 0, block_of(loud), settings)
        assert (done.layer.down[0].weight.factors is not None) == factors
        check = streams.role_T == 2
        errors[factors] = float(np.abs(streams.float_TD - streams.quantized_TD)[check].mean())
    assert errors[True] < 0.7 * errors[False]
