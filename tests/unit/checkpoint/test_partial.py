"""Models that hold one rank's parts: what they load and draw is what the whole model loads and draws."""

import weakref

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.sharding import Parallel, Segment
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint import partial
from llmctl.checkpoint.build import CheckedModel, check_model
from llmctl.checkpoint.formats.tensor_info import TensorInfo
from llmctl.checkpoint.partial import Cut
from llmctl.checkpoint.shards import merge, part_shape, split, whole_shape
from llmctl.testing.tiny import write_model

MODELS = [("llama", {"kv_heads": 2, "vocab": 97}), ("gpt3", {"vocab": 97}), ("chatglm2", {}), ("qwen2_moe", {})]


def parts_of(model, degree, **options):
    cuts = [Cut.of(model.plugin, model.dims, Parallel(degree, rank)) for rank in range(degree)]
    return cuts[0], [model.layer(cut=cut, **options).state_dict() for cut in cuts]


def assert_parts(cut, states, whole):
    for name, values in whole.items():
        held = [state[name].numpy() for state in states if name in state]
        if name in cut.first_only:
            assert len(held) == 1 and name in states[0]
        found = merge(held, cut.splits[name]) if name in cut.splits else held[0]
        np.testing.assert_array_equal(found, values.numpy(), err_msg=name)


def new_model(family, changes):
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, changes)
    return CheckedModel(plugin, dims, plugin.card.config_from_dims(dims))


@pytest.mark.parametrize(("family", "changes"), MODELS)
@pytest.mark.parametrize("degree", [2, 4])
def test_parts_of_a_folder_are_those_of_the_whole(tmp_path, family, changes, degree):
    model = new_model(family, changes)
    write_model(tmp_path, model.plugin, model.dims)
    opened = check_model(tmp_path)
    cut, states = parts_of(opened, degree)
    assert_parts(cut, states, opened.layer().state_dict())
    assert bool(cut.first_only) == (family == "gpt3")


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_initial_weights_do_not_depend_on_the_ranks(family, changes):
    model = new_model(family, changes)
    whole = model.layer(seed=3).state_dict()
    for degree in (2, 4):
        cut, states = parts_of(model, degree, seed=3)
        assert_parts(cut, states, whole)
    other = model.layer(seed=4).state_dict()
    drawn = [name for name, values in whole.items() if np.ptp(values.numpy())]
    assert drawn and not any(np.array_equal(whole[name].numpy(), other[name].numpy()) for name in drawn)


def test_of_new_models_one_tensor_at_a_time_is_whole(monkeypatch):
    model, drawn = new_model("llama", {}), []
    cut = Cut.of(model.plugin, model.dims, Parallel(2, 0))

    def watched(name, parameter, seed):
        assert not [other for other, whole in drawn if whole() is not None]
        original(name, parameter, seed)
        if name in cut.splits:
            drawn.append((name, weakref.ref(parameter)))

    original = partial.draw
    monkeypatch.setattr(partial, "draw", watched)
    state = model.layer(cut=cut).state_dict()
    assert len(drawn) == len(cut.splits)
    sizes = {tensor.name: tensor.size for tensor in model.plugin.card.expand(model.dims)}
    held = sum(sizes[name] / (2 if name in cut.splits else 1) for name in state)
    assert abs(sum(values.size for values in state.values()) - held) <= model.dims.hidden


def test_half_types_are_cut_as_they_are(tmp_path):
    model = new_model("llama", {})
    write_model(tmp_path, model.plugin, model.dims)
    opened = check_model(tmp_path)
    cut, states = parts_of(opened, 2, dtype="bfloat16")
    assert_parts(cut, states, opened.layer("bfloat16").state_dict())


def test_a_vocabulary_of_any_size_is_divided():
    plugin = plugins.load("gpt3")
    dims = tiny_dims(plugin.card, {"vocab": 50257, "heads": 8})
    for degree in (2, 4):
        rules = plugin.hooks.tensor_parallel_rules(card=plugin.card, dims=dims, degree=degree)
        name = next(name for name, rule in rules.items() if rule.symbol == "vocab")
        whole = np.arange(50257 * 2).reshape(50257, 2)
        parts = [split(whole, rules[name], rank, degree) for rank in range(degree)]
        assert [len(part) for part in parts] == [50257 // degree + 1] + [50257 // degree] * (degree - 1)
        assert np.array_equal(merge(parts, rules[name]), whole)
        for rank, part in enumerate(parts):
            assert part_shape(whole.shape, rules[name], rank, degree) == part.shape
            assert whole_shape(part.shape, rules[name]) == whole.shape


def test_a_rank_reads_only_the_rows_it_needs(tmp_path, monkeypatch):
    model = new_model("llama", {})
    write_model(tmp_path, model.plugin, model.dims)
    opened, read = check_model(tmp_path), []
    original = TensorInfo.read_into

    def watched(info, out, dtype, start=0):
        read.append(out.size)
        original(info, out, dtype, start)

    monkeypatch.setattr(TensorInfo, "read_into", watched)
    opened.layer()
    whole = sum(read)
    read.clear()
    cut = Cut.of(opened.plugin, opened.dims, Parallel(2, 1))
    opened.layer(cut=cut)
    # Files hold a linear by outputs: of those whose inputs are divided everything is read.
    by_inputs = sum(t.size for t in opened.plugin.card.expand(opened.dims)
                    if t.name in cut.splits and t.slot in ("out", "ffn2"))  # fmt: skip
    undivided = sum(t.size for t in opened.plugin.card.expand(opened.dims) if t.name not in cut.splits)
    assert sum(read) == undivided + by_inputs + (whole - undivided - by_inputs) / 2


def test_the_first_ranks_hold_one_more_and_ranks_share_what_there_is_too_little_of():
    assert [list(Segment(1, 5, 1).held(rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4]]
    assert [list(Segment(1, 2, 8, replicas=2).held(rank, 4)) for rank in range(4)] == [[0], [0], [1], [1]]


def test_only_vocabularies_are_divided_unevenly():
    plugin = plugins.load("llama")
    dims = tiny_dims(plugin.card, {"heads": 6, "kv_heads": 6, "hidden": 48})
    with pytest.raises(ValueError, match="heads=6 is not divisible by tensor_parallel_degree=4; use one of 1, 2, 3, 6"):
        Cut.of(plugin, dims, Parallel(4, 0))
