"""Folders that PaddleNLP quantized to 8 bits: weights are code / 127 of the largest magnitude of their output."""

import json

import numpy as np
import pytest
from kit.model_cli import llmctl
from kit.quantized_models import check

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import check_model
from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.errors import LlmctlError
from llmctl.infer.loader import Packing, packed_model
from llmctl.infer.model_source import open_model
from llmctl.infer.options import EngineOptions

DIMS = {"kv_heads": 2, "hidden": 64, "heads": 4, "head_dim": 16, "ffn": 96, "vocab": 64, "layers": 1}
Q = "llama.layers.0.self_attn.q_proj"


class Saved:
    """A folder as ``PTQ.convert`` and ``save_model`` leave it, and its weights [in, out] by their names in torch."""

    def __init__(self, folder, dtype="float16"):
        plugin = plugins.load("llama")
        dims = tiny_dims(plugin.card, DIMS)
        self.folder, self.weights, self.tensors = folder, {}, {}
        self.scales, self.inputs = {}, {}
        rng = np.random.default_rng(3)
        folder.mkdir()
        config = {**plugin.card.config_from_dims(dims), "paddlenlp_version": "2.8.0"}
        (folder / "config.json").write_text(json.dumps(config))
        for tensor in plugin.card.expand(dims):
            values = rng.normal(size=tensor.shape).astype("f4")
            if "proj" in tensor.name:
                linear = tensor.name.removesuffix(".weight")
                most = np.abs(values).max(0)
                codes = np.rint(values / most * 127)
                self.weights[tensor.torch_name] = (codes * (most / np.float32(127))).astype("f4")
                self.scales[f"{linear}.weight_quanter"] = most.tolist()
                self.inputs[f"{linear}.activation_quanter"] = float(rng.uniform(1, 9))
                values = codes.astype(dtype)
            self.tensors[tensor.name] = values
        self.write()

    def write(self):
        planned = {name: PlannedTensor(x.shape, str(x.dtype), x.tofile) for name, x in self.tensors.items()}
        write_file(self.folder / "model.safetensors", planned, None, "np")
        for name, content in (("weight_scales", self.scales), ("act_scales", self.inputs)):
            (self.folder / f"{name}.json").write_text(json.dumps(content))

    def model(self):
        source = open_model(self.folder, "auto", EngineOptions())
        return packed_model(source.folder, source.plugin, source.dims, Packing(), scheme=source.scheme)


@pytest.fixture
def saved(tmp_path):
    return Saved(tmp_path / "m")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_the_engine_has_the_weights_that_the_codes_stand_for(dtype, tmp_path):
    saved = Saved(tmp_path / "m", dtype)
    assert check(saved.model(), saved.weights) == {"int8"}


def test_scales_of_inputs_may_be_absent(saved):
    for content in ("{}", None):
        (saved.folder / "act_scales.json").unlink() if content is None else (
            saved.folder / "act_scales.json"
        ).write_text(content)
        assert check(saved.model(), saved.weights) == {"int8"}


def test_a_linear_that_was_left_out_stays_in_floats(saved):
    name = f"{Q}.weight"
    saved.tensors[name] = np.random.default_rng(0).normal(size=(64, 64)).astype("f4")
    del saved.scales[f"{Q}.weight_quanter"], saved.inputs[f"{Q}.activation_quanter"]
    saved.write()
    saved.weights["model.layers.0.self_attn.q_proj.weight"] = saved.tensors[name]
    assert check(saved.model(), saved.weights) == {"int8", "float32"}


def test_converting_writes_the_floats_and_no_scales(saved, tmp_path):
    llmctl("convert", saved.folder, tmp_path / "hf", "--to", "hf")
    stored = open_folder(tmp_path / "hf").tensors
    for name, weight in saved.weights.items():
        np.testing.assert_array_equal(stored[name].read(), weight.T)
    assert not list((tmp_path / "hf").glob("*scales*"))
    assert check_model(tmp_path / "hf").plugin.card.name == "llama"


def _put(content, key, value):
    content[key] = value


MISTAKES = {
    "missing": (lambda s: s.scales.pop(f"{Q}.weight_quanter"),
                rf"weight_scales.json has no {Q}.weight_quanter, and {Q}.weight consists of codes"),
    "few": (lambda s: _put(s.scales, f"{Q}.weight_quanter", [1.0] * 63),
            rf"{Q}.weight_quanter must be 64 numbers of 0 or more, one for each output of {Q}, not 63"),
    "negative": (lambda s: _put(s.scales, f"{Q}.weight_quanter", [-1.0] * 64), f"{Q}.weight_quanter must be 64 numbers"),
    "not finite": (lambda s: _put(s.scales, f"{Q}.weight_quanter", [float("inf")] * 64), f"{Q}.weight_quanter must be"),
    "text": (lambda s: _put(s.scales, f"{Q}.weight_quanter", "1.0"), "64 numbers of 0 or more.* not something else"),
    "of nothing": (lambda s: _put(s.scales, "llama.layers.7.x.weight_quanter", [1.0]), "llama.layers.7.x.weight_quanter belongs to no"),
    "input missing": (lambda s: s.inputs.pop(f"{Q}.activation_quanter"), f"act_scales.json has no {Q}.activation_quanter"),
    "input wrong": (lambda s: _put(s.inputs, f"{Q}.activation_quanter", 0.0), "activation_quanter must be a number above 0, not 0.0"),
    "input of nothing": (lambda s: _put(s.inputs, "llama.x.activation_quanter", 1.0), "llama.x.activation_quanter belongs to no linear"),
    "no codes": (lambda s: _put(s.tensors, f"{Q}.weight", s.tensors[f"{Q}.weight"] / np.float16(127)), f"{Q} has a scale in weight_scales"),
    "beyond": (lambda s: _put(s.tensors, f"{Q}.weight", s.tensors[f"{Q}.weight"] * np.float16(2)), "not codes of -128 to 127"),
    "4 bits": (lambda s: _put(s.tensors, f"{Q}.weight", np.rint(s.tensors[f"{Q}.weight"] / 20)), f"the codes of {Q} are -6 to 6, of 4 bits"),
    "shift": (lambda s: _put(s.tensors, "llama.layers.0.input_layernorm.bias", np.ones(64, "f4")), "input_layernorm.bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_is_named(name, saved):
    change, message = MISTAKES[name]
    change(saved)
    saved.write()
    with pytest.raises(LlmctlError, match=message):
        saved.model()


def test_scales_of_single_ranks_and_training_are_refused(saved):
    with pytest.raises(LlmctlError, match=r"holds codes with scales .weight_scales.json., .* llmctl convert"):
        check_model(saved.folder)
    (saved.folder / "weight_scales.json").rename(saved.folder / "weight_scales_0.json")
    with pytest.raises(LlmctlError, match="has the scales of single ranks"):
        saved.model()
