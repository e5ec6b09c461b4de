"""What rounding weights to 8 and 4 bits costs: perplexity of held-out text by a model trained here on the rest of it.

A decoder is pretrained on nine tenths of a text; the fused engine then scores the last tenth in windows, with weights in
float32, int8 and int4. A model that is kept in ``--model`` is used again.

    python benchmarks/weight_quality.py --text FILE --tokenizer FOLDER --model FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

SIZES = ["hidden_size=256", "num_hidden_layers=6", "num_attention_heads=8", "num_key_value_heads=8", "head_dim=32", "intermediate_size=704", "max_position_embeddings=256"]  # fmt: skip
WINDOW = 256
ALLOWED = {"int8": 0.005, "int4": 0.03}
"""How much larger the perplexity may become."""


def train(options: argparse.Namespace, folder: Path) -> Path:
    """The folder of the trained model."""
    model = folder / "out" / "model"
    if (model / "config.json").exists():
        return model
    text = options.text.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    (folder / "held_out.txt").write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
    llmctl("data", "build", folder / "train.txt", "--tokenizer", options.tokenizer, "--output", folder / "corpus")
    config = {
        "model": {"size": "tiny", "changes": SIZES, "tokenizer": str(options.tokenizer.resolve())},
        "data": {"corpora": [str(folder / "corpus")], "split": "99,1", "seq_length": WINDOW},
        "train": {
            "batch_size": 8, "learning_rate": 2e-3, "min_learning_rate": 2e-4, "warmup_steps": 50, "weight_decay": 0.1,
            "max_steps": options.steps, "eval_every": options.steps, "save_every": options.steps, "test_iters": 0,
        },
        "output": {"dir": str(folder / "out")},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    llmctl("--model", "llama", "pretrain", folder / "config.json")
    return model


def llmctl(*words: object) -> None:
    """Runs a command."""
    subprocess.run([sys.executable, "-m", "llmctl", *map(str, words)], check=True)


def perplexity(model: Path, text: str, kind: str, group: int | None) -> float:
    """exp of the mean loss of a token, of windows that do not overlap."""
    import numpy as np

    from llmctl import plugins, tokenizers
    from llmctl.checkpoint import read_config
    from llmctl.infer.executors.base import BLOCK, Batch
    from llmctl.infer.executors.native import NativeExecutor
    from llmctl.infer.packed.pack import pack_model

    plugin = plugins.load("llama")
    dims = plugin.card.dims_from_config(read_config(model), str(model))
    executor = NativeExecutor(pack_model(model, plugin, dims, kind, group), WINDOW)
    executor.allocate(WINDOW // BLOCK)
    ids = np.array(tokenizers.load(model).encode(text), np.int32)
    place, zeros = np.arange(WINDOW, dtype=np.int32), np.zeros(WINDOW, np.int32)
    blocks = np.arange(WINDOW // BLOCK, dtype=np.int32)[None]
    total, count = 0.0, 0
    for start in range(0, len(ids) - WINDOW - 1, WINDOW):
        window = ids[start : start + WINDOW]
        batch = Batch(window, zeros, place, place, None, zeros, place + 1, blocks, np.array([-1], np.int32), place)
        logits = executor.run(batch).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= scores[place, ids[start + 1 : start + 1 + WINDOW]].sum()
        count += WINDOW
    return math.exp(total / count)


def main() -> int:
    """Prints a table; 1 if rounding costs more than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder for the model that is trained")
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    model, wrong = train(options, options.model), 0
    text = (options.model / "held_out.txt").read_text(encoding="utf-8")
    exact = perplexity(model, text, "float32", None)
    print(f"{'weights':10} {'perplexity':>11} {'more':>8} {'allowed':>8}")
    print(f"{'float32':10} {exact:11.4f}")
    for kind, allowed in ALLOWED.items():
        more = perplexity(model, text, kind, None) / exact - 1
        wrong += more > allowed
        print(f"{kind:10} {exact * (1 + more):11.4f} {100 * more:7.3f} % {100 * allowed:6.1f} %")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
