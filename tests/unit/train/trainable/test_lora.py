"""A run that trains adapters: what is stored, that it continues bit for bit, and that it means the same everywhere."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.cut_runs import Crash, check_continues, finished

import llmctl
from llmctl import plugins
from llmctl.adapters import targets
from llmctl.adapters.attach import load_adapted
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.adapters.verify import verify
from llmctl.checkpoint.build import check_model, load_model
from llmctl.checkpoint.formats import safetensors
from llmctl.config import finetune as config
from llmctl.config import schema
from llmctl.jobs import finetune
from llmctl.quant.blockwise import round_trip
from llmctl.train import trainer
from llmctl.train.trainable import base

STARTER = Path(__file__).resolve().parents[4] / "plugins" / "llama" / "llmctl_llama" / "starter"
METHODS = {
    "plain": {"dropout": 0.1, "lora_plus_ratio": 8.0, "neftune_alpha": 5.0, "targets": ["q_proj", "down_proj"]},
    "dora": {"dora": True, "rslora": True, "rank": 4, "targets": ["self_attn.v_proj"]},
    "pissa": {"pissa": True, "rslora": True, "rank": 4, "alpha": 3.0, "targets": ["q_proj", "v_proj"]},
    "nf4": {"base": "nf4", "rank": 4, "targets": ["q_proj", "up_proj"]},
    "int8-dora": {"base": "int8", "dora": True, "rank": 2, "targets": ["down_proj"]},
    "pissa-dora": {"pissa": True, "dora": True, "rank": 4, "targets": ["o_proj"]},
}


def job(output, method, resume=False, **train):
    settings = {
        "model": {"path": "plugin:starter/model"},
        "method": {"name": "lora", **method},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "src_length": 64, "max_length": 128},
        "train": {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-2,
                  "weight_decay": 0.1, **train},
        "output": {"dir": str(output), "samples": 0, "resume": resume},
    }  # fmt: skip
    return finetune.check(schema.build(config.FinetuneConfig, settings), "llama")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by method, each made once."""
    return finished(tmp_path_factory.mktemp("runs"), job, METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_off_continues_bit_for_bit(runs, tmp_path, name):
    check_continues(runs(name), job, METHODS[name], tmp_path / "cut")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_gives_what_was_trained(runs, tmp_path, name):
    """The model in memory at the end, base with the stored adapter, and the merged folder agree."""
    made = base.load(job(tmp_path / "unused", METHODS[name]), None)
    made.restore(runs(name) / "model")
    stored, opened = load_adapted(runs(name) / "model")
    merge(opened, tmp_path / "merged", "float32")
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 300, (2, 10)))
    with paddle.no_grad():
        for model in (made.model, stored):
            model.eval()
        trained = made.model(ids).numpy()
        np.testing.assert_allclose(stored(ids).numpy(), trained, atol=2e-4)
        merged = load_model(tmp_path / "merged")[0]
        merged.eval()
        np.testing.assert_allclose(merged(ids).numpy(), trained, atol=2e-4)
        plain = load_model(STARTER / "model")[0]
        assert np.abs(plain(ids).numpy() - trained).max() > 0.05
    assert verify(opened, tmp_path / "merged")[0] < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_verifying_finds_what_rounding_does_not_explain(runs, tmp_path, dtype):
    opened = open_adapter(runs("dora") / "model")
    merge(opened, tmp_path / "merged", dtype)
    difference, allowed = verify(opened, tmp_path / "merged")
    assert difference < allowed / 3
    file = tmp_path / "merged" / "model.safetensors"
    info = next(row for name, row in safetensors.read_header(file).items() if "layers.0.mlp.down_proj" in name)
    with open(file, "r+b") as stream:
        stream.seek(info.offset)
        stream.write(bytes(info.nbytes))
    with pytest.raises(llmctl.LlmctlError, match="differs from base model and adapter"):
        verify(opened, tmp_path / "merged")


def test_the_folder_holds_an_adapter_and_a_tokenizer_and_no_model(runs):
    names = {path.name for path in (runs("plain") / "model").iterdir()}
    kept = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "llmctl.json",
        "tokenizer.json",
        "generation_config.json",
    }
    assert kept <= names
    assert not {"config.json", "model.safetensors"} & names
    assert sum(path.stat().st_size for path in (runs("plain") / "model").glob("*.safetensors")) < 500_000


def test_base_tensors_keep_their_bits(runs, tmp_path):
    made = base.load(job(tmp_path / "unused", METHODS["plain"]), None)
    made.restore(runs("plain") / "model")
    plain = {name: value.numpy() for name, value in load_model(STARTER / "model")[0].state_dict().items()}
    state = {name.replace(".base.", "."): value.numpy() for name, value in made.model.state_dict().items()}
    assert all(np.array_equal(state[name], value) for name, value in plain.items())
    assert {name.rpartition(".")[2] for name in state.keys() - plain.keys()} == {"lora_A", "lora_B"}


