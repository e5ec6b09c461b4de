"""Adapters and prefixes of peft beside packed weights, against peft's own logits; what is refused; bases that were quantised in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmctl.adapters import base_model as bases
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.formats.dtypes import cast
from llmctl.errors import CheckpointError, ConfigError, UnsupportedError
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.executors.reference import ReferenceExecutor
from llmctl.infer.loader import Packing, add_adapters, packed_model
from llmctl.infer.packed.adapters import merged_state, pack_adapter, pack_prefix, widths_of
from llmctl.infer.packed.folder import open_packed, read_header, save_packed
from llmctl.infer.packed.pack import RoundToNearest, graph_of, pack, pack_model, state_of
from llmctl.quant.blockwise import round_trip

GOLDENS = Path(__file__).resolve().parents[3] / "goldens" / "adapters"
PREFIXES = GOLDENS.parent / "prefixes"
CASES = sorted(path.name for path in GOLDENS.iterdir())


def logits(model, rows, adapter):
    return np.stack(SequenceFeeder(ReferenceExecutor(model), model.graph, [adapter] * len(rows)).feed(*enumerate(rows)))


def floats(stored):
    return cast(stored.numpy(), stored.dtype, "float32")


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_peft_beside_packed_weights_gives_the_logits_of_peft(case):
    golden, opened = np.load(GOLDENS / case / "golden.npz"), open_adapter(GOLDENS / case / "adapter")
    plugin, dims = opened.plugin, opened.dims
    base, graph = pack_model(opened.base, plugin, dims), graph_of(plugin, dims)
    state = merged_state(open_source(opened.base, plugin, dims).state, opened)
    merged = pack(graph, RoundToNearest(state_of(state, graph)))
    np.testing.assert_allclose(logits(merged, golden["input_ids"], -1), golden["logits"], atol=1e-4)
    assert np.abs(logits(base, golden["input_ids"], -1) - golden["logits"]).max() > 0.1
    if any(part.magnitude is not None for part in opened.adapter.layers.values()):
        with pytest.raises(UnsupportedError, match=r"the adapter one is a DoRA adapter .*merge it"):
            pack_adapter(opened.adapter, graph, widths_of(plugin, dims), "one")
        return
    packed = pack_adapter(opened.adapter, graph, widths_of(plugin, dims), "one")
    adapted = replace(base, adapters=[packed])
    np.testing.assert_allclose(logits(adapted, golden["input_ids"], 0), golden["logits"], atol=1e-4)


@pytest.mark.parametrize("case", sorted(path.name for path in PREFIXES.iterdir()))
def test_a_prefix_of_peft_in_the_cache_gives_the_logits_and_tokens_of_peft(case):
    golden, opened = np.load(PREFIXES / case / "golden.npz"), open_adapter(PREFIXES / case / "adapter")
    model = pack_model(opened.base, opened.plugin, opened.dims)
    rows, prefix = golden["input_ids"], pack_prefix(opened.adapter, model.graph)
    found = SequenceFeeder(ReferenceExecutor(model), model.graph, [-1] * len(rows), prefix=prefix).feed(
        *enumerate(rows)
    )
    np.testing.assert_allclose(np.stack(found), golden["logits"], atol=1e-4)
    expected = golden["greedy_ids"][0].tolist()
    prompt = rows[0].tolist()
    feeder = SequenceFeeder(ReferenceExecutor(model), model.graph, [-1], prefix=prefix)
    assert [*prompt, *feeder.greedy(0, prompt, len(expected) - len(prompt))] == expected


def test_a_base_that_was_quantised_in_training_is_packed_as_the_adapter_saw_it():
    opened = open_adapter(GOLDENS / CASES[0] / "adapter")
    path, part = next(iter(opened.adapter.layers.items()))
    part = replace(part, magnitude=None)
    adapter = Adapter({path: part}, record={"quantised": "nf4"})
    opened = replace(opened, adapter=adapter)
    state = open_source(opened.base, opened.plugin, opened.dims).state
    weight = floats(state[path + ".weight"])
    seen = round_trip(weight, "nf4")
    assert np.abs(seen - weight).max() > 1e-3
    for name, stored in merged_state(state, opened, adapter=False).items():
        if state[name] is not stored:
            np.testing.assert_array_equal(stored.numpy(), round_trip(floats(state[name]), "nf4"))
    merged = merged_state(state, opened)[path + ".weight"].numpy()
    np.testing.assert_allclose(merged, seen + part.scale * part.a @ part.b, atol=1e-6)


def test_an_adapter_of_a_layer_that_is_not_there_is_refused():
    opened = open_adapter(GOLDENS / CASES[0] / "adapter")
    odd = Adapter({"model.odd": LoraWeights(np.ones((4, 1)), np.ones((1, 4)), 1.0)})
    with pytest.raises(
        CheckpointError, match=r"the adapter one changes model\.odd, which is no linear of the fused decoder"
    ):
        pack_adapter(odd, graph_of(opened.plugin, opened.dims), widths_of(opened.plugin, opened.dims), "one")


def folder_of(opened, path, kind="float32"):
    """A packed folder of an adapter's base, without the adapter."""
    packed = packed_model(opened.base, opened.plugin, opened.dims, Packing(kind=kind))
    save_packed(packed, path, opened.base, opened.plugin)
    return path


