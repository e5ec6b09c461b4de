"""How far ``llmctl plan`` is from the measured peak of the same run: a few steps of families and methods on the CPU.

    python benchmarks/plan_error.py --data alpaca.jsonl --pairs pairs.jsonl --tokenizer FOLDER [--case NAME ...]

The models are random, of 8 layers and hidden 512; data are JSON lines with src and tgt, pairs are of one turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "vocab": 32000, "max_positions": 2048}
NARROW, WIDE = {"ffn": 1376}, {"ffn": 2048}
LORA, RECOMPUTED = {"method.name": "lora"}, {"train.recompute": "full"}
CASES = {
    "llama": ("llama", NARROW, {}),
    "llama lora": ("llama", NARROW, LORA),
    "llama lora, recomputed": ("llama", NARROW, {**LORA, **RECOMPUTED}),
    "llama dora": ("llama", NARROW, {**LORA, "method.dora": "true"}),
    "llama qlora, int8": ("llama", NARROW, {**LORA, "method.base": "int8"}),
    "llama qlora, int4": ("llama", NARROW, {**LORA, "method.base": "int4"}),
    "llama qlora, nf4": ("llama", NARROW, {**LORA, "method.base": "nf4"}),
    "llama qlora, nf4, recomputed": ("llama", NARROW, {**LORA, **RECOMPUTED, "method.base": "nf4"}),
    "llama qlora, gptq": ("llama", NARROW, LORA),
    "llama prefix": ("llama", NARROW, {"method.name": "prefix"}),
    "llama packed": ("llama", NARROW, {"data.packing": "best-fit", "train.batch_size": 4}),
    "llama recomputed": ("llama", NARROW, RECOMPUTED),
    "llama dpo": ("llama", NARROW, {}),
    "llama dpo, lora": ("llama", NARROW, LORA),
    "llama dpo, lora, recomputed": ("llama", NARROW, {**LORA, **RECOMPUTED}),
    "bloom": ("bloom", WIDE, {}),
    "gpt3": ("gpt3", WIDE, {}),
    "mixtral": ("mixtral", {**NARROW, "experts": 4}, {}),
}
CODES, DPO = "gptq", "dpo"
"""In the name of a case: the layout that the model is quantized to before, and the command if it is not finetune."""

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make_model(family, changes, tokenizer, folder):
    """A random checkpoint."""
    from llmctl import plugins, runtime

    runtime.import_paddle("a model")
    import paddle

    from llmctl.checkpoint import save_weights
    from llmctl.checkpoint.build import build

    plugin = plugins.load(family)
    known = {setting.name for setting in plugin.card.settings if setting.key}
    values = {name: value for name, value in {**SIZES, **changes}.items() if name in known}
    dims = plugin.card.dims_of(next(iter(plugin.card.sizes)), **values)
    paddle.seed(0)
    model = build(plugin, dims)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder, model, renames, dtype="float32", max_shard_bytes=10**10)
    for name in FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)


def measure(case, options, home):
    """PlannedTensor and measured bytes."""
    family, changes, settings = CASES[case]
    model = home / family
    if not model.exists():
        make_model(family, changes, options.tokenizer, model)
    begin = [sys.executable, "-m", "llmctl", "--model", family]
    if CODES in case:
        source, model = model, home / f"{family}-{CODES}"
        words = ["quantize", source, "--method", "weight-only-int4", "--format", CODES, "--output", model]
        subprocess.run([sys.executable, "-m", "llmctl", *words], check=True, capture_output=True)
    command, data, rows = ("finetune", options.data, 8) if DPO not in case else (DPO, options.pairs, 2)
    more = {"data": {"src_length": 256}} if DPO not in case else {DPO: {}}
    config = {
        "model": {"path": str(model)},
        "data": {"train": [str(data)], "max_length": 512, "chat_template": "none", **more.pop("data", {})},
        "train": {"batch_size": rows, "max_steps": options.steps, "learning_rate": 1e-4, "save_every": 100},
        "output": {"dir": str(home / "out"), "overwrite": True, "samples": 0},
        **more,
    }
    file = home / "config.json"
    file.write_text(json.dumps(config))
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    planned = subprocess.run(
        [*begin, "plan", str(file), *given, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    subprocess.run([*begin, command, str(file), *given], check=True, stdout=subprocess.DEVNULL)
    info = json.loads((home / "out" / "run.json").read_text())
    found = info["peak_memory"]
    return json.loads(planned.stdout)["peak"], found["peak_memory"] if isinstance(found, dict) else found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--case", action="append", choices=tuple(CASES))
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    for name in ("data", "pairs", "tokenizer"):
        setattr(options, name, getattr(options, name).resolve())
    os.environ.setdefault("LLMCTL_THREADS", "2")
    print("| case | planned, GB | measured, GB | planned / measured |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        for case in options.case or CASES:
            planned, measured = measure(case, options, Path(home))
            print(f"| {case} | {planned / 1e9:.2f} | {measured / 1e9:.2f} | {planned / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
