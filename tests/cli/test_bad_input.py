"""Mistakes of the user: a clear message, exit code 2, no traceback, nothing written, and paddle never imported."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from llmctl.checkpoint import open_folder

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"


@pytest.fixture
def job(tmp_path):
    """A valid job in a folder: configuration, model, data."""
    shutil.copytree(STARTER / "model", tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"src": "a", "tgt": "b"}\n' * 4)
    config = {
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": str(tmp_path / "train.jsonl"), "src_length": 32, "max_length": 64},
        "train": {"max_steps": 1, "batch_size": 2},
        "output": {"dir": str(tmp_path / "out"), "samples": 0},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def refused(job, *arguments, family="llama", part=()):
    """Runs finetune in this process and checks that it is refused; returns the message."""
    from llmctl.cli import main

    before = {path: path.stat().st_mtime_ns for path in job.rglob("*")}
    runner = CliRunner()
    with runner.isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(["--model", family, "finetune", str(job / "config.yaml"), *arguments])
    message = streams[1].getvalue().decode() if len(streams) > 1 else streams[0].getvalue().decode()
    assert stopped.value.code == 2, message
    assert "Traceback" not in message
    for text in part if isinstance(part, (tuple, list)) else [part]:
        assert text in message, message
    assert {path: path.stat().st_mtime_ns for path in job.rglob("*")} == before
    return message


def edit_config(job, **changes):
    path = job / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_job_itself_is_valid(job):
    from llmctl.config import file, schema
    from llmctl.config import finetune as config
    from llmctl.jobs import finetune

    made = schema.build(config.FinetuneConfig, file.read_file(job / "config.yaml"))
    assert "4 examples" in finetune.check(made, "llama").summary()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", "train.learning_rat=1"], "did you mean train.learning_rate?"),
        (["--set", "train.batch_size=many"], "train.batch_size='many': expected an integer"),
        (["--set", "data.src_length=64"], "leaves no room for answers"),
        (["--set", "data.max_length=100000"], "set data.max_length to"),
        (["--set", "data.pad_to_multiple_of=1000"], "pads rows of data.max_length=64 to 1000 tokens"),
        (
            ["--set", "model.path=nowhere"],
            f"model.path=nowhere does not exist in the current folder, {Path.cwd()}; a model on",
        ),
        (
            ["--set", "data.train=nowhere.jsonl"],
            f"data.train=nowhere.jsonl does not exist in the current folder, {Path.cwd()}",
        ),
        (["--set", "data.train=/nowhere.jsonl"], "data.train=/nowhere.jsonl does not exist\n"),
        (["--set", "data.chat_template=nowhere.json"], "data.chat_template=nowhere.json"),
        (["--set", "train.best_metric=exact_match"], "needs train.eval_generate=true"),
        (["--set", "train.best_metric=accuracy"], "needs held-out examples; set data.dev"),
        (["--set", "train.patience=2"], "train.patience=2 needs held-out examples; set data.dev"),
        (["--set", "train.eval_generate=true"], "train.eval_generate=true needs held-out examples; set data.dev"),
        (["--set", "train.recompute_interval=2"], "recompute_interval has no effect with train.recompute=none"),
        (
            ["--set", "train.schedule=constant", "--set", "train.min_lr_ratio=0.1"],
            "no effect with train.schedule=constant",
        ),
        (["--set", "output.dir=''"], "output.dir is not set"),
        (["--set", "output.dir="], "output.dir is not set"),
        (["--set", "data.index_cache=cache"], "data.index_cache has no effect without data.streaming=true"),
        (["--set", "output.max_shard_bytes=5TB"], "'5TB' is not a size"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--set", "method.rank=4"], "method.rank has no effect with method.name=full"),
        (["--set", "method.name=lora", "--set", "method.rank=0"], "method.rank=0: must be at least 1"),
        (["--set", "method.name=lora", "--set", "method.rank=100000000000"], "the largest side of the target layers"),
        (["--set", "method.name=lora", "--set", "method.targets=q_poj"], "did you mean q_proj?"),
        (["--set", "method.name=lora", "--set", "method.targets=[]"], "method.targets is empty"),
        (
            ["--set", "method.name=lora", "--set", "method.pissa=true", "--set", "method.base=nf4"],
            "use one of the two",
        ),
        (
            ["--set", "method.name=lora", "--set", "method.pissa=true", "--set", "method.rank=200"],
            "set method.rank to at most 128",
        ),
        (["--set", "method.name=lora", "--set", "method.base=nf5"], "did you mean nf4?"),
        (["--set", "method.name=lora", "--set", "output.max_shard_bytes=5MB"], "an adapter is one file"),
        (["--set", "method.name=lara"], "did you mean lora?"),
        (["--set", "data.max_length=2", "--set", "data.src_length=1"], "train examples keeps a token of its answer"),
    ],
)
def test_bad_values_are_refused(job, arguments, part):
    refused(job, *arguments, part=part)


def test_unknown_family_names_the_nearest_and_how_to_install(job):
    refused(job, family="lama", part=["Did you mean 'llama'?", "llmctl new-plugin lama"])


def test_plugin_that_fails_to_import_is_named(job, fakes):
    fakes("broken")
    refused(job, family="brokenfam", part=["fake-broken 1.2.3", "a_module_that_nobody_has"])


def test_checkpoint_of_another_family_is_refused(job, fakes):
    fakes("third_party")
    refused(job, family="parrot", part=["LlamaForCausalLM", "not of the family parrot"])


def test_architecture_that_nobody_claims_is_refused(job):
    edit_config(job, architectures=["FalconForCausalLM"])
    refused(
        job,
        family="auto",
        part=["no installed family claims the architecture FalconForCausalLM", "llmctl new-plugin falcon"],
    )


def test_every_broken_line_is_listed_with_its_reason(job):
    (job / "train.jsonl").write_text(
        '{"src": "a", "tgt": "b"}\n{"src": "a"\n{"src": "a", "tgt": 3}\n{"src": "a"}\n[1]\n'
    )
    message = refused(job, part=["train.jsonl:2", "train.jsonl:3", "train.jsonl:4", "train.jsonl:5"])
    assert "train.jsonl:1:" not in message


def test_empty_data_file_is_refused(job):
    (job / "train.jsonl").write_text("\n\n")
    refused(job, part="train.jsonl")


def test_heads_that_do_not_divide_are_refused(job):
    edit_config(job, num_attention_heads=7, head_dim=None)
    refused(job, part="is not divisible by heads=7")


def test_output_folder_that_is_not_empty_is_refused(job):
    (job / "out").mkdir()
    (job / "out" / "precious.txt").write_text("mine")
    refused(job, part=["is not empty", "--resume", "--overwrite"])


def test_overwriting_the_folder_that_holds_the_model_is_refused(job):
    refused(job, "--overwrite", "--output", str(job), part=["is in output.dir", "choose another"])


def test_an_adapter_is_no_model_to_start_from(job):
    (job / "model" / "adapter_config.json").write_text("{}")
    refused(job, part=["holds an adapter", "llmctl merge"])


def test_model_without_tokenizer_is_refused(job):
    (job / "model" / "tokenizer.json").unlink()
    refused(job, part=["tokenizer.json", "tokenizer.model"])


def test_tokenizer_larger_than_the_embedding_is_refused(job):
    edit_config(job, vocab_size=16)
    refused(job, part=["16", "tokenizer"])


def read_all(job):
    folder = open_folder(job / "model")
    return {name: folder.read(name) for name in folder.tensors}


def weights(job):
    return job / "model" / "model.safetensors"


def test_truncated_weights_are_refused(job):
    size = weights(job).stat().st_size
    os.truncate(weights(job), size - 100)
    refused(job, part=["model.safetensors", "truncated"])


def test_wrong_shapes_are_all_listed(job):
    tensors = read_all(job)
    names = [name for name, value in tensors.items() if value.ndim == 2][:2]
    for name in names:
        tensors[name] = np.zeros((3, 5), np.float32)
    save_file(tensors, weights(job))
    refused(job, part=names)


def test_missing_and_unexpected_tensors_are_listed(job):
    tensors = read_all(job)
    missing = sorted(tensors)[0]
    tensors["surprise.weight"] = tensors.pop(missing)
    save_file(tensors, weights(job))
    refused(job, part=[missing, "surprise.weight"])


def test_index_that_names_an_absent_shard_is_refused(job):
    tensors = read_all(job)
    weights(job).unlink()
    index = {"metadata": {}, "weight_map": {name: "model-00001-of-00002.safetensors" for name in tensors}}
    (job / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(job, part="model-00001-of-00002.safetensors")


def test_a_missing_logger_is_refused_before_the_run(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused(job, "--set", "train.log_to=tensorboard", part=["tensorboardX", "pip install 'paddle-llmctl[tensorboard]'"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["finetune", "."],
            ". is a folder, and a configuration is a file in YAML or JSON; a model's folder is given with --model",
        ),
        (["finetune", "empty.yaml"], "expected sections such as model: and data:, but it is empty"),
        (["finetune", "list.yaml"], "expected sections such as model: and data:, but it holds a list"),
        (["finetune", "config.yaml", "train.batch_size=3"], "set with --set SECTION.KEY=VALUE"),
        (
            ["finetune", "config.yaml", "--learning_rate", "3"],
            "no such option '--learning_rate'; fields of the configuration are",
        ),
        (
            ["finetune", "config.yaml", "--set", "train.learning_rate=1e400"],
            "train.learning_rate=inf: must be a finite number",
        ),
        (
            ["finetune", "config.yaml", "--set", "data.train=config.yaml,list.yaml"],
            "; several are a list, [a, b]",
        ),
        (
            ["plan", "config.yaml", "--memory", "24"],
            "--memory 24 is 24 bytes, in which nothing can be trained; write a unit",
        ),
    ],
)
def test_what_people_try_first_is_answered_with_what_to_write(job, monkeypatch, arguments, said):
    from llmctl.cli import main

    monkeypatch.chdir(job)
    (job / "empty.yaml").write_text("")
    (job / "list.yaml").write_text("- a\n")
    runner = CliRunner()
    with runner.isolation() as streams, pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = (streams[1] if len(streams) > 1 else streams[0]).getvalue().decode()
    assert stopped.value.code == 2 and said in told, told
