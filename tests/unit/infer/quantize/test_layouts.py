"""Folders in the layouts of other tools: read bit by bit, they hold the weights that the packed folder holds."""

import json

import numpy as np
import pytest
from kit.model_cli import llmctl
from kit.quantized_reading import READERS
from kit.tiny_tokenizers import write_json
from safetensors.numpy import load_file

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.folder import open_packed
from llmctl.infer.packed.linear import unpack
from llmctl.quant.formats import awq, gptq
from llmctl.quant.formats.codes import Codes, pack_words, unpack_words

SIZES = {"kv_heads": 2, "hidden": 64, "heads": 4, "head_dim": 16, "ffn": 96, "vocab": 600}
WORDS = "Tom has a red kite and Mia has a blue ball. " * 60


def float_model(folder, family="llama", sizes=SIZES, **more):
    """A model with random weights and a tokenizer, in Hugging Face's layout."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, {**sizes, **more})
    rng, planned = np.random.default_rng(0), {}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    for tensor in plugin.card.expand(dims):
        shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
        values = rng.normal(size=shape, scale=0.2).astype("f4") + ("norm" in tensor.name)
        planned[tensor.torch_name] = PlannedTensor(values.shape, "float32", values.astype("f4").tofile)
    write_file(folder / "model.safetensors", planned)
    return write_json(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A float model and its calibration text."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(WORDS)
    return float_model(folder / "model"), folder / "text.txt"


def quantize(made, output, *words, code=0):
    model, text = made
    few = ("--tokens", "600", "--window", "32", "--max-kl", "100")
    return llmctl("quantize", model, "--calibration", text, "--output", output, *few, *words, code=code)


def weights_of(folder):
    """Module -> the weight [in, out] that an independent reader finds, and all other tensors."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors, modules = load_file(folder / "model.safetensors"), {}
    parts = {}
    for name, values in tensors.items():
        module, _, leaf = name.rpartition(".")
        parts.setdefault(module, {})[leaf] = values
    for module, found in parts.items():
        if found.keys() & {"qweight", "weight_scale"}:
            modules[module] = READERS[config["quant_method"]](found, config, module)
    return modules, tensors, config


