"""GGUF files as models: values, codes and configuration against the package ``gguf``; damage; files that are written."""

import json

import gguf
import numpy as np
import pytest
from kit.gguf_models import WIDE, Model, mixed

from llmctl.checkpoint.convert import open_source
from llmctl.checkpoint.formats import gguf as files
from llmctl.checkpoint.gguf.folder import as_folder
from llmctl.checkpoint.gguf.metadata import metadata_of
from llmctl.checkpoint.gguf.write import write_model
from llmctl.checkpoint.locate import locate
from llmctl.errors import CheckpointError, FileError, UnsupportedError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.folder import WEIGHTS, save_packed
from llmctl.infer.packed.linear import unpack
from llmctl.infer.packed.pack import pack_model
from llmctl.infer.select import open_backend
from llmctl.quant.formats.gguf_blocks import TYPES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


FAMILIES = [("llama", "llama", True), ("qwen2", "qwen2", False), ("qwen3", "qwen3", False), ("mixtral", "llama", True)]


def values_of(folder, model):
    state = open_source(folder, model.plugin, model.dims).state
    found = {}
    for tensor in model.plugin.card.expand(model.dims):
        value = state[tensor.name].numpy()
        found[tensor.torch_name] = value.T if tensor.transpose else value
    return found


@pytest.mark.parametrize(("family", "architecture", "neighbours"), FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_files_are_folders_with_the_same_configuration_and_values(tmp_path, family, architecture, neighbours, kind):
    model = Model(family)
    folder = locate(model.gguf(tmp_path / "a model.gguf", architecture, kind, neighbours))
    config = json.loads((folder / "config.json").read_text())
    assert model.plugin.card.dims_from_config(config).replace(init_std=None) == model.dims.replace(init_std=None)
    assert folder.name.startswith("a model-") and folder == locate(tmp_path / "a model.gguf")
    for name, value in values_of(folder, model).items():
        wanted = model.values[name]
        wanted = (
            wanted.astype("f2")
            if kind == "F16" and wanted.ndim > 1 and "gate.weight" not in name.replace("proj", "")
            else wanted
        )
        np.testing.assert_array_equal(value.astype("f4"), wanted.astype("f4"), err_msg=name)


def test_bfloat16_and_a_tied_head_are_read(tmp_path):
    model = Model("llama", tied=True)
    folder = locate(model.gguf(tmp_path / "m.gguf", "llama", "BF16", True))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    for name, value in values_of(folder, model).items():
        bits = value.astype(np.uint32) << 16 if value.dtype == np.uint16 else value.view(np.uint32)
        np.testing.assert_allclose(bits.view("f4"), model.values[name], rtol=2**-8)


CODED = [kind.name for kind in TYPES.values() if kind.decode is not None]


@pytest.mark.parametrize("kind", CODED)
def test_codes_are_packed_as_they_are_or_with_8_bits(tmp_path, kind):
    """Types with groups of 16 are rounded to groups of 32; all others keep their values."""
    model = Model("llama", **WIDE)
    path = model.gguf(tmp_path / "m.gguf", "llama", kind, True)
    source = open_model(path, "auto", EngineOptions())
    assert source.scheme.method == "gguf"
    state = open_source(source.folder, source.plugin, source.dims).state
    stored = {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    of = gguf.GGMLQuantizationType[kind]
    packed = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    rounded = kind in ("Q2_K", "Q3_K", "Q6_K")
    for index, layer in enumerate(packed.layers):
        at = f"llama.layers.{index}."
        down = gguf.dequantize(stored[f"blk.{index}.ffn_down.weight"], of)
        np.testing.assert_array_equal(state[at + "mlp.down_proj.weight"].numpy(), down.T)
        qkv = np.concatenate([state[f"{at}self_attn.{part}_proj.weight"].numpy() for part in "qkv"], axis=1)
        for linear, wanted in ((layer.down[0], down.T), (layer.qkv, qkv)):
            assert (
                linear.weight.kind == ("int4" if kind in ("Q4_0", "Q4_1", "Q4_K") else "int8")
                and linear.weight.group == 32
            )
            size = np.abs(wanted).max()
            np.testing.assert_allclose(unpack(linear.weight), wanted, rtol=0, atol=size * (0.005 if rounded else 3e-7))
    table = gguf.dequantize(stored["token_embd.weight"], of)
    found = packed.token_vectors(np.arange(model.dims.vocab))
    np.testing.assert_allclose(found, table, rtol=0, atol=np.abs(table).max() * (0.005 if rounded else 3e-7))


def test_projections_of_different_types_keep_them(tmp_path):
    """As in files of llama.cpp, whose values have more bits than queries and keys."""
    model = Model("llama")
    path = model.gguf(tmp_path / "m.gguf", "llama", "Q4_0", True)
    source = open_model(path, "auto", EngineOptions())
    exact = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    assert exact.layers[0].qkv.weight.kind == "int4"
    wide = model.gguf(tmp_path / "wide.gguf", "llama", "Q8_0", True)
    source = open_model(mixed(tmp_path / "mixed.gguf", path, wide, "attn_v"), "auto", EngineOptions())
    packed = packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)
    assert packed.layers[0].qkv.weight.kind == "int4+int8" and packed.layers[0].out.weight.kind == "int4"
    queries = unpack(packed.layers[0].qkv.weight)[:, :64]
    np.testing.assert_array_equal(queries, unpack(exact.layers[0].qkv.weight)[:, :64])


def test_answers_end_with_the_end_of_a_turn_too(tmp_path):
    facts = [
        (f"tokenizer.ggml.{name}_token_id", (token, gguf.GGUFValueType.UINT32))
        for name, token in (("eos", 2), ("eot", 7))
    ]
    for count, ends in ((1, 2), (2, [2, 7])):
        path = Model("llama").gguf(tmp_path / f"{count}.gguf", "llama", "F32", True, facts=facts[:count])
        assert json.loads((locate(path) / "config.json").read_text())["eos_token_id"] == ends


def test_settings_of_yarn_are_read_and_written(tmp_path):
    """By the keys that llama.cpp's conversion writes."""
    own = {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 24.0, "yarn_beta_slow": 2.0, "yarn_attn_factor": 1.25}  # fmt: skip
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    facts = [(f"qwen2.rope.scaling.{key}", (value, kinds[type(value)])) for key, value in own.items()]
    path = Model("qwen2").gguf(tmp_path / "m.gguf", "qwen2", facts=facts)
    scaling = json.loads((locate(path) / "config.json").read_text())["rope_scaling"]
    assert scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.25}  # fmt: skip
    written = metadata_of(Model("qwen2").plugin.card, Model("qwen2", rope_scaling=scaling).dims)
    assert {key.rpartition(".")[2]: value for key, value in written.items() if ".scaling." in key} == own
    with pytest.raises(UnsupportedError, match="RoPE scaling with mscale is not written as GGUF"):
        metadata_of(Model("qwen2").plugin.card, Model("qwen2", rope_scaling={**scaling, "mscale": 2.0}).dims)
    kept = ("qwen2.rope.scaling.yarn_ext_factor", (0.5, gguf.GGUFValueType.FLOAT32))
    with pytest.raises(UnsupportedError, match="yarn_ext_factor=0.5 is not read"):
        locate(Model("qwen2").gguf(tmp_path / "other.gguf", "qwen2", facts=[*facts, kept]))


