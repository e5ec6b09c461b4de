"""A family from outside the repository goes the whole way: weights, fine-tuning from the shell, generation."""

import json
import shutil
from pathlib import Path

import pytest

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"


def make_model(folder: Path) -> None:
    """A random model of the third party's family with the tokenizer of the starter model."""
    import paddle

    from llmctl import plugins
    from llmctl.checkpoint import save_weights
    from llmctl.checkpoint.build import build

    plugin = plugins.load("parrot")
    vocab = json.loads((STARTER / "model" / "config.json").read_text())["vocab_size"]
    dims = plugin.card.dims_of("tiny", vocab=vocab)
    paddle.seed(1)
    model = build(plugin, dims)
    shutil.copytree(STARTER / "model", folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    save_weights(folder, model, plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch"))


def test_a_third_party_family_fine_tunes_and_generates(tmp_path, fakes, run_llmctl):
    fakes("third_party")
    make_model(tmp_path / "model")
    rows = [{"src": f"say {word}", "tgt": word} for word in ("red", "blue", "green", "black")] * 8
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "dev": "train.jsonl", "src_length": 32, "max_length": 64},
        "train": {"max_steps": 12, "batch_size": 8, "learning_rate": 0.01, "log_every": 1, "eval_every": 6},
        "output": {"dir": "out", "samples": 1},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    done = run_llmctl("--model", "parrot", "finetune", "config.yaml", fakes=["third_party"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and losses[-1] < 0.7 * losses[0]
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["versions"]["fake-parrot"] == "3.1.0"

    shared = (
        "--devices",
        "2",
        "--set",
        "parallel.tensor=2",
        "--set",
        "train.grad_accumulation=1",
        "--set",
        "output.dir=two",
    )
    done = run_llmctl("--model", "parrot", "finetune", "config.yaml", *shared, fakes=["third_party"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    again = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in again if "loss" in line] == pytest.approx(losses, rel=1e-4)

    done = run_llmctl("generate", "out/model", "--prompt", "say red", "--max-new-tokens", "4", "--min-new-tokens", "4", "--raw",
                      fakes=["third_party"], cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
