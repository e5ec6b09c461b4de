"""Short runs of every method on a few examples, for tests that compare how processes share them."""

import json
from pathlib import Path

import numpy as np
from kit.corpora import write

from llmctl.config import schema
from llmctl.jobs.registry import COMMANDS, resolve

STARTER = Path(__file__).resolve().parents[2] / "plugins" / "llama" / "llmctl_llama" / "starter"
TRAIN = {
    "max_steps": 3,
    "batch_size": 2,
    "grad_accumulation": 3,
    "eval_every": 2,
    "eval_batch_size": 16,
    "save_every": 2,
    "log_every": 1,
    "max_grad_norm": 0.5,
}
PACKED = {"packing": "best-fit"}
RUNS = {
    "full": ("finetune", {"data": PACKED, "train": {"ema_decay": 0.5, "eval_generate": True}}),
    "lora": ("finetune", {"method": {"name": "lora"}, "data": PACKED}),
    "dora": ("finetune", {"method": {"name": "lora", "dora": True, "rank": 2}, "data": PACKED}),
    "pissa": ("finetune", {"method": {"name": "lora", "pissa": True, "rank": 2}}),
    "prefix": ("finetune", {"method": {"name": "prefix", "virtual_tokens": 3}, "data": PACKED}),
    "projection": ("finetune", {"method": {"name": "prefix", "virtual_tokens": 3, "prefix_projection": True}}),
    "dropout": ("finetune", {"method": {"name": "lora", "dropout": 0.1}}),
    "noise": ("finetune", {"method": {"neftune_alpha": 5.0}}),
    "dpo": ("dpo", {"data": PACKED}),
    "dpo lora": ("dpo", {"method": {"name": "lora"}}),
    "dpo precomputed": ("dpo", {"dpo": {"precompute_reference": True}}),
    "pretrain": ("pretrain", {"train": {"eval_iters": 1}}),
    "deep": ("pretrain", {"train": {"eval_iters": 1, "grad_accumulation": 7}}),
}


def write_data(folder):
    """Questions of the starter's task, pairs of answers to them, and a corpus of documents."""
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text().splitlines()[:17]]
    pairs = [
        {"src": [row["src"]], "tgt": [], "response": [other["tgt"], row["tgt"]], "sort": [0, 1]}
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    for kind, lines in (("finetune", rows), ("dpo", pairs)):
        for name, some in (("train", lines), ("dev", lines[:4])):
            (folder / f"{kind}-{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    write(folder / "corpus", [np.random.default_rng(i).integers(4, 60, 40) for i in range(40)])


def job_of(name, data, output, parallel, dtype):
    """The checked job of a run."""
    command, sections = RUNS[name]
    settings = {
        "model": {"path": str(STARTER / "model"), "dtype": dtype},
        "train": TRAIN,
        "output": {"dir": str(output), "samples": 1, "save_dtype": "float32"},
        "parallel": parallel,
    }
    if command == "pretrain":
        settings["data"] = {
            "corpora": [str(data / "corpus")],
            "split": "8,1,1",
            "seq_length": 16,
            "separate_documents": True,
        }
        if name == "deep":
            settings["model"] = {"size": "tiny", "changes": ["num_hidden_layers=6"], "dtype": dtype}
            settings["model"]["tokenizer"] = str(STARTER / "model")
    else:
        files = {split: str(data / f"{command}-{split}.jsonl") for split in ("train", "dev")}
        settings["data"] = {**files, "max_length": 160}
    return checked(command, settings, sections, "llama")


def checked(command, settings, sections, family):
    """The checked job of settings, with what some sections have instead."""
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = schema.build(resolve(COMMANDS[command].config), settings)
    return resolve(COMMANDS[command].check)(config, family, None)
