"""A run that trains virtual tokens: what is stored, that it continues bit for bit, and that it means the same everywhere."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.cut_runs import check_continues, finished
from kit.tiny_tokenizers import write_json

import llmctl
from llmctl import plugins
from llmctl.adapters.attach import add_prefix, load_adapted
from llmctl.adapters.folder import open_adapter
from llmctl.adapters.merge import merge
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import load_model
from llmctl.checkpoint.formats import safetensors
from llmctl.config import finetune, schema
from llmctl.config.dpo import DpoConfig
from llmctl.errors import CheckpointError, ConfigError, UnsupportedError
from llmctl.jobs import dpo
from llmctl.jobs import finetune as preflight
from llmctl.testing.tiny import write_model
from llmctl.train.trainable import base as subject

STARTER = Path(__file__).resolve().parents[4] / "plugins" / "llama" / "llmctl_llama" / "starter"
METHODS = {"plain": {}, "projected": {"prefix_projection": True, "projection_hidden": 24}}


def job(output, method, resume=False, **changes):
    settings = {
        "model": {"path": "plugin:starter/model"},
        "method": {"name": "prefix", "virtual_tokens": 6, **method},
        "data": {"train": str(STARTER / "data" / "dev.jsonl"), "src_length": 64, "max_length": 128,
                 "packing": "best-fit", **changes.pop("data", {})},
        "train": {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 1, "learning_rate": 1e-2,
                  "weight_decay": 0.1, **changes},
        "output": {"dir": str(output), "samples": 0, "resume": resume},
    }  # fmt: skip
    return preflight.check(schema.build(finetune.FinetuneConfig, settings), "llama")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by method, each made once."""
    return finished(tmp_path_factory.mktemp("runs"), job, METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_off_continues_bit_for_bit(runs, tmp_path, name):
    check_continues(runs(name), job, METHODS[name], tmp_path / "cut")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_gives_what_was_trained_and_nothing_else(runs, tmp_path, name):
    checkpoint = runs(name) / "checkpoints" / "step-000004"
    made = subject.load(job(tmp_path / "unused", METHODS[name]), None)
    made.restore(checkpoint)
    stored, opened = load_adapted(runs(name) / "model")
    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 300, (2, 10)))
    plain = load_model(STARTER / "model")[0]
    with paddle.no_grad():
        for model in (made.model, stored, plain):
            model.eval()
        trained = made.model(ids).numpy()
        np.testing.assert_allclose(stored(ids).numpy(), trained, atol=1e-5)
        assert np.abs(plain(ids).numpy() - trained).max() > 0.05
    base = {name: value.numpy() for name, value in plain.state_dict().items()}
    state = {name: value.numpy() for name, value in made.model.state_dict().items() if not name.startswith("prefix.")}
    assert state.keys() == base.keys() and all(np.array_equal(state[name], value) for name, value in base.items())
    tensors = safetensors.read_header(runs(name) / "model" / "adapter_model.safetensors")
    _, dims, _ = load_model(STARTER / "model")
    assert {name: info.shape for name, info in tensors.items()} == {
        "prompt_embeddings": (6, dims.layers * 2 * dims.kv_heads * dims.head_dim)
    }
    names = {path.name for path in (runs(name) / "model").iterdir()}
    assert {"adapter_config.json", "llmctl.json", "tokenizer.json"} <= names
    assert not {"config.json", "model.safetensors", "projection.safetensors"} & names
    assert (checkpoint / "projection.safetensors").exists() == (name == "projected")
    assert opened.base == (STARTER / "model").resolve()