ROUNDED = ["--method", "weight-only-int4", "--group", "32"]
ASYMMETRIC = ["--set", "quantize.asymmetric=true"]
A8W8 = ["--method", "ptq-a8w8", "--set", "quantize.shift=false", "--set", "quantize.pieces=1"]
CASES = {
    "gptq": ("gptq", ["--method", "gptq", "--group", "32"]),
    "gptq asymmetric": ("gptq", [*ROUNDED, *ASYMMETRIC]),
    "gptq 8 bits": ("gptq", ["--method", "weight-only-int8", "--group", "0"]),
    "awq": ("awq", ["--method", "awq", "--group", "32"]),
    "compressed 4 bits": ("compressed-tensors", ROUNDED),
    "compressed 4 bits asymmetric": ("compressed-tensors", [*ROUNDED, *ASYMMETRIC]),
    "compressed 4 bits, qkv in 8": ("compressed-tensors", [*ROUNDED, "--qkv", "int8"]),
    "compressed 4 bits, k and v in 8": ("compressed-tensors", [*ROUNDED, "--qkv", "mixed"]),
    "compressed 4 bits asymmetric, qkv in 8": ("compressed-tensors", [*ROUNDED, "--qkv", "int8", *ASYMMETRIC]),
    "compressed 8 bits": ("compressed-tensors", A8W8),
    "compressed 8 bits asymmetric": ("compressed-tensors", [*A8W8, "--set", "quantize.scales=false", *ASYMMETRIC]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_files_hold_the_weights_of_the_packed_folder(case, made, tmp_path):
    form, words = CASES[case]
    quantize(made, tmp_path / "packed", *words)
    quantize(made, tmp_path / "out", *words, "--format", form)
    modules, tensors, config = weights_of(tmp_path / "out")
    assert config["quant_method"] == form and len(modules) == 7 * 2
    for index, layer in enumerate(open_packed(tmp_path / "packed").layers):
        at = f"model.layers.{index}"
        for linear, names in (
            (layer.qkv, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            (layer.out, ["self_attn.o_proj"]),
            (layer.up[0], ["mlp.gate_proj", "mlp.up_proj"]),
            (layer.down[0], ["mlp.down_proj"]),
        ):
            joined = np.concatenate([modules[f"{at}.{name}"] for name in names], axis=1)
            np.testing.assert_allclose(joined, unpack(linear.weight), rtol=1e-6, atol=1e-9)
        norm = tensors[f"{at}.input_layernorm.weight"]
        assert np.array_equal(norm, layer.norm.weight.astype(np.float16))


def test_the_fused_engine_answers_from_a_folder_as_from_the_packed_one(made, tmp_path):
    answers = []
    for form in ("packed", "gptq", "compressed-tensors"):
        quantize(made, tmp_path / form, *ROUNDED, "--format", form)
        out, _ = llmctl("generate", tmp_path / form, "--prompt", "Tom has", "--max-new-tokens", "8", "--no-stream")
        answers.append(out)
    # The head of a packed folder has 8 bits, those of other layouts are floats.
    assert answers[1] == answers[2]


@pytest.mark.parametrize(("qkv", "kind"), [("int8", "int8"), ("mixed", "int4+int8")])
def test_a_folder_of_several_numbers_of_bits_is_read_as_the_packed_one(qkv, kind, made, tmp_path):
    for form in ("packed", "compressed-tensors"):
        quantize(made, tmp_path / form, *ROUNDED, "--qkv", qkv, "--format", form)
    source = open_model(tmp_path / "compressed-tensors", "auto", EngineOptions())
    groups = json.loads((source.folder / "config.json").read_text())["quantization_config"]["config_groups"]
    named = [target for group in groups.values() for target in group["targets"]]
    assert len(named) == 7 and "Linear" not in named
    layers = (
        open_packed(tmp_path / "packed").layers,
        packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme).layers,
    )
    for wanted, found in zip(*layers, strict=True):
        kinds = [(one.qkv.weight.kind, one.out.weight.kind, one.down[0].weight.kind) for one in (wanted, found)]
        assert kinds == [(kind, "int4", "int4")] * 2
        for one, other in ((wanted.qkv, found.qkv), (wanted.out, found.out), (wanted.up[0], found.up[0])):
            assert np.array_equal(unpack(one.weight), unpack(other.weight))


def test_what_a_format_cannot_hold_is_refused_by_name(made, tmp_path):
    for form, qkv in (("gptq", "int8"), ("awq", "mixed")):
        _, said = quantize(made, tmp_path / "a", "--format", form, "--qkv", qkv, code=2)
        assert f"--format {form} has weights of one number of bits, and --qkv {qkv} asks for another; write --format compressed-tensors or packed" in said  # fmt: skip
    _, said = quantize(made, tmp_path / "a", "--format", "awq", "--method", "ptq-a8w8", code=2)
    assert "--format awq has 4 bits, and ptq-a8w8 gives 8" in said
    odd = float_model(tmp_path / "odd", ffn=172)
    _, said = quantize((odd, made[1]), tmp_path / "a", "--format", "gptq", code=2)
    assert "cannot hold model.layers.0.mlp.gate_proj.weight: 172 outputs are not a multiple of 8" in said
    for ffn, group, remedy in ((172, 64, "--group 0, a scale"), (96, 64, "--group 32, or")):
        odd = float_model(tmp_path / f"ffn-{ffn}", ffn=ffn)
        _, said = quantize((odd, made[1]), tmp_path / "a", "--format", "compressed-tensors", "--group", group, code=2)
        assert f"down_proj.weight: {ffn} inputs are not a multiple of the group, {group}; choose {remedy}" in said
    assert not (tmp_path / "a").exists()


def test_a_fused_projection_is_refused_by_name(made, tmp_path):
    model = float_model(tmp_path / "gpt", "gpt3", {"hidden": 64, "heads": 4, "ffn": 96, "vocab": 600})
    _, said = quantize((model, made[1]), tmp_path / "a", "--format", "gptq", code=2)
    assert "is stored in another way; write --format packed" in said
    model = float_model(tmp_path / "bloom", "bloom", {"hidden": 64, "heads": 4, "vocab": 600})
    words = ("--qkv", "mixed", "--format", "compressed-tensors")
    _, said = quantize((model, made[1]), tmp_path / "a", *words, code=2)
    assert (
        "one number of bits for transformer.h.0.self_attention.query_key_value.weight, which holds queries, keys and values"
        in said
    )


def test_zero_points_of_0_are_written_as_v2():
    codes = np.zeros((32, 32), np.int16)
    zeros = np.full((32, 1), 8, np.float32)
    one = Codes(4, codes, np.ones((32, 1), np.float32), zeros, np.zeros(32, np.int64))
    with pytest.raises(ValueError, match="zero points of 0, which gptq"):
        gptq.write(one, v2=False)
    again = gptq.read(gptq.write(one, v2=True), 4, -1, True, False, "x")
    assert np.array_equal(again.values(), one.values())


def test_scales_that_float16_does_not_hold_are_refused():
    one = Codes(4, np.zeros((32, 32), np.int16), np.full((32, 1), 1e-9, np.float32), np.zeros((32, 1), np.float32), np.zeros(32, np.int64))  # fmt: skip
    with pytest.raises(ValueError, match="scales that float16 does not hold"):
        awq.write(one)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_words_hold_the_values_that_are_packed_into_them(bits, axis):
    values = np.random.default_rng(bits).integers(0, 2**bits, (64, 96))
    assert np.array_equal(unpack_words(pack_words(values, bits, axis), bits, axis), values)


def test_codes_are_kept_in_a_gguf_file(made, tmp_path, monkeypatch):
    """Those of the packed folder of the same seed."""
    import gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ("--method", "gptq", "--group", "32", "--qkv", "mixed")
    quantize(made, tmp_path / "out", *words, "--format", "gguf")
    quantize(made, tmp_path / "packed", *words)
    file = tmp_path / "out" / "model.gguf"
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    packed = open_packed(tmp_path / "packed")
    for index, layer in enumerate(packed.layers):
        down = tensors[f"blk.{index}.ffn_down.weight"]
        values = gguf.dequantize(np.asarray(down.data), down.tensor_type)
        assert down.tensor_type.name == "Q4_0"
        assert [tensors[f"blk.{index}.attn_{name}.weight"].tensor_type.name for name in "qkv"] == [
            "Q4_0",
            "Q8_0",
            "Q8_0",
        ]
        value = tensors[f"blk.{index}.attn_v.weight"]
        values_of_kv = gguf.dequantize(np.asarray(value.data), value.tensor_type)
        np.testing.assert_array_equal(values_of_kv.T, unpack(layer.qkv.weight)[:, -len(values_of_kv) :])
        np.testing.assert_array_equal(values.T, unpack(layer.down[0].weight))
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    prompt = ("--prompt", "the quick", "--raw", "--max-new-tokens", "6", "--kv", "float32")
    assert llmctl("generate", file, *prompt)[0]
    assert f"{file} is quantized already (gguf" in quantize((file, made[1]), tmp_path / "no", *words, code=2)[1]
    out = quantize(made, tmp_path / "no", *words, "--set", "quantize.asymmetric=true", "--format", "gguf", code=2)[1]
    assert "--format gguf keeps codes without zero points" in out


def test_who_cannot_read_zero_points_of_gptq_is_said_before(made, tmp_path):
    words = ("--format", "gptq", "--check")
    refused = "vLLM and SGLang refuse GPTQ folders with zero points"
    assert refused in quantize(made, tmp_path / "out", *words, *ASYMMETRIC)[1]
    assert refused not in quantize(made, tmp_path / "out", *words)[1]


def test_who_cannot_read_several_numbers_of_bits_in_attention_is_said_before(made, tmp_path):
    words = ("--format", "compressed-tensors", "--check", "--group", "32")
    told = "vLLM and SGLang join queries, keys and values, and need one number of bits for them"
    assert told in quantize(made, tmp_path / "out", *words, "--qkv", "mixed")[1]
    assert told not in quantize(made, tmp_path / "out", *words, "--qkv", "int8")[1]