def test_a_merged_quantised_base_is_dequantised(runs, tmp_path):
    opened = open_adapter(runs("nf4") / "model")
    merge(opened, tmp_path / "merged", "float32")
    plain = load_model(STARTER / "model")[0].state_dict()
    found = load_model(tmp_path / "merged")[0].state_dict()
    for name, value in plain.items():
        path = name.removesuffix(".weight")
        weight = value.numpy()
        if ".layers." in name and weight.ndim == 2:
            weight = round_trip(weight, "nf4")
        if path in opened.adapter.layers:
            part = opened.adapter.layers[path]
            weight = weight + part.scale * part.a @ part.b
        np.testing.assert_allclose(found[name].numpy(), weight, atol=1e-6, err_msg=name)
    assert json.loads((tmp_path / "merged" / "llmctl.json").read_text())["dequantised_from"] == "nf4"


def test_a_quantised_base_takes_a_part_of_the_bytes(runs):
    notes = {name: json.loads((runs(name) / "run.json").read_text()) for name in ("plain", "nf4")}
    linears = sum(t.size for t in targets.linears(*starter()).values())
    saved = (notes["plain"]["weight_bytes"] - 4 * adapted("plain", notes)) - (
        notes["nf4"]["weight_bytes"] - 4 * adapted("nf4", notes)
    )
    assert saved == pytest.approx(linears * (4 - 4.5 / 8), rel=0.05)


def adapted(name, notes):
    return notes[name]["trained_parameters"]


def starter():
    made = plugins.load("llama")
    config = json.loads((STARTER / "model" / "config.json").read_text())
    return made.card, made.card.dims_from_config(config)


def test_pissa_begins_as_its_base(tmp_path):
    made = base.load(job(tmp_path / "unused", METHODS["pissa"]), None)
    plain = load_model(STARTER / "model")[0]
    ids = paddle.to_tensor([[5, 6, 7, 8]])
    with paddle.no_grad():
        made.model.eval(), plain.eval()
        np.testing.assert_allclose(made.model(ids).numpy(), plain(ids).numpy(), atol=1e-4)


def test_the_loaded_folder_is_the_model_with_its_tokenizer(runs):
    model, tokenizer = llmctl.load(runs("plain") / "model")
    assert tokenizer.decode(tokenizer.encode("Tom has a red kite.")) and not model.training
    assert any(name.endswith("lora_A") for name in model.state_dict())


def test_a_moved_base_is_named_and_another_is_refused(runs, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(runs("plain") / "model", adapter)
    for name in ("llmctl.json", "adapter_config.json"):
        text = (adapter / name).read_text().replace(str(STARTER / "model"), str(tmp_path / "gone"))
        (adapter / name).write_text(text)
    with pytest.raises(llmctl.LlmctlError, match="gone of this adapter is missing; give its folder with --base"):
        open_adapter(adapter)
    assert open_adapter(adapter, STARTER / "model").base == STARTER / "model"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_run_is_not_continued_over_other_weights(tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(STARTER / "model", model)

    def made(resume=False):
        one = job(tmp_path / "run", {"name": name}, resume, max_steps=2, save_every=1)
        return replace(one, model=check_model(model))

    with pytest.raises(RuntimeError, match="power cut"):
        trainer.run(made(), [Crash()])
    info = next(
        info for tensor, info in safetensors.read_header(model / "model.safetensors").items() if "q_proj" in tensor
    )
    with open(model / "model.safetensors", "r+b") as stream:
        stream.seek(info.offset)
        stream.write(bytes(info.nbytes))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(llmctl.LlmctlError, match="weights in model.path=.* are not those that the run began with"):
        trainer.run(made(resume=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"config": {"train": 5}}'])
def test_a_run_is_not_continued_without_its_configuration(runs, tmp_path, content):
    shutil.copytree(runs("dora"), tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    if content is not None:
        (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(llmctl.LlmctlError, match="cannot be resumed without the configuration that it began with"):
        trainer.run(job(tmp_path / "run", METHODS["dora"], resume=True, learning_rate=0.1))


def test_columns_of_zeros_have_no_lengths_to_learn(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(STARTER / "model", model)
    tensors = safetensors.read_header(model / "model.safetensors")
    info = next(info for name, info in tensors.items() if "layers.1.self_attn.q_proj" in name)
    with open(model / "model.safetensors", "r+b") as stream:
        stream.seek(info.offset)
        stream.write(bytes(info.nbytes // info.shape[0]))
    one = replace(job(tmp_path / "run", {"dora": True, "targets": ["q_proj"]}), model=check_model(model))
    with pytest.raises(llmctl.LlmctlError, match=r"columns of zeros.* in llama.layers.1.self_attn.q_proj; leave"):
        base.load(one, None)
