"""From checkpoints to packed models: order of outputs, layouts and types of files, kinds of weights, what is refused."""

import json

import numpy as np
import pytest

from llmctl import plugins
from llmctl.card.decoder_spec import DecoderSpec, Rope
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.convert import convert, open_source
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.errors import CheckpointError, ConfigError, UnsupportedError
from llmctl.infer.packed.linear import unpack
from llmctl.infer.packed.pack import UnitColumns, element_order, graph_of, pack_model, qkv_order


def graph(heads=2, kv_heads=2, head_dim=8, **fields):
    sizes = dict(hidden=16, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ffn=8, vocab=8, embed=16)
    return DecoderSpec(outer={}, layers=(), norm="rmsnorm", norm_eps=1e-5, activation="relu", **sizes, **fields)


def rope(width, pairs):
    return Rope(rotary_dim=width, pairs=pairs, frequencies=())


@pytest.mark.parametrize(
    ("turned", "order"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (rope(8, "neox"), [0, 1, 2, 3, 4, 5, 6, 7]),
        (rope(4, "interleaved"), [0, 2, 1, 3, 4, 5, 6, 7]),
        (rope(8, "2d"), [0, 1, 4, 5, 2, 3, 6, 7]),
    ],
)
def test_elements_that_are_turned_together_stand_half_the_width_apart(turned, order):
    """``2d`` turns 0 with 2 and 1 with 3, and 4 with 6 and 5 with 7."""
    assert element_order(graph(rope=turned)).tolist() == order


def test_outputs_become_queries_then_keys_then_values():
    apart = qkv_order(graph(heads=4, kv_heads=2, head_dim=2))
    assert apart.tolist() == list(range(16))
    # Of head 0 the query is 0 1, the key 2 3, the value 4 5.
    assert qkv_order(graph(head_dim=2, qkv="heads")).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


@pytest.fixture(scope="module")
def family():
    plugin = plugins.load("llama")
    return plugin, tiny_dims(plugin.card, {"kv_heads": 2})


@pytest.fixture
def folder(family, tmp_path):
    """A checkpoint in torch's names and layout, float32."""
    plugin, dims = family
    return write(tmp_path / "hf", plugin, dims)


def write(path, plugin, dims):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    rng, planned = np.random.default_rng(3), {}
    for tensor in plugin.card.expand(dims):
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        values = rng.normal(size=shape).astype("f4")
        planned[tensor.torch_name] = PlannedTensor(shape, "float32", values.tofile)
    write_file(path / "model.safetensors", planned)
    return path


def arrays(model):
    """Everything that a packed model holds, unpacked, by a name."""
    found = {
        "embed": model.token_vectors(np.arange(model.graph.vocab)),
        "head": unpack(model.head.weight),
        "norm": model.final_norm.weight,
    }
    for i, layer in enumerate(model.layers):
        linears = {"qkv": layer.qkv, "out": layer.out, "up": layer.up[0], "down": layer.down[0]}
        found |= {f"{i}.{name}": unpack(linear.weight) for name, linear in linears.items()}
        found |= {f"{i}.ln": layer.norm.weight, f"{i}.ffn_ln": layer.ffn_norm.weight}
    return found


def test_packing_streams_what_the_files_hold(family, folder):
    plugin, dims = family
    state = {name: stored.numpy() for name, stored in open_source(folder, plugin, dims).state.items()}
    found, layer = arrays(pack_model(folder, plugin, dims)), "llama.layers.1."
    qkv = [state[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv"]
    up = [state[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert np.array_equal(found["1.qkv"], np.concatenate(qkv, axis=1))
    assert np.array_equal(found["1.up"], np.concatenate(up, axis=1))
    assert np.array_equal(found["1.down"], state[layer + "mlp.down_proj.weight"])
    assert np.array_equal(found["1.ffn_ln"], state[layer + "post_attention_layernorm.weight"])
    assert np.array_equal(found["head"], state["lm_head.weight"])
    assert np.array_equal(found["embed"], state["llama.embed_tokens.weight"])


@pytest.mark.parametrize("dtype", ["keep", "bfloat16", "float16"])
def test_every_layout_and_type_of_files_gives_the_same(family, folder, tmp_path, dtype):
    plugin, dims = family
    for layout in ("hf", "native"):
        convert(open_source(folder, plugin, dims), tmp_path / layout / "m", layout, dtype)
    one, other = (pack_model(tmp_path / layout / "m", plugin, dims) for layout in ("hf", "native"))
    exact = arrays(pack_model(folder, plugin, dims))
    step = {"keep": 0, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    assert one.embed.dtype == {"bfloat16": "uint16", "float16": "float16"}.get(dtype, "float32")
    for (name, values), (_, others) in zip(arrays(one).items(), arrays(other).items(), strict=True):
        assert np.array_equal(values, others)
        np.testing.assert_allclose(values, exact[name], rtol=step, atol=step * 1e-3)


@pytest.mark.parametrize(
    ("kind", "head", "step"),
    [("bfloat16", "bfloat16", 0.02), ("float16", "float16", 0.003), ("int8", "int8", 0.03), ("int4", "int8", 0.5)],
)
def test_kinds_of_weights_and_of_the_head(family, folder, kind, head, step):
    plugin, dims = family
    model, exact = pack_model(folder, plugin, dims, kind), arrays(pack_model(folder, plugin, dims))
    assert {layer.qkv.weight.kind for layer in model.layers} == {kind} and model.head.weight.kind == head
    found = arrays(model)
    for name, values in found.items():
        error = np.abs(values - exact[name]).max()
        assert error < step, name
        assert (error > 0) == (values.ndim == 2 and (name != "embed" or kind.startswith("int"))), name


def test_a_tied_head_is_the_table_of_token_vectors(family, tmp_path):
    plugin, dims = family
    tied = dims.replace(tied=True)
    folder = write(tmp_path / "tied", plugin, tied)
    for kind in ("float32", "int4"):
        model = pack_model(folder, plugin, tied, kind)
        assert "head" not in model.graph.outer
        assert model.embed is model.head.weight
        np.testing.assert_array_equal(unpack(model.head.weight), model.token_vectors(np.arange(tied.vocab)).T)


def test_a_head_of_unit_columns_is_normalized_once():
    class LazyTensor:
        dtype = "float32"

        def numpy(self):
            return np.array([[3.0, 0.0], [4.0, 0.0]], "f4")

    assert UnitColumns(LazyTensor()).numpy().tolist() == [[np.float32(0.6), 0.0], [np.float32(0.8), 0.0]]


@pytest.mark.parametrize(
    ("kind", "group", "message"),
    [
        ("fp8", None, "weights='fp8' is unknown; known: float32, bfloat16, float16, int8, int4"),
        ("int4", 48, "group=48 must be 0 .a scale for each output. or a multiple of 32"),
        ("float32", 64, "group=64 is for weights of int8 and int4; these are float32"),
    ],
)
def test_kinds_and_groups_that_do_not_exist_are_refused(family, folder, kind, group, message):
    with pytest.raises(ConfigError, match=message):
        pack_model(folder, *family, kind, group)


def test_values_that_are_not_finite_have_no_codes(family, folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32("nan").tobytes()
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be packed: a weight with values that are not finite|not finite"):
        pack_model(folder, *family, "int8")


def test_a_family_without_a_fused_path_says_why():
    plugin = plugins.load("qwen2_moe")
    with pytest.raises(UnsupportedError, match="qwen2_moe does not support fused inference: the fused decoder has no"):
        graph_of(plugin, plugin.card.dims_of("qwen1.5-moe-a2.7b"))