def over(path, folder):
    """An adapter's folder with a packed folder as its base."""
    return open_adapter(folder, path, base_record=read_header(path)["base"])


@pytest.mark.parametrize("case", ["gpt2_dora_rslora", "llama_patterns", "mixtral_experts", "qwen2_rslora"])
def test_a_packed_folder_takes_adapters_when_it_runs(case, tmp_path):
    folder = GOLDENS / case / "adapter"
    golden, opened = np.load(GOLDENS / case / "golden.npz"), open_adapter(folder)
    plugin, dims, rows = opened.plugin, opened.dims, golden["input_ids"]
    path = folder_of(opened, tmp_path / "packed")
    if any(part.magnitude is not None for part in opened.adapter.layers.values()):
        with pytest.raises(
            UnsupportedError, match=r"is a DoRA adapter .*llmctl merge, or .*llmctl export --engine fused --adapter"
        ):
            add_adapters(open_packed(path), plugin, dims, over(path, folder))
        return
    adapted = add_adapters(open_packed(path), plugin, dims, over(path, folder))
    np.testing.assert_allclose(logits(adapted, rows, 0), golden["logits"], atol=1e-4)
    # Several in one batch over rounded weights: what packing at load gives, number for number.
    parts = {name: replace(part, scale=-2 * part.scale) for name, part in opened.adapter.layers.items()}
    named = {"one": opened, "two": replace(opened, adapter=replace(opened.adapter, layers=parts))}
    at_load = packed_model(opened.base, plugin, dims, Packing(kind="int8"), None, named)
    later = add_adapters(open_packed(folder_of(opened, tmp_path / "int8", "int8")), plugin, dims, None, named)
    chosen = [-1, 0, 1]
    found = [
        np.stack(
            SequenceFeeder(ReferenceExecutor(model), model.graph, chosen).feed(
                *((place, rows[0]) for place in range(3))
            )
        )
        for model in (at_load, later)
    ]
    np.testing.assert_array_equal(*found)
    assert len({row.tobytes() for row in found[1]}) == 3


@pytest.mark.parametrize("case", ["gpt2", "llama_projected"])
def test_a_packed_folder_takes_virtual_tokens_when_it_runs(case, tmp_path):
    folder = PREFIXES / case / "adapter"
    golden, opened = np.load(PREFIXES / case / "golden.npz"), open_adapter(folder)
    path, rows = folder_of(opened, tmp_path / "packed"), golden["input_ids"]
    model = add_adapters(open_packed(path), opened.plugin, opened.dims, over(path, folder))
    found = SequenceFeeder(ReferenceExecutor(model), model.graph, [-1] * len(rows), prefix=model.prefix).feed(
        *enumerate(rows)
    )
    np.testing.assert_allclose(np.stack(found), golden["logits"], atol=1e-4)
    for more in ((opened,), (None, {"one": opened})):
        with pytest.raises(UnsupportedError, match="virtual tokens were packed with the model"):
            add_adapters(model, opened.plugin, opened.dims, *more)
    with pytest.raises(
        UnsupportedError, match="the adapter one is virtual tokens, which go before every sequence; leave out the name"
    ):
        add_adapters(open_packed(path), opened.plugin, opened.dims, None, {"one": opened})


@pytest.mark.parametrize("case", ["bloom_dora", "gpt2_dora_rslora", "llama_plain", "mixtral_experts"])
def test_a_merged_base_is_noted_as_the_folder_of_merged_weights_would_be(case, tmp_path):
    opened = open_adapter(GOLDENS / case / "adapter")
    plugin, dims = opened.plugin, opened.dims
    state = open_source(opened.base, plugin, dims).state
    noted = bases.record(opened.base, plugin, dims)
    assert bases.record(opened.base, plugin, dims, state) == noted
    merge(opened, tmp_path / "merged", "float32")
    save_packed(
        packed_model(opened.base, plugin, dims, Packing(), opened),
        tmp_path / "packed",
        opened.base,
        plugin,
        False,
        opened,
    )
    found = read_header(tmp_path / "packed")["base"]
    assert found == {**bases.record(tmp_path / "merged", plugin, dims), "path": noted["path"]}
    assert found["values_hash"] != noted["values_hash"]


def test_a_name_that_was_packed_with_the_model_cannot_be_given_again():
    opened = open_adapter(GOLDENS / "llama_plain" / "adapter")
    model = packed_model(opened.base, opened.plugin, opened.dims, Packing(), None, {"one": opened})
    with pytest.raises(ConfigError, match="an adapter named one was packed with the model; choose another name"):
        add_adapters(model, opened.plugin, opened.dims, None, {"one": opened})
    both = add_adapters(model, opened.plugin, opened.dims, opened)
    assert [adapter.name for adapter in both.adapters] == ["one", str(opened.folder)] and len(model.adapters) == 1
