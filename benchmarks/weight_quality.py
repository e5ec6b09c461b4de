"""What quantized weights cost: KL divergence and perplexity beside the float model, on text that neither calibration nor training saw.

Two models: one that is pretrained here on nine tenths of a text, and one that was trained for long (``--trained``), on text that it
writes itself: models that are trained for minutes do not notice 4 bits by their perplexity. Everything runs by ``llmctl quantize`` and
``llmctl eval``. A model that is kept in ``--model`` is used again.

    python benchmarks/weight_quality.py --text FILE --tokenizer FOLDER --model FOLDER --trained FOLDER
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = ["hidden_size=256", "num_hidden_layers=3", "num_attention_heads=8", "num_key_value_heads=8", "head_dim=32", "intermediate_size=768", "max_position_embeddings=256"]  # fmt: skip
WINDOW = 256
TEXTS, MEASURED = 144, 80
"""Texts that a trained model writes, and those of them that it is measured on."""

CASES: dict[str, list[str]] = {
    "rounded, groups of 32": ["--method", "weight-only-int4", "--group", "32"],
    "rounded, groups of 64": ["--method", "weight-only-int4", "--group", "64"],
    "awq, groups of 32": ["--method", "awq", "--group", "32"],
    "awq, groups of 64": ["--method", "awq", "--group", "64"],
    "gptq, groups of 32": ["--method", "gptq", "--group", "32"],
    "gptq, groups of 64": ["--method", "gptq", "--group", "64"],
    "gptq, groups of 64, zero points": ["--method", "gptq", "--group", "64", "--set", "quantize.asymmetric=true"],
    "gptq, groups of 64, k and v in 8 bits": ["--method", "gptq", "--group", "64", "--qkv", "mixed"],
    "gptq, groups of 64, qkv in 8 bits": ["--method", "gptq", "--group", "64", "--qkv", "int8"],
    "rounded to 8 bits": ["--method", "weight-only-int8"],
    "ptq-a8w8": ["--method", "ptq-a8w8"],
}


@dataclass(frozen=True)
class Goal:
    """Of one case, what must be at most so much.

    Attributes:
        case: The case.
        beside: The case that its KL is compared with.
        kl: KL as a share of that one's.
        more: Excess of the perplexity as a share of that one's; None = nothing is said.
    """

    case: str
    beside: str
    kl: float
    more: float | None = None


GOALS = {
    "trained here": [
        Goal("gptq, groups of 32", "rounded, groups of 32", 0.25),
        Goal("gptq, groups of 64", "rounded, groups of 64", 0.25),
    ],
    "trained for long": [
        Goal("gptq, groups of 32", "rounded, groups of 32", 0.55, 0.5),
        Goal("gptq, groups of 64", "rounded, groups of 64", 0.55, 0.5),
        Goal("gptq, groups of 64, k and v in 8 bits", "gptq, groups of 64", 0.85),
        Goal("gptq, groups of 64, qkv in 8 bits", "gptq, groups of 64", 0.85),
    ],
}


def train(options: argparse.Namespace, folder: Path) -> tuple[Path, Path, Path]:
    """The trained model, the text that it was trained on, and the text that it was not."""
    model = folder / "out" / "model"
    if not (model / "config.json").exists():
        text = options.text.read_text(encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.txt").write_text(text[: len(text) * 9 // 10], encoding="utf-8")
        (folder / "held_out.txt").write_text(text[len(text) * 9 // 10 :], encoding="utf-8")
        llmctl("data", "build", folder / "train.txt", "--tokenizer", options.tokenizer, "--output", folder / "corpus")
        config = {
            "model": {"size": "tiny", "changes": SIZES, "tokenizer": str(options.tokenizer.resolve())},
            "data": {"corpora": [str(folder / "corpus")], "split": "99,1", "seq_length": WINDOW},
            "train": {
                "batch_size": 4, "learning_rate": 2e-3, "min_learning_rate": 2e-4, "warmup_steps": 50, "weight_decay": 0.1,
                "max_steps": options.steps, "eval_every": options.steps, "save_every": options.steps, "test_iters": 0,
            },
            "output": {"dir": str(folder / "out")},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        llmctl("--model", "llama", "pretrain", folder / "config.json")
    return model, folder / "train.txt", folder / "held_out.txt"


def written(model: Path, folder: Path) -> tuple[Path, Path]:
    """Texts that a model writes itself from nothing, by seeds: to calibrate on, and to measure on."""
    from llmctl.infer.options import EngineOptions
    from llmctl.infer.request import Request
    from llmctl.infer.sampling import SamplingParams
    from llmctl.infer.select import open_backend

    # Named, so that the text stays the same when the default changes.
    handle = open_backend(model, "auto", EngineOptions(kv="float16"))
    tokenizer = handle.tokenizer("auto")
    loaded = handle.load(tokenizer, [WINDOW] * 64)
    start = list(tokenizer.special.prefix)
    requests = [
        Request(prompt=start, options=SamplingParams(max_new_tokens=WINDOW - len(start), sample=True, seed=seed))
        for seed in range(TEXTS)
    ]
    texts = [""] * TEXTS
    for index, made in loaded.backend.run(requests):
        texts[index] = tokenizer.decode(made.ids)
    loaded.backend.close()
    files = folder / "calibration.txt", folder / "held_out.txt"
    for file, part in zip(files, (texts[MEASURED:], texts[:MEASURED]), strict=True):
        file.write_text("\n\n".join(part), encoding="utf-8")
    return files


def llmctl(*words: object, show: bool = True) -> str:
    """Runs a command; returns its standard output."""
    command = [sys.executable, "-m", "llmctl", *map(str, words)]
    return subprocess.run(command, check=True, text=True, stdout=None if show else subprocess.PIPE).stdout or ""


def quantize(model: Path, words: list[str], calibration: Path, tokens: int, folder: Path) -> None:
    """Quantizes a model into a folder, however far the result is from it."""
    llmctl("quantize", model, *words, "--calibration", calibration, "--tokens", tokens, "--output", folder,
           "--max-kl", 100, "--quiet")  # fmt: skip


def measure(model: Path, calibration: Path, held_out: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Case -> KL, perplexity and that of the float model."""
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made, str(number)) for number in range(len(CASES))]
        for folder, words in zip(folders, CASES.values(), strict=True):
            quantize(model, words, calibration, tokens, folder)
        words = ["--text", held_out, "--window", WINDOW, "--stride", WINDOW - 1, "--json"]
        exact, *rows = json.loads(llmctl("eval", model, *folders, *words, show=False))
    return {
        name: {**row, "more": row["perplexity"] / exact["perplexity"] - 1, "float": exact["perplexity"]}
        for name, row in zip(CASES, rows, strict=True)
    }


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """Prints a table."""
    first = next(iter(found.values()))
    print(f"\n{title}: perplexity {first['float']:.4f} on {first['tokens']:,} tokens\n")
    print("| weights | KL | perplexity | same likeliest token |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['kl']:.5f} | {100 * row['more']:+.2f} % | {100 * row['same_top']:.1f} % |")


def missed(title: str, found: dict[str, dict[str, Any]]) -> int:
    """Prints every goal; returns how many were missed."""
    wrong = 0
    for goal in GOALS[title]:
        mine, other = found[goal.case], found[goal.beside]
        rows = [("KL", mine["kl"] / other["kl"], goal.kl)]
        if goal.more is not None:
            rows.append(("excess of the perplexity", mine["more"] / other["more"], goal.more))
        for what, share, most in rows:
            wrong += share > most
            print(f"{goal.case}: {what} {share:.2f} of that of {goal.beside}, allowed {most}")
    return wrong


def main() -> int:
    """Prints the tables; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--model", type=Path, help="folder for the model that is trained here")
    parser.add_argument("--trained", type=Path, help="a model that was trained for long")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    wrong = 0
    if options.model:
        model, calibration, held_out = train(options, options.model)
        found = measure(model, calibration, held_out, options.tokens)
        show("trained here", found)
        wrong += missed("trained here", found)
    if options.trained:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options.trained, *written(options.trained, Path(folder)), options.tokens)
        show("trained for long", found)
        wrong += missed("trained for long", found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
