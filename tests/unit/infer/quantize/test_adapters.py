"""Adapters and virtual tokens of the float model beside a model whose layers have scales folded into them."""

import dataclasses

import numpy as np
import pytest
from kit import packed_toys
from kit.packed_toys import FORMS

from llmctl.errors import UnsupportedError
from llmctl.infer.packed.adapters import fold_adapter, fold_prefix
from llmctl.infer.packed.linear import pack
from llmctl.infer.packed.model import Layer, Linear, StageFold
from llmctl.infer.packed.stored import decode, encode
from llmctl.infer.packed.validate import validate
from llmctl.infer.quantize import folds
from llmctl.infer.quantize.block import block_of
from llmctl.infer.quantize.folds import Fold


def folded(model, offsets=()):
    """The model with random scales in every stage that takes them, and offsets in some, packed as floats."""
    rng, graph = np.random.default_rng(2), model.graph
    layers, noted = [], []

    def linear(matrix):
        return Linear(pack(matrix.weight, "float32"), matrix.bias)

    for index, layer in enumerate(model.layers):
        block = block_of(layer)
        for stage in folds.STAGES:
            if folds.no_scale(graph, stage):
                continue
            for expert in range(len(block.down) if stage == "down" else 1):
                pool = folds.pooled(graph, stage)
                scale = rng.uniform(0.3, 3, pool.max() + 1).astype(np.float32)[pool]
                offset = rng.normal(size=pool.max() + 1).astype(np.float32)[pool] if stage in offsets else None
                block = folds.apply(graph, block, stage, Fold(scale, offset), expert)
                noted.append(StageFold(index, stage, expert, scale, offset))
        layers.append(Layer(block.norm, linear(block.qkv), linear(block.out), block.ffn_norm, tuple(map(linear, block.up)),
                            tuple(map(linear, block.down)), block.router, block.q_norm, block.k_norm))  # fmt: skip
    return dataclasses.replace(model, layers=tuple(layers), folds=tuple(noted))


@pytest.mark.parametrize(
    "name", ["rope and shared heads", "experts", "learned positions", "norms after and projections"]
)
def test_an_adapter_changes_a_folded_model_as_it_changes_the_float_one(name):
    model = packed_toys.build(FORMS[name], adapters=1)
    other = folded(model)
    other = dataclasses.replace(other, adapters=[fold_adapter(model.adapters[0], other)])
    (text,) = packed_toys.several(1, adapter=0)
    expected = packed_toys.expected(model, text)
    assert np.abs(packed_toys.expected(other, text) - expected).max() < 1e-4
    plain = packed_toys.several(1)[0]
    assert np.abs(packed_toys.expected(other, plain) - expected).max() > 1e-2


def test_virtual_tokens_are_moved_with_the_values():
    model = packed_toys.build(FORMS["rope and shared heads"], prefix=5)
    other = folded(dataclasses.replace(model, prefix=None), offsets=("out",))
    other = dataclasses.replace(other, prefix=fold_prefix(model.prefix, other))
    (text,) = packed_toys.several(1)
    assert np.abs(packed_toys.expected(other, text) - packed_toys.expected(model, text)).max() < 1e-4


def test_an_adapter_of_shifted_inputs_is_refused():
    model = packed_toys.build(FORMS["rope and shared heads"], adapters=1)
    with pytest.raises(UnsupportedError, match="whose inputs were shifted when the model was quantized"):
        fold_adapter(model.adapters[0], folded(model, offsets=("qkv",)))


def test_folds_are_kept_in_a_file_and_checked():
    model, arrays = folded(packed_toys.build(FORMS["experts"]), offsets=("qkv",)), []
    again = decode(encode(model, arrays), arrays)
    assert [(one.layer, one.stage, one.expert) for one in again.folds] == [
        (one.layer, one.stage, one.expert) for one in model.folds
    ]
    assert np.array_equal(again.folds[0].offset, model.folds[0].offset)
    wrong = dataclasses.replace(again.folds[0], scale=np.zeros(packed_toys.HIDDEN, np.float32))
    slots = tuple({"qkv": (), "out": (), "ffn1": (), "ffn2": ()} for _ in model.layers)
    sound = dataclasses.replace(again, graph=dataclasses.replace(again.graph, layers=slots))
    validate(sound)
    with pytest.raises(ValueError, match="fold of qkv of layer 0 has scales that are not above 0"):
        validate(dataclasses.replace(sound, folds=(wrong,)))