def test_frequencies_by_wavelength_are_recognised(tmp_path):
    model = Model("llama", rope_theta=500000.0)
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = ((8192 / wavelength - 1) / 3).clip(0, 1)
    divisors = (1 / ((1 - smooth) / 32 + smooth)).astype("f4")
    path = model.gguf(
        tmp_path / "m.gguf", "llama", "F32", True, lambda tensors: tensors.update({"rope_freqs.weight": divisors})
    )
    scaling = json.loads((locate(path) / "config.json").read_text())["rope_scaling"]
    assert scaling["rope_type"] == "llama3" and scaling["factor"] == 32
    odd = model.gguf(
        tmp_path / "odd.gguf", "llama", "F32", True, lambda tensors: tensors.update({"rope_freqs.weight": divisors**2})
    )
    with pytest.raises(UnsupportedError, match="rope_freqs.weight are of a RoPE scaling that is not read"):
        locate(odd)


@pytest.mark.parametrize(
    ("change", "facts", "message"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), (), "has no tensor blk.1.ffn_up.weight"),
        (lambda t: t.update({"blk.0.extra.weight": np.zeros(4, "f4")}), (), "does not have, such as blk.0.extra.weight"),
        (lambda t: t.update({"blk.0.attn_v.weight": np.zeros((32, 96), "f4")}), (), r"attn_v.weight is \[32, 96\], its metadata asks"),
        (lambda t: t.pop("token_embd.weight"), (), "has no tensor token_embd.weight"),
        (None, (("llama.attn_logit_softcapping", (30.0, gguf.GGUFValueType.FLOAT32)),), "softcapping=30.0 is not read"),
        (None, (("llama.rope.scaling.type", ("longrope", gguf.GGUFValueType.STRING)), ("llama.rope.scaling.factor", (2.0, gguf.GGUFValueType.FLOAT32))), "type='longrope' is not read"),
        (None, (("general.type", ("adapter", gguf.GGUFValueType.STRING)),), "holds no model: its general.type is 'adapter'"),
        (None, (("split.count", (3, gguf.GGUFValueType.UINT16)),), "is part 1 of 3 of a model, and its name does not tell"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, change, facts, message):
    path = Model("llama").gguf(tmp_path / "m.gguf", "llama", "F32", True, change, facts)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        as_folder(path)


