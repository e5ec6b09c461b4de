"""Adapters of peft with whole modules or rows of tokens in place of the base's: the logits of peft by every way to run them.

The goldens are made by tools/goldens/make_adapter_golden.py, so that neither torch nor peft is needed here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.families import CASES
from kit.quantized_models import Quantized, gptq

from llmctl import plugins
from llmctl.adapters import folder as folders
from llmctl.adapters import targets
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.adapters.attach import adapted_model, load_adapted, merged_model
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.card.weight_map import WeightMapping
from llmctl.checkpoint import convert
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.formats import safetensors
from llmctl.checkpoint.formats.safetensors import write_file
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.save import plan_tensors
from llmctl.errors import CheckpointError, UnsupportedError
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.executors.reference import ReferenceExecutor
from llmctl.infer.loader import Packing, add_adapters, packed_model
from llmctl.infer.options import EngineOptions
from llmctl.infer.packed.folder import open_packed, save_packed
from llmctl.infer.select import open_backend
from llmctl.quant.linear import QuantizedLinear
from llmctl.testing.tiny import write_model

GOLDENS = Path(__file__).resolve().parents[2] / "goldens" / "adapter_modules"
NAMES = sorted(path.name for path in GOLDENS.iterdir())


@pytest.fixture
def case(tmp_path):
    """A copy of a golden whose files a test may change."""

    def copy(name):
        return shutil.copytree(GOLDENS / name, tmp_path / name) / "adapter"

    return copy


def golden(case):
    arrays = np.load(GOLDENS / case / "golden.npz")
    return arrays["input_ids"], arrays["logits"]


def logits(model, ids):
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(ids)).numpy()


def fused_logits(model, ids, adapter=-1):
    return np.stack(SequenceFeeder(ReferenceExecutor(model), model.graph, [adapter] * len(ids)).feed(*enumerate(ids)))


def edit(adapter, **changes):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_with_the_adapter_has_the_logits_of_peft(name):
    ids, expected = golden(name)
    model, opened = load_adapted(GOLDENS / name / "adapter")
    np.testing.assert_allclose(logits(model, ids), expected, atol=1e-4)
    np.testing.assert_allclose(logits(merged_model(opened), ids), expected, atol=1e-4)
    rows = opened.base_dims.vocab
    plain = logits(load_model(GOLDENS / name)[0], ids % rows)
    assert np.abs(plain - expected[..., :rows]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_model_has_the_logits_of_peft(name, tmp_path):
    ids, expected = golden(name)
    opened = open_adapter(GOLDENS / name / "adapter")
    merge(opened, tmp_path / "merged", "float32")
    merged, dims, _ = load_model(tmp_path / "merged")
    np.testing.assert_allclose(logits(merged, ids), expected, atol=1e-4)
    assert dims == opened.dims
    merge(opened, tmp_path / "kept")
    kept = safetensors.read_header(tmp_path / "kept" / "model.safetensors")
    assert {info.dtype for info in kept.values()} == {"bfloat16"}


@pytest.mark.parametrize("name", NAMES)
def test_packed_weights_with_the_adapter_have_the_logits_of_peft(name, tmp_path):
    ids, expected = golden(name)
    opened = open_adapter(GOLDENS / name / "adapter")
    packed = packed_model(opened.base, opened.plugin, opened.dims, Packing(kind="float32"), opened)
    np.testing.assert_allclose(fused_logits(packed, ids), expected, atol=1e-4)
    save_packed(packed, tmp_path / "packed", opened.base, opened.plugin, adapted=opened)
    np.testing.assert_allclose(fused_logits(open_packed(tmp_path / "packed"), ids), expected, atol=1e-4)
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert opened.plugin.card.dims_from_config(config, "config.json") == opened.dims


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back(name, tmp_path):
    ids, expected = golden(name)
    opened = open_adapter(GOLDENS / name / "adapter")
    folders.write(tmp_path, opened.adapter, opened.plugin, opened.dims)
    model, again = load_adapted(tmp_path, GOLDENS / name)
    assert (sorted(again.own), again.dims) == (sorted(opened.own), opened.dims)
    np.testing.assert_allclose(logits(model, ids), expected, atol=1e-4)
    with pytest.raises(CheckpointError, match="the format of PaddleNLP has no place for"):
        folders.write(tmp_path, opened.adapter, opened.plugin, opened.dims, layout="native")


@pytest.mark.parametrize("name", ["llama_modules", "qwen2_embedding_of_tied"])
def test_a_base_in_the_native_layout_is_changed_in_the_same_way(name, case, tmp_path):
    adapter = case(name)
    rewrite(adapter, **{f"{HEAD}.weight": None, f"{EMBED}.weight": None, f"{HEAD}{ROWS}": np.full((2, 16), 0.25, "f4")})
    edit(adapter, modules_to_save=None, trainable_token_indices={"lm_head": [9, 2]})
    rewrite(adapter, **{"base_model.model.model.norm.weight": None})
    opened = open_adapter(adapter)
    convert.convert(opened.base_source(), tmp_path / "native", "native")
    ids, _ = golden(name)
    expected = logits(load_adapted(adapter)[0], ids)
    found = logits(load_adapted(adapter, tmp_path / "native")[0], ids)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found[..., 9], found[..., 2], atol=1e-6)
    assert np.ptp(found[..., 2:10], axis=-1).min() > 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}{'-tied' if case.dims.get('tied') else ''}")
def test_every_family_takes_embeddings_of_more_tokens_and_an_untied_head(case, tmp_path):
    plugin = plugins.load(case.family)
    (tmp_path / "base").mkdir()
    write_model(tmp_path / "base", plugin, case.dims)
    dims = case.dims.replace(vocab=case.dims.vocab + 3, **({"tied": False} if "tied" in case.dims else {}))
    rng = np.random.default_rng(1)
    whole = {tensor.name: rng.normal(0, 0.3, tensor.shape).astype("f4")
             for tensor in targets.modules_to_save(plugin, dims, ["embed_tokens", "lm_head"])}  # fmt: skip
    path, linear = next(iter(targets.linears(plugin.card, dims).items()))
    lora = LoraWeights(
        *(rng.normal(0, 0.3, shape).astype("f4") for shape in ((linear.shape[0], 2), (2, linear.shape[1]))), 1.0
    )
    (tmp_path / "adapter").mkdir()
    folders.write(tmp_path / "adapter", Adapter({path: lora}, base=str(tmp_path / "base"), tensors=whole), plugin, dims)
    model, opened = load_adapted(tmp_path / "adapter")
    assert opened.dims == dims and sorted(opened.own) == sorted(whole)
    state = model.state_dict()
    for name, values in whole.items():
        np.testing.assert_array_equal(state[name].numpy(), values)
    merge(opened, tmp_path / "merged")
    ids = case.arrays["input_ids"].copy()
    ids[:, -3:] = [case.dims.vocab + new for new in range(3)]
    merged, found, _ = load_model(tmp_path / "merged", case.family)
    assert found.vocab == dims.vocab
    np.testing.assert_allclose(logits(merged, ids), logits(model, ids), rtol=1e-3, atol=2e-4)


def test_an_adapter_over_codes_has_tensors_of_its_own_too(tmp_path):
    Quantized(tmp_path / "base", *gptq(4))
    config = {key: value for key, value in read_config(tmp_path / "base").items() if key != "quantization_config"}
    plugin = plugins.load("llama")
    dims = plugin.card.dims_from_config(config).replace(vocab=66)
    rng, embed, head = np.random.default_rng(0), (66, dims.hidden), (dims.hidden, 66)
    lora = LoraWeights(*(rng.normal(0, 0.1, shape).astype("f4") for shape in ((dims.hidden, 2), (2, dims.hidden))), 1.0)
    whole = {
        "llama.embed_tokens.weight": rng.normal(size=embed).astype("f4"),
        "lm_head.weight": rng.normal(size=head).astype("f4"),
    }
    (tmp_path / "adapter").mkdir()
    adapter = Adapter({"llama.layers.1.self_attn.q_proj": lora}, base=str(tmp_path / "base"), tensors=whole)
    folders.write(tmp_path / "adapter", adapter, plugin, dims)
    opened = open_adapter(tmp_path / "adapter")
    merge(opened, tmp_path / "merged")
    ids = np.array([[1, 64, 65, 3, 9]])
    expected = logits(load_model(tmp_path / "merged")[0], ids)
    model = adapted_model(opened)
    assert any(isinstance(layer, QuantizedLinear) for layer in model.sublayers())
    np.testing.assert_allclose(logits(model, ids), expected, atol=2e-4)
    packed = packed_model(opened.base, plugin, dims, Packing(), opened, scheme=opened.scheme)
    np.testing.assert_allclose(
        fused_logits(packed, ids, adapter=0), expected, rtol=0.02, atol=0.02 * np.abs(expected).max()
    )


def test_one_of_several_adapters_has_no_tensors_of_its_own(case):
    adapter = case("llama_grown_tokens")
    command = rf"merge it.*: llmctl merge {adapter} --base {adapter.parent} --output MERGED"
    with pytest.raises(UnsupportedError, match=command):
        open_backend(adapter.parent, options=EngineOptions(adapter={"mine": adapter}))
    opened = open_adapter(adapter, adapter.parent)
    base = packed_model(opened.base, opened.plugin, opened.base_dims, Packing())
    with pytest.raises(UnsupportedError, match=command):
        add_adapters(base, opened.plugin, opened.base_dims, opened)
    save_packed(base, adapter.parent / "packed", opened.base, opened.plugin)
    with pytest.raises(UnsupportedError, match=rf"merge it.*: llmctl merge {adapter} --output MERGED"):
        open_backend(adapter.parent / "packed", options=EngineOptions(adapter=adapter))


def rewrite(adapter, **changes):
    """Writes the tensors of an adapter again, with some left out (None) or others."""
    tensors = {
        name: info.read() for name, info in safetensors.read_header(adapter / "adapter_model.safetensors").items()
    }
    tensors = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    write_file(
        adapter / "adapter_model.safetensors",
        plan_tensors(tensors, [WeightMapping(name, name) for name in tensors], "float32"),
    )


HEAD, EMBED, ROWS = (
    "base_model.model.lm_head",
    "base_model.model.model.embed_tokens",
    ".token_adapter.trainable_tokens_delta",
)


@pytest.mark.parametrize(
    ("name", "tensors", "config", "message"),
    [
        ("llama_modules", {f"{HEAD}.weight": None}, {}, "modules_to_save names lm_head, of which the file has no tensor"),
        ("llama_modules", {f"{HEAD}.weight": np.ones((65, 16), "f4")}, {}, "vocabulary has 64 rows: .*embed_tokens.weight has 64"),
        ("llama_modules", {f"{HEAD}.weight": np.ones((64, 8), "f4")}, {}, r"lm_head.weight is \[64, 8\], expected \[64, 16\]"),
        ("llama_modules", {"base_model.model.model.layers.0.input_layernorm.weight": np.ones(16, "f4")}, {}, "unexpected: .*input_layernorm"),
        (
            "llama_grown_modules",
            {f"{EMBED}{end}.weight": None for end in ("", ".modules_to_save", ".original_module")},
            {"modules_to_save": ["lm_head"]},
            "lm_head.weight has 67, and llama.embed_tokens.weight of as many is missing",
        ),
        ("llama_grown_tokens", {}, {"trainable_token_indices": [64, 65, 66]}, "names 3 tokens of it"),
        ("llama_grown_tokens", {}, {"trainable_token_indices": [64, 65, 66, 67]}, "token 67 of .* is not among the 67"),
        ("qwen2_embedding_of_tied", {}, {"modules_to_save": ["embed_tokens", "score"]}, "modules_to_save names score"),
        (
            "gpt2_tied_modules",
            {"base_model.model.transformer.wte.token_adapter.trainable_tokens_delta": np.ones((1, 16), "f4")},
            {"trainable_token_indices": [4]},
            "on an embedding that is also the head are not supported",
        ),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together_are_refused(case, name, tensors, config, message):
    adapter = case(name)
    rewrite(adapter, **tensors)
    edit(adapter, **config)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(adapter)
