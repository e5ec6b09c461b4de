"""LoRA with ``method.modules_to_save``: the gradients of peft, what is stored, continued runs, and ranks as one process."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from kit.cut_runs import check_continues, finished, losses
from safetensors.numpy import load_file

from llmctl.adapters import base_model as bases
from llmctl.adapters import folder as folders
from llmctl.adapters.adapter import Adapter, LoraWeights
from llmctl.adapters.attach import load_adapted
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.adapters.verify import verify
from llmctl.checkpoint.build import check_model, load_model
from llmctl.config import dpo as dpo_config
from llmctl.config import finetune as config
from llmctl.config import schema
from llmctl.errors import ConfigError
from llmctl.jobs import dpo, finetune
from llmctl.jobs.memory_plan import memory_of, training_of
from llmctl.parallel.ranks import ALONE
from llmctl.parallel.topology import Topology
from llmctl.testing.ranks import run_ranks
from llmctl.train import trainer
from llmctl.train.console import Console
from llmctl.train.trainable import base, lora

GOLDENS = Path(__file__).resolve().parents[3] / "goldens" / "adapter_modules"
STARTER = Path(__file__).resolve().parents[4] / "plugins" / "llama" / "llmctl_llama" / "starter"
METHODS = {
    "embedding": {"rank": 4, "targets": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]},
    "dora-nf4": {"rank": 2, "targets": ["down_proj"], "dora": True, "base": "nf4", "modules_to_save": ["lm_head"]},
}


def settings(output, method, resume=False, **more):
    found = {
        "model": {"path": "plugin:starter/model"},
        "method": {"name": "lora", **method},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "src_length": 64, "max_length": 128},
        "train": {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-2, "weight_decay": 0.1},
        "output": {"dir": str(output), "samples": 0, "resume": resume},
        "parallel": {},
    }  # fmt: skip
    return {name: {**values, **more.get(name, {})} for name, values in found.items()}


def job(output, method, resume=False, **more):
    return finetune.check(schema.build(config.FinetuneConfig, settings(output, method, resume, **more)), "llama")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs"), job, METHODS)


@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("llama_modules", {"targets": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
        ("gpt2_tied_modules", {"targets": ["c_fc"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_gradients_are_those_of_peft(case, method, tmp_path):
    golden, model = np.load(GOLDENS / case / "golden.npz"), check_model(GOLDENS / case)
    built = schema.build(config.FinetuneConfig, settings(tmp_path, {"rank": 2, "alpha": 8, **method}))
    made = lora.load(
        SimpleNamespace(config=built, model=model, base=bases.record_of(model), tokenizer=None),
        GOLDENS / case / "adapter",
    )
    made.model.eval()  # no dropout
    ids = paddle.to_tensor(golden["input_ids"])
    logits = made.model(ids[:, :-1])
    paddle.nn.functional.cross_entropy(logits, ids[:, 1:].unsqueeze(-1), reduction="sum").backward()
    grads = {name: each.grad.numpy() for name, each in made.model.named_parameters() if not each.stop_gradient}
    paths = sorted({name.removesuffix(".lora_A") for name in grads if name.endswith(".lora_A")})
    layers = {path: LoraWeights(grads[f"{path}.lora_A"], grads[f"{path}.lora_B"], 1.0) for path in paths}
    whole = {name: value for name, value in grads.items() if "lora_" not in name}
    folders.write(tmp_path, Adapter(layers, tensors=whole), model.plugin, model.dims)
    written = load_file(tmp_path / "adapter_model.safetensors")
    expected = {name.removeprefix("grad/"): golden[name] for name in golden if name.startswith("grad/")}
    assert len(expected) >= 5
    for name, values in expected.items():
        np.testing.assert_allclose(written[name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max(), err_msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_off_continues_bit_for_bit(runs, tmp_path, name):
    check_continues(runs(name), job, METHODS[name], tmp_path / "cut")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_gives_what_was_trained(runs, tmp_path, name):
    made = base.load(job(tmp_path / "unused", METHODS[name]), None)
    made.restore(runs(name) / "model")
    stored, opened = load_adapted(runs(name) / "model")
    assert "llama.embed_tokens.weight" in opened.own
    merge(opened, tmp_path / "merged", "float32")
    assert verify(opened, tmp_path / "merged")[0] < 1e-5
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 300, (2, 10)))
    with paddle.no_grad():
        for model in (made.model, stored):
            model.eval()
        np.testing.assert_allclose(stored(ids).numpy(), made.model(ids).numpy(), atol=2e-4)
    table = load_model(STARTER / "model")[0].state_dict()["llama.embed_tokens.weight"].numpy()
    assert np.abs(made.model.state_dict()["llama.embed_tokens.weight"].numpy() - table).max() > 1e-3
    written = json.loads((runs(name) / "model" / "adapter_config.json").read_text())
    assert {"embed_tokens", "lm_head"} <= set(written["modules_to_save"]) and written["ensure_weight_tying"]


def test_memory_and_parameters_count_the_modules(runs, tmp_path):
    plain, more = ({**METHODS["embedding"], "modules_to_save": names} for names in ([], ["lm_head"]))
    one, other = (training_of(job(tmp_path, method)) for method in (plain, more))
    assert one.trained == other.trained and other.whole == ("llama.embed_tokens.weight",)
    rows = [SimpleNamespace(arrays={"input_ids": np.zeros((2, 64), np.int64)})]
    before, after = (memory_of(job(tmp_path, method), rows)[0] for method in (plain, more))
    table = 757 * 128
    assert after["optimizer"] - before["optimizer"] == 2 * 4 * table
    assert (after["weights"], after["adapters"]) == (before["weights"], before["adapters"])
    trained = [json.loads((runs(name) / "run.json").read_text())["trained_parameters"] for name in METHODS]
    assert trained == [4 * 4 * 256 + table + 128, 4 * (2 * (352 + 128) + 128) + table]


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["embed_token"], "'embed_token' matches no module of llama; did you mean embed_tokens?"),
        (["score"], "'score' matches no module of llama; known: embed_tokens, .*lm_head"),
        (["q_proj"], "'q_proj' are linear layers, which have adapters; name them in method.targets"),
        ([""], "matches no module"),
    ],
)
def test_names_are_checked(tmp_path, names, part):
    with pytest.raises(ConfigError, match=f"method.modules_to_save: {part}" if names[0] else part):
        job(tmp_path, {"modules_to_save": names})
    with pytest.raises(ConfigError, match="method.modules_to_save has no effect with method.name=full"):
        job(tmp_path, {"name": "full", "modules_to_save": ["lm_head"]})


def test_the_reference_of_preference_optimization_is_the_model_before_training(runs, tmp_path):
    preferences = tmp_path / "pairs.jsonl"
    preferences.write_text(json.dumps({"prompt": "Hello.", "chosen": "Yes.", "rejected": "No."}) + "\n")
    given = settings(tmp_path / "out", METHODS["embedding"])
    given["data"] = {"train": str(preferences), "max_length": 128}
    checked = dpo.check(schema.build(dpo_config.DpoConfig, given), "llama")
    made = base.load(checked, None)
    made.restore(runs("embedding") / "model")
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 300, (2, 10)))
    plain = load_model(STARTER / "model")[0]
    with paddle.no_grad(), made.reference()() as reference:
        for model in (reference, plain, made.model):
            model.eval()
        np.testing.assert_array_equal(reference(ids).numpy(), plain(ids).numpy())
        assert np.abs(made.model(ids).numpy() - plain(ids).numpy()).max() > 0.05
    assert training_of(checked).reference


def train(ranks, output, method, parallel, model):
    ranks.barrier()
    checked = job(output, method, train={"batch_size": 1, "grad_accumulation": 2}, model=model, parallel=parallel)
    trainer.run(checked, (), Console(quiet=True), ranks)


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("parallel", "topology", "tied"),
    [
        ({"tensor": 2, "sequence": True}, Topology(tensor=2), True),
        ({"pipeline": 2}, Topology(pipeline=2), True),
        ({"sharding": 2, "sharding_stage": 3}, Topology(sharding=2), True),
        ({"tensor": 2, "sequence": True}, Topology(tensor=2), False),
        ({"sharding": 2, "sharding_stage": 2}, Topology(sharding=2), False),
    ],
)
def test_ranks_train_as_one_process(tmp_path, parallel, topology, tied):
    method, model = METHODS["embedding"], {"dtype": "float64"}
    if not tied:
        method, model = (
            {**method, "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
            {**model, "path": str(untied(tmp_path))},
        )
    train(ALONE, tmp_path / "one", method, {}, model)
    run_ranks(2, train, tmp_path / "two", method, parallel, model, topology=topology)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-9)
    one, two = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def untied(tmp_path):
    """The starter with a head of its own, which begins as its embedding."""
    table = load_model(STARTER / "model")[0].state_dict()["llama.embed_tokens.weight"].numpy()
    lora = LoraWeights(np.zeros((128, 1), "f4"), np.zeros((1, 128), "f4"), 1.0)
    model = check_model(STARTER / "model")
    (tmp_path / "adapter").mkdir()
    adapter = Adapter(
        {"llama.layers.0.self_attn.q_proj": lora}, base=str(STARTER / "model"),
        tensors={"llama.embed_tokens.weight": table, "lm_head.weight": np.ascontiguousarray(0.5 * table.T)},
    )  # fmt: skip
    folders.write(tmp_path / "adapter", adapter, model.plugin, model.dims.replace(tied=False))
    merge(open_adapter(tmp_path / "adapter"), tmp_path / "untied", "float32")
    return tmp_path / "untied"