def test_quantizations_that_are_not_read_are_named_with_what_to_do(tmp_path):
    path = Model("llama", **WIDE).gguf(tmp_path / "m.gguf", "llama", "IQ3_S", True)
    with pytest.raises(
        CheckpointError, match="is of type IQ3_S, which is not read; read are F32, .*MXFP4. Take the model in"
    ):
        as_folder(path)


def test_architectures_of_no_family_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="architecture 'gemma', and no installed family reads it"):
        as_folder(Model("llama").gguf(tmp_path / "m.gguf", "gemma"))


def test_a_cut_file_is_truncated_wherever_it_ends(tmp_path):
    path = Model("llama").gguf(tmp_path / "m.gguf", "llama", "Q8_0", True)
    whole = path.read_bytes()
    for size in [0, 3, 4, 8, 20, 24, *range(30, 3000, 97), len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated|no GGUF file"):
            files.read(tmp_path / "cut.gguf")
    for at, new, message in (
        (0, b"XXXX", "is no GGUF file"),
        (4, b"\x01\0\0\0", "of version 1"),
        (4, b"\0\0\0\x03", "big-endian"),
    ):
        (tmp_path / "odd.gguf").write_bytes(whole[:at] + new + whole[at + len(new) :])
        with pytest.raises(CheckpointError, match=message):
            files.read(tmp_path / "odd.gguf")


def test_damaged_headers_end_in_a_message(tmp_path):
    path = Model("llama").gguf(tmp_path / "m.gguf", "llama", "Q8_0", True)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    end = min(tensor.offset for tensor in files.read(path).tensors.values())
    for _ in range(60):
        damaged = bytearray(whole[: end + 64])
        for at in random.integers(8, end, 3):
            damaged[at] = random.integers(0, 256)
        (tmp_path / "d.gguf").write_bytes(bytes(damaged) + bytes(len(whole) - len(damaged)))
        try:
            as_folder(tmp_path / "d.gguf")
        except (CheckpointError, UnsupportedError):
            continue
        except Exception as error:
            assert type(error).__name__ == "ConfigError", repr(error)


@pytest.mark.parametrize(("family", "architecture", "neighbours"), FAMILIES)
@pytest.mark.parametrize("dtype", ["keep", "float16", "q8_0", "q4_0"])
def test_written_files_hold_what_the_package_reads(tmp_path, monkeypatch, family, architecture, neighbours, dtype):
    monkeypatch.setattr(
        "llmctl.checkpoint.gguf.vocabulary.metadata_of", lambda *arguments: {"tokenizer.ggml.model": "no_vocab"}
    )
    model = Model(family)
    folder = model.folder(tmp_path / "hf")
    state = open_source(folder, model.plugin, model.dims).state
    kind = write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state, dtype)
    assert kind == {"keep": "F32", "float16": "F16"}.get(dtype, dtype.upper())
    reader, wanted = gguf.GGUFReader(tmp_path / "m.gguf"), model.tensors(neighbours)
    assert reader.fields["general.architecture"].contents() == architecture
    assert {tensor.name for tensor in reader.tensors} == set(wanted)
    for tensor in reader.tensors:
        value, of = wanted[tensor.name], tensor.tensor_type
        found = gguf.dequantize(np.asarray(tensor.data), of).reshape(value.shape)
        if value.ndim == 1 or "gate_inp" in tensor.name or dtype == "keep":
            np.testing.assert_array_equal(found, value)
            continue
        outside = tensor.name in ("token_embd.weight", "output.weight") and dtype.startswith("q4")
        assert of.name == ("Q8_0" if outside else kind), tensor.name
        np.testing.assert_array_equal(found, gguf.dequantize(gguf.quantize(value, of), of), err_msg=tensor.name)
    again = as_folder(tmp_path / "m.gguf")
    config = json.loads((again / "config.json").read_text())
    assert model.plugin.card.dims_from_config(config).replace(init_std=None) == model.dims.replace(init_std=None)
    with pytest.raises(FileError, match="already exists"):
        write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state, dtype)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("llmctl.checkpoint.gguf.vocabulary.metadata_of", lambda *arguments: {})
    model = Model("llama", ffn=172)
    folder = model.folder(tmp_path / "hf")
    state = open_source(folder, model.plugin, model.dims).state
    with pytest.raises(
        UnsupportedError, match="down_proj.weight has 172 inputs, and Q4_0 holds rows of a multiple of 32"
    ):
        write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state, "q4_0")
    assert not (tmp_path / "m.gguf").exists()


