"""Training over FP8: the run of a float twin by any method, and a QLoRA adapter that is merged when packing."""

import json
import shutil

import numpy as np
import pytest
from kit.cut_runs import finished, losses
from kit.model_cli import ASK, STARTER, llmctl
from kit.quantized_models import E4M3

from llmctl.checkpoint.folder import open_folder
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file
from llmctl.config import finetune as config
from llmctl.config import schema
from llmctl.errors import ConfigError
from llmctl.infer.packed.folder import open_packed
from llmctl.jobs import finetune

LORA = {"name": "lora", "rank": 4, "targets": ["q_proj", "down_proj"]}
DATA = STARTER.parent / "data" / "dev.jsonl"
SIZE = 32


def eight(weight):
    """The tensors of a weight in blocks: the nearest float of 8 bits to each part of the largest."""
    outputs, inputs = weight.shape
    whole = np.zeros((-(-outputs // SIZE) * SIZE, -(-inputs // SIZE) * SIZE), np.float32)
    whole[:outputs, :inputs] = weight
    blocks = whole.reshape(whole.shape[0] // SIZE, SIZE, -1, SIZE)
    scales = np.abs(blocks).max((1, 3)) / np.float32(448)
    parts = (blocks / scales[:, None, :, None]).reshape(whole.shape)[:outputs, :inputs]
    positive = E4M3[:127]
    nearest = np.searchsorted((positive[1:] + positive[:-1]) / 2, np.abs(parts))
    return (nearest + 128 * (parts < 0)).astype("u1"), scales


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The starter as FP8, and the floats that it stands for."""
    folder = tmp_path_factory.mktemp("bases")
    shutil.copytree(STARTER, folder / "fp8")
    stored = open_folder(STARTER)
    planned = {}
    for name in stored.tensors:
        values = stored.read(name)
        if "proj" in name:
            codes, scales = eight(values)
            planned[name] = PlannedTensor(codes.shape, "float8_e4m3fn", codes.tofile)
            planned[f"{name}_scale_inv"] = PlannedTensor(scales.shape, "float32", scales.tofile)
        else:
            planned[name] = PlannedTensor(values.shape, "float32", values.tofile)
    write_file(folder / "fp8" / "model.safetensors", planned)
    content = json.loads((folder / "fp8" / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [SIZE, SIZE]}
    (folder / "fp8" / "config.json").write_text(json.dumps(content))
    llmctl("convert", folder / "fp8", folder / "floats", "--to", "hf")
    return folder


def job_on(base):
    def job(output, method, resume=False):
        settings = {
            "model": {"path": str(base)},
            "method": method,
            "data": {"train": str(DATA), "src_length": 64, "max_length": 128},
            "train": {"max_steps": 2, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-2},
            "output": {"dir": str(output), "samples": 0, "resume": resume},
            "parallel": {},
        }
        return finetune.check(schema.build(config.FinetuneConfig, settings))

    return job


def test_a_run_by_any_method_is_that_over_the_floats(bases, tmp_path):
    methods = {"full": {"name": "full"}, "qlora": {**LORA, "base": "nf4"}}
    runs, twins = (finished(tmp_path / name, job_on(bases / name), methods) for name in ("fp8", "floats"))
    for name in methods:
        np.testing.assert_allclose(losses(runs(name)), losses(twins(name)), rtol=1e-5)
    model = runs("full") / "model"
    assert "quantization_config" not in json.loads((model / "config.json").read_text())
    adapter = runs("qlora") / "model"
    llmctl("merge", adapter, "--output", tmp_path / "merged")
    llmctl("export", adapter, "--engine", "fused", "--output", tmp_path / "packed")
    assert open_packed(tmp_path / "packed").layers[0].out.weight.kind == "float32"
    assert llmctl("generate", tmp_path / "packed", *ASK)[0] == llmctl("generate", tmp_path / "merged", *ASK)[0]


def test_new_tokens_need_the_float_model(bases, tmp_path):
    settings = {"model": {"path": str(bases / "fp8"), "add_tokens": ["<x>"]}, "method": {"name": "full"}, "data": {"train": str(DATA)},
                "output": {"dir": str(tmp_path / "out")}}  # fmt: skip
    with pytest.raises(
        ConfigError, match="write the model anew, and .*fp8 has fp8 floats of 8 bits; leave them out, or make its float"
    ):
        finetune.check(schema.build(config.FinetuneConfig, settings))


def test_quantizing_takes_the_floats(bases, tmp_path):
    words = ("--method", "weight-only-int4", "--group", "32", "--format", "gptq")
    for name in ("fp8", "floats"):
        llmctl("quantize", bases / name, *words, "--output", tmp_path / name)
    contents = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("fp8", "floats")]
    assert contents[0] == contents[1] and contents[0]["quantization_config"]["quant_method"] == "gptq"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fp8", "floats")]
    assert weights[0] == weights[1]
