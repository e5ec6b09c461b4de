"""A family that reads prompts in both directions: it is calibrated on examples, encoded as in training, and on nothing else."""

import json

import numpy as np
import paddle
import pytest
import tiny_pieces
from kit.model_cli import llmctl
from safetensors.numpy import load_file, save_file

from llmctl import plugins, tokenizers
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.build import load_model
from llmctl.infer.engine.feeder import SequenceFeeder
from llmctl.infer.packed.folder import open_packed
from llmctl.testing.fused import executor
from llmctl.testing.tiny import write_model

TOKENS = {"bos": "<sop>", "gmask": "[gMASK]", "mask": "[MASK]"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """ChatGLM's tokenizer, and a model of two layers with its special tokens, whose predictions depend on the prompt."""
    folder, plugin = tmp_path_factory.mktemp("made") / "chatglm", plugins.load("chatglm")
    tiny_pieces.write_first(folder)
    tokenizer = tokenizers.load(folder, card=plugin.card)
    ids = {name: tokenizer.encode(text, add_special=False, parse_special=True)[-1] for name, text in TOKENS.items()}
    write_model(folder, plugin, tiny_dims(plugin.card, {"hidden": 64, "heads": 2, "ffn": 96, "vocab": 512, **ids}))
    (file,) = folder.glob("*.safetensors")
    save_file({name: values * (1 if values.ndim == 1 else 8) for name, values in load_file(file).items()}, file)
    rows = [
        {"src": f"the quick {animal} jumps over soup {n}", "tgt": "hello world, hello token, philosophy of soup"}
        for animal in ("fox", "dog", "brown fox", "lazy dog")
        for n in range(20)
    ]
    (folder.parent / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder.parent / "text.txt").write_text("the quick brown fox " * 200)
    return folder, [*tokenizer.encode("the quick brown fox", add_special=False), ids["gmask"], ids["bos"], 40, 50]


@pytest.mark.parametrize("method", ["gptq", "ptq-a8w8"])
def test_examples_quantize_a_family_that_reads_prompts_in_both_directions(made, tmp_path, method):
    folder, ids = made
    words = ("quantize", folder, "--method", method, "--tokens", "600", "--max-kl", "100", "--output", tmp_path / "out")
    llmctl(*words, "--calibration", folder.parent / "examples.jsonl")
    quality = json.loads((tmp_path / "out" / "quantization.json").read_text())["quality"]
    assert quality["tokens"] > 0 and quality["kl"] < 0.05
    model = open_packed(tmp_path / "out")
    found = SequenceFeeder(executor("twin", model), model.graph, [-1], len(ids)).feed((0, ids))[0]
    layer = load_model(folder)[0]
    layer.eval()
    with paddle.no_grad():
        expected = layer(paddle.to_tensor([ids])).numpy()[0]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_a_text_without_prompts_and_answers_is_refused(made, tmp_path):
    folder, _ = made
    words = ("quantize", folder, "--output", tmp_path / "out", "--calibration", folder.parent / "text.txt")
    assert "reads a prompt in both directions: calibrate on examples" in llmctl(*words, code=2)[1]