def test_a_full_disk_is_told_with_the_name_that_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr("llmctl.checkpoint.gguf.vocabulary.metadata_of", lambda *arguments: {})
    model, write = Model("llama"), files.write
    folder = model.folder(tmp_path / "hf")
    state = open_source(folder, model.plugin, model.dims).state
    monkeypatch.setattr(files, "write", lambda path, *rest: write("/dev/full", *rest))
    with pytest.raises(FileError, match=f"disk full while writing {tmp_path / 'm.gguf'}; nothing was written"):
        write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state, "float16")


@pytest.mark.assets
@pytest.mark.parametrize("name", ["model3_Q4_0", "model3_Q4_K"])
def test_files_of_other_tools_have_the_values_beside_them(assets, name):
    path = assets.parent / "quant" / "fixtures" / f"{name}.gguf"
    source = open_model(path, "auto", EngineOptions())
    state = open_source(source.folder, source.plugin, source.dims).state
    with np.load(f"{path}.truth.npz") as truth:
        for linear in truth.files:
            name = linear.replace("model.layers", "llama.layers", 1) + ".weight"
            np.testing.assert_array_equal(state[name].numpy(), truth[linear], err_msg=linear)
    # Their vocabularies have no unknown token, for which llama.cpp takes the first.
    assert open_backend(path).tokenizer().encode("Once", add_special=False)[-1] == 0


def test_a_packed_folder_is_about_as_large_as_a_file_of_the_same_bits(tmp_path, monkeypatch):
    """With a tied table of 8 bits in both, which is most of the model here."""
    monkeypatch.setattr("llmctl.checkpoint.gguf.vocabulary.metadata_of", lambda *arguments: {})
    model = Model("llama", tied=True, hidden=256, heads=4, kv_heads=4, head_dim=64, ffn=512, vocab=2048)
    folder = model.folder(tmp_path / "hf")
    state = open_source(folder, model.plugin, model.dims).state
    write_model(tmp_path / "m.gguf", folder, model.plugin.card, model.dims, state, "q4_0")
    save_packed(pack_model(folder, model.plugin, model.dims, "int4", 32), tmp_path / "packed", folder, model.plugin)
    assert (tmp_path / "packed" / WEIGHTS).stat().st_size <= 1.05 * (tmp_path / "m.gguf").stat().st_size