@pytest.mark.parametrize("what", ["full", "attention"])
@pytest.mark.parametrize("projection", [0, 5])
def test_recomputed_layers_give_virtual_tokens_the_same_gradients(what, projection):
    from llmctl.nn.loss import token_loss
    from llmctl.train import activation_checkpointing

    ids = paddle.to_tensor(np.random.default_rng(0).integers(3, 300, (2, 10)))
    gradients = []
    for how in ("none", what):
        model, dims, plugin = load_model(STARTER / "model", dtype="float64")
        paddle.seed(1)
        prefix = add_prefix(model, (dims.layers, 2, 4, dims.kv_heads, dims.head_dim), projection)
        activation_checkpointing.apply(model, plugin.card, dims, how, 1)
        model.train()
        hidden = model.hidden_states(ids)[:, :-1].reshape([-1, dims.hidden])
        token_loss(model.logits(hidden), ids[:, 1:].reshape([-1])).backward()
        gradients.append({name: parameter.grad.numpy() for name, parameter in prefix.named_parameters()})
        assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("prefix."))
    assert all(np.abs(value).max() > 0 for value in gradients[0].values())
    for name, value in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_the_loaded_folder_generates_the_same_with_and_without_a_cache(runs):
    from llmctl.infer.eager.generate import generate
    from llmctl.infer.sampling import SamplingParams

    model, tokenizer = llmctl.load(runs("plain") / "model")
    prompts = [
        tokenizer.encode("Tom has a red kite."),
        tokenizer.encode("Deny this: Ann lives in a big house in Rome."),
    ]
    options = SamplingParams(max_new_tokens=12)
    answers = [
        generate(model, prompts, options, tokenizer.eos_ids, tokenizer.pad_id, use_cache=use) for use in (True, False)
    ]
    assert answers[0] == answers[1]
    alone = [generate(model, [prompt], options, tokenizer.eos_ids, tokenizer.pad_id)[0] for prompt in prompts]
    assert answers[0] == alone


def test_a_prefix_cannot_be_merged(runs, tmp_path):
    with pytest.raises(CheckpointError, match="a prefix, which cannot be merged"):
        merge(open_adapter(runs("plain") / "model"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("method", "data", "error"),
    [
        ({"virtual_tokens": 4000}, {}, "exceeds the .* positions"),
        ({"projection_hidden": 8}, {}, "no effect without method.prefix_projection"),
        ({"rank": 4}, {}, "method.rank has no effect with method.name=prefix"),
        ({"virtual_tokens": 0}, {}, "must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, method, data, error):
    with pytest.raises(ConfigError, match=error):
        job(tmp_path / "out", method, data=data)


@pytest.mark.parametrize(
    ("build", "check", "data", "part"),
    [
        (
            finetune.FinetuneConfig,
            preflight.check,
            {"src_length": 8, "packing": "best-fit"},
            "or data.packing to none",
        ),
        (finetune.FinetuneConfig, preflight.check, {"src_length": 8}, None),
        (DpoConfig, dpo.check, {"max_prompt_length": 8}, "10 or less$"),
    ],
)
def test_texts_that_share_a_row_and_outgrow_a_window_are_refused(tmp_path, build, check, data, part):
    """A pair of preferences always shares a row."""
    plugin = plugins.load("mistral")
    write_model(write_json(tmp_path / "model"), plugin, tiny_dims(plugin.card, {"window": 16, "vocab": 330}))
    line = (
        {"src": "hello"} if build is finetune.FinetuneConfig else {"response": ["a", "b"], "sort": [1, 0], "src": ["a"]}
    )
    (tmp_path / "train.jsonl").write_text(json.dumps({**line, "tgt": [] if "sort" in line else "world"}))
    sections = {"model": {"path": str(tmp_path / "model")}, "method": {"name": "prefix", "virtual_tokens": 6},
                "data": {"train": str(tmp_path / "train.jsonl"), "max_length": 11, **data},
                "output": {"dir": str(tmp_path / "out")}}  # fmt: skip
    if part is None:
        assert check(schema.build(build, sections), "mistral").train
        return
    with pytest.raises(
        ConfigError, match=f"exceeds the attention window of 16 positions.*set data.max_length to .*{part}"
    ):
        check(schema.build(build, sections), "mistral")


def test_a_model_that_looks_for_no_prefix_is_refused():
    with pytest.raises(UnsupportedError, match="does not support prefixes"):
        add_prefix(paddle.nn.Linear(2, 2), (1, 2, 3, 1, 2))


def test_preferences_are_measured_against_the_base_without_virtual_tokens(tmp_path):
    made = subject.load(job(tmp_path / "unused", METHODS["plain"]), None)
    ids = paddle.to_tensor([[5, 6, 7, 8]])
    with paddle.no_grad():
        made.model.eval()
        trained = made.model(ids).numpy()
        with made.reference()() as base:
            found = base(ids).numpy()
        plain = load_model(STARTER / "model")[0]
        plain.eval()
        np.testing.assert_array_equal(found, plain(ids).numpy())
        np.testing.assert_array_equal(made.model(ids).numpy(), trained)
    assert len(list(made.model.prefix.parameters())) == made.model.prefix.layers
