"""What a KV cache of fewer bits costs: mean KL divergence of the next token's distribution from that over a float32 cache.

python benchmarks/kv_quality.py --model FOLDER --text FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

CHUNK = 64
"""Tokens of a step; the keys of those before come from the cache."""


def logs(model, windows, kv):
    """Log-probabilities [tokens, V] of the next token."""
    from llmctl.infer.engine.feeder import SequenceFeeder
    from llmctl.infer.executors.native import NativeExecutor

    executor, rows = NativeExecutor(model, CHUNK, kv), []
    for window in windows:
        feeder = SequenceFeeder(executor, model.graph, [-1], len(window))
        for start in range(0, len(window), CHUNK):
            logits = feeder.feed((0, window[start : start + CHUNK]))[0].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint in floats")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    from llmctl import plugins, tokenizers
    from llmctl.checkpoint import read_config
    from llmctl.infer.packed.pack import pack_model

    where, config = str(options.model / "config.json"), read_config(options.model)
    plugin = plugins.resolve("auto", config, where)
    model = pack_model(options.model, plugin, plugin.card.dims_from_config(config, where))
    ids = tokenizers.load(options.model).encode(options.text.read_text(encoding="utf-8"))
    windows = [ids[start : start + options.window] for start in range(0, len(ids), options.window)][: options.windows]
    exact = logs(model, windows, "float32")
    for kv in ("float16", "int8"):
        other = logs(model, windows, kv)
        print(f"{kv:8} mean KL {(np.exp(exact) * (exact - other)).sum(axis=1).mean():.2g} over {len(exact)} tokens")


if __name__ == "__main__":
    main()
