"""``llmctl eval`` beside the model's own layer and numpy."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from kit.pages import run
from kit.tiny_tokenizers import write_json
from safetensors.numpy import load_file, save_file

import llmctl

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
MODEL = STARTER / "model"
TEXT = "Tom lives in Rome. The cat sleeps on the mat, and nobody knows why. " * 6


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "held out.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The model with slightly other weights."""
    folder = tmp_path_factory.mktemp("other") / "model"
    code, said = run(["convert", str(MODEL), str(folder), "--dtype", "float32"])
    assert code == 0, said
    (file,) = folder.glob("*.safetensors")
    random = np.random.default_rng(0)
    weights = load_file(file)
    noisy = {
        name: value + (0.02 * random.standard_normal(value.shape)).astype(value.dtype)
        for name, value in weights.items()
    }
    save_file(noisy, file, {"format": "pt"})
    return folder


def evaluate(*words):
    code, said = run(["eval", *map(str, words), "--json"])
    assert code == 0, said
    # Progress follows on standard error where the machine is slow.
    return json.JSONDecoder().raw_decode(said[said.index("[") :])[0]


def logprobs(folder, window, stride):
    """Log-probabilities of every predicted token, and their predictions, by the layer; windows as in transformers' guide."""
    model, tokenizer = llmctl.load(folder)
    model.eval()
    ids = [*tokenizer.special.prefix, *tokenizer.encode(TEXT, add_special=False)]
    tokens, rows, done = [], [], 1
    while done < len(ids):
        stop = min(len(ids), window if done == 1 else done + stride)
        begin = max(0, stop - window)
        with paddle.no_grad():
            hidden = model.hidden_states(paddle.to_tensor(np.array([ids[begin:stop]], np.int64)))
            logits = model.logits(hidden)[0].astype("float64").numpy()
        found = logits - logits.max(-1, keepdims=True)
        found -= np.log(np.exp(found).sum(-1, keepdims=True))
        rows += [found[at - 1 - begin] for at in range(done, stop)]
        tokens += ids[done:stop]
        done = stop
    return np.array(tokens), np.array(rows)


@pytest.mark.parametrize("engine", ["fused", "dynamic"])
def test_perplexity_is_that_of_the_layer_in_the_same_windows(engine, text):
    (found,) = evaluate(MODEL, "--text", text, "--engine", engine, "--window", 64, "--stride", 24)
    tokens, rows = logprobs(MODEL, 64, 24)
    loss = -rows[np.arange(len(tokens)), tokens].mean()
    assert found["tokens"] == len(tokens) > 100
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    tokenizer = llmctl.load(MODEL)[1]
    first = "" if tokenizer.special.prefix else tokenizer.decode(tokenizer.encode(TEXT, add_special=False)[:1])
    size = len(TEXT) - len(first)
    assert found["bits_per_byte"] == pytest.approx(loss * len(tokens) / math.log(2) / size, rel=1e-5)


def test_the_divergence_from_the_first_model_is_that_of_all_predictions(text, other):
    first, second = evaluate(MODEL, other, "--text", text, "--window", 64, "--stride", 32)
    tokens, right = logprobs(MODEL, 64, 32)
    _, apart = logprobs(other, 64, 32)
    divergence = (np.exp(right) * (right - apart)).sum(-1).mean()
    assert divergence > 1e-3
    assert second["kl"] == pytest.approx(divergence, rel=1e-3)
    assert second["same_top"] == pytest.approx((right.argmax(-1) == apart.argmax(-1)).mean(), abs=0.01)
    assert second["loss"] == pytest.approx(-apart[np.arange(len(tokens)), tokens].mean(), rel=1e-5)
    assert first["kl"] == pytest.approx(0.0, abs=1e-9) and first["same_top"] == 1.0


def test_models_of_another_tokenizer_stand_beside_those_that_are_compared(text, other, tmp_path):
    strange = tmp_path / "strange"
    shutil.copytree(MODEL, strange)
    write_json(strange)
    found = evaluate(MODEL, strange, other, "--text", text, "--window", 64)
    assert ["kl" in row for row in found] == [True, False, True]
    alone = [evaluate(one, "--text", text, "--window", 64)[0] for one in (MODEL, strange, other)]
    for row, expected in zip(found, alone, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert (row["tokens"], row["bits_per_byte"]) == (expected["tokens"], pytest.approx(expected["bits_per_byte"]))
    code, said = run(["eval", str(MODEL), str(strange), str(other), "--text", str(text)])
    assert code == 0, said
    assert f"KL is left out for {strange}: it cuts the text into other tokens than {MODEL}" in " ".join(said.split())


def test_types_of_weights_are_compared_in_a_table(text):
    code, said = run(
        ["eval", str(MODEL), "--text", str(text), "--weights", "float32", "--weights", "int8", "--weights", "int4"]
    )
    assert code == 0, said
    lines = {line.split()[1]: line for line in said.splitlines() if line.startswith("│")}
    assert list(lines) == ["float32", "int8", "int4"] and "KL" in said and "same top" in said


def test_answers_of_examples_are_measured_as_in_training(tmp_path):
    lines = (STARTER / "data" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (found,) = evaluate(MODEL, "--data", file)
    config = {
        "model": {"path": str(MODEL)}, "data": {"train": str(file), "dev": str(file)},
        "train": {"max_steps": 1, "batch_size": 2, "eval_generate": False, "best_metric": "eval_loss"},
        "output": {"dir": str(tmp_path / "run"), "samples": 0},
    }  # fmt: skip
    before = llmctl.finetune(config, quiet=True).info["before"]["metrics"]
    assert found["loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    size = sum(len(json.loads(line)["tgt"].encode()) for line in lines)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * found["tokens"] / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --text FILE, --data FILE or --tasks NAMES"),
        (["--text", "{text}", "--window", "8", "--stride", "8"], "must be below --window 8"),
        (["--text", "{text}", "--window", "100000"], "is over the"),
        (["--data", "{text}"], "looks like plain text"),
        (["--text", "{text}", "--chat-template", "none"], "--chat-template has no effect with --text"),
        (["--text", "{pipe}"], "is a pipe or a device"),
        (["--data", "{turns}", "--chat-template", "none"], "set one with --chat-template"),
        (["--data", "{text}", "--window", "8"], "--window is for --text; leave it out with --data"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, text, tmp_path):
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": turn * 2}) + "\n")
    os.mkfifo(tmp_path / "pipe")
    files = {"text": text, "pipe": tmp_path / "pipe", "turns": tmp_path / "turns.jsonl"}
    code, said = run(["eval", str(MODEL), *(word.format(**files) for word in words)])
    assert code == 2 and message in said and "Traceback" not in said
