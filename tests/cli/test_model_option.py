"""``--model``: before the command or after it, a family or a folder; the output folder of a run stands for its model."""

import json
import shutil

import pytest
from kit.model_cli import ASK, STARTER, llmctl, rows_of, write_questions

DATA = STARTER.parent / "data" / "dev.jsonl"
ASKED = ["generate", *ASK]


@pytest.fixture
def training(tmp_path):
    """Arguments of a job on a few examples."""
    shutil.copy(DATA, tmp_path / "dev.jsonl")
    return ["--set", f"data.train={tmp_path / 'dev.jsonl'}", "--output", str(tmp_path / "run"), "--check"]


@pytest.fixture(scope="module")
def answer():
    return llmctl(*ASKED[:1], STARTER, *ASKED[1:])[0]


@pytest.mark.parametrize("where", ["before", "after", "both", "with the argument", "family and argument", "auto"])
def test_a_model_is_named_before_the_command_or_after_it(where, answer):
    words = {
        "before": ["--model", STARTER, *ASKED],
        "after": [*ASKED, "--model", STARTER],
        "both": ["--model", STARTER, *ASKED, "--model", STARTER],
        "with the argument": [*ASKED, STARTER, "--model", f"{STARTER}/"],
        "family and argument": [*ASKED, STARTER, "--model", "llama"],
        "auto": ["--model", "auto", *ASKED, STARTER],
    }
    assert llmctl(*words[where])[0] == answer != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "llama", *ASKED, STARTER, "--model", "opt"], "--model is given twice: llama and opt"),
        ([*ASKED, STARTER, "--model", STARTER.parent], "MODEL is .* and --model is "),
        (ASKED, "MODEL is missing: name the folder of a model, here or with --model"),
        (["--model", "llama", *ASKED], "MODEL is missing.*; llama is a family"),
        ([*ASKED, STARTER, "--model", "lama"], "no family 'lama' is installed.* Did you mean 'llama'"),
        ([*ASKED, "--model", "./absent"], "absent"),
        ([*ASKED, "--model", "absent"], "--model absent is neither a folder nor an installed family"),
        (["bench", "--random", "tiny", "--model", STARTER], "give MODEL or --random, and not both"),
        (["finetune", "--model", STARTER, "--set", "model.path=other"], "--model is .* and --set model.path is other"),
        (["--model", "llama", "env"], "--model has no effect on llmctl env; leave it out"),
        (["finetune"], "without CONFIG, name a model: llmctl finetune --model FOLDER"),
    ],
)
def test_contradictions_and_names_of_nothing_are_refused(words, message):
    import re

    assert re.search(message, llmctl(*words, code=2)[1])


def test_a_family_is_meant_where_a_folder_has_the_same_name(tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert llmctl("--model", "llama", *ASKED, STARTER)[0] == answer
    shutil.copytree(STARTER, tmp_path / "mine")
    assert llmctl("--model", "mine", *ASKED)[0] == answer


def test_training_takes_the_model_of_the_option(training, tmp_path):
    for words in (["--model", STARTER, "finetune"], ["finetune", "--model", STARTER]):
        assert f"parameters from {STARTER}, 200 examples" in llmctl(*words, *training)[0]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": {"path": "elsewhere"}, "train": {"max_steps": 1}}))
    assert f"parameters from {STARTER}" in llmctl("finetune", config, "--model", STARTER, *training)[0]


def test_a_recipe_needs_no_family_and_suits_the_model(training):
    out, err = llmctl("finetune", "--recipe", "lora", "--model", STARTER, *training)
    assert f"parameters from {STARTER}" in out
    assert "max_length 512 instead of 2048, src_length 256 instead of 1024 (the model has 512 positions)" in err
    err = llmctl("finetune", "--recipe", "lora", "--model", STARTER, *training, "--set", "data.max_length=64")[1]
    assert "lengths of the recipe: src_length 32 instead of 1024" in err
    err = llmctl(
        "finetune", "--recipe", "sft", "--set", f"model.path={STARTER}", *training, "--set", "data.src_length=400"
    )[1]
    assert "max_length 512 instead of 2048 (" in err


def test_a_recipe_for_new_models_continues_the_model_that_is_named(tmp_path):
    shown = llmctl("pretrain", "--recipe", "small", "--model", STARTER, "--print-config")[0]
    assert f'path: "{STARTER}"' in shown and 'size: ""' in shown and "# changes:" in shown
    assert "makes a new model of a family" in llmctl("pretrain", "--recipe", "small", code=2)[1]
    assert "for every family; there are lora, prefix, qlora, sft" in llmctl("finetune", "--recipe", "x", code=2)[1]


def test_a_recipe_is_shown_without_a_family():
    first, command, copy, *_ = llmctl("finetune", "--recipe", "lora", "--print-config")[0].splitlines()
    assert first.startswith("# LoRA: ")
    assert (
        command == "# Run with: llmctl --model MODEL finetune --recipe lora --set data.train=TRAIN.jsonl --output RUN"
    )
    assert copy == "# Or, with this file: llmctl finetune CONFIG"


def test_a_recipe_is_shown_for_a_folder_that_has_no_model_yet(tmp_path):
    words = ("--model", "llama", "finetune", "--recipe", "sft", "--set", f"model.path={tmp_path}", "--print-config")
    shown = llmctl(*words)[0]
    assert f'path: "{tmp_path}"' in shown and "max_length: 2048" in shown


@pytest.fixture
def run_folder(tmp_path):
    """What a finished run leaves, with the model as it was."""
    folder = tmp_path / "my run"
    shutil.copytree(STARTER, folder / "model")
    for name in ("run.json", "config.yaml"):
        (folder / name).write_text("{}")
    return folder


def test_the_output_folder_of_a_run_stands_for_its_model(run_folder, tmp_path, answer):
    import llmctl as library

    assert llmctl(*ASKED, run_folder)[0] == llmctl(*ASKED, "--model", run_folder)[0] == answer
    llmctl("convert", run_folder, tmp_path / "hf", "--to", "hf")
    llmctl("--model", run_folder, "convert", tmp_path / "again", "--to", "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file() and (tmp_path / "again" / "model.safetensors").is_file()
    llmctl("export", run_folder, "--engine", "fused", "--output", tmp_path / "packed")
    assert llmctl(*ASKED, tmp_path / "packed")[0] == answer
    with library.LLM(run_folder) as model:
        assert model.tokenizer.vocab_size == 757
    assert (
        "the output folder of a run that is not finished"
        not in llmctl("data", "doctor", DATA, "--model", run_folder)[1]
    )


def test_a_run_that_is_not_finished_says_so(run_folder):
    shutil.rmtree(run_folder / "model")
    said = llmctl(*ASKED, run_folder, code=2)[1]
    assert "the output folder of a run that is not finished" in said and "checkpoints" in said


def test_old_names_of_the_option_go_on(tmp_path):
    write_questions(tmp_path / "questions.jsonl", tgt="x")
    assert len(rows_of(tmp_path / "questions.jsonl")) == 7
    words = ["data", "doctor", tmp_path / "questions.jsonl", "--show", "0", "--json"]
    assert llmctl(*words, "--model-folder", STARTER)[0] == llmctl(*words, "--model", STARTER)[0]
