"""Bits a weight against the distance from the float model, of llmctl's methods and of llama.cpp's types, on one model and one text.

The model is the one that ``weight_quality.py`` trains. llama.cpp quantizes it with its own tools, without and with an importance matrix
of the training text; linears of layers have the type that is named, embedding and head Q8_0, as ours have 8 bits. All are
measured by ``llmctl eval``, which computes with llama.cpp's codes as they are, and rounds inputs to 8 bits for all alike. Some files,
with our codes among them, are also measured by what llama.cpp itself computes from them.

    python benchmarks/frontier.py --text FILE --tokenizer FOLDER --model FOLDER --llama FOLDER_OF_ITS_TOOLS --svg docs/images/quantization.svg
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import weight_quality
from lib import points
from weight_quality import WINDOW, llmctl

ROUNDED = {
    "rounded, 32": ["--method", "weight-only-int4", "--group", "32"],
    "rounded, 64": ["--method", "weight-only-int4", "--group", "64"],
    "rounded, int8": ["--method", "weight-only-int8"],
}
OURS = {
    "gptq, 128": ["--method", "gptq", "--group", "128"],
    "gptq, 64": ["--method", "gptq", "--group", "64"],
    "gptq, 32": ["--method", "gptq", "--group", "32", "--format", "gguf"],
    "gptq, 64, qkv int8": ["--method", "gptq", "--group", "64", "--qkv", "int8"],
    "awq, 32": ["--method", "awq", "--group", "32"],
    "a8w8": ["--method", "ptq-a8w8"],
}
"""Our methods, by group; ``ROUNDED`` are those that look at no text. Groups of 32 are written as Q4_0, for llama.cpp."""
TYPES = ("Q4_0", "Q4_K", "Q5_K", "Q8_0")
"""llama.cpp's types whose values ``llmctl eval`` computes with exactly."""

CHUNKS = 256
"""Windows that the importance matrix is made of: four times the tokens that we calibrate on."""


def with_matrix(kind: str) -> str:
    """What a type of llama.cpp is called where the importance matrix was used."""
    return f"{kind}, importance matrix"


@dataclass(frozen=True)
class Goal:
    """The KL of one file, as a share of that of another, is at most ``most``."""

    mine: str
    other: str
    most: float


GOALS = (
    Goal("gptq, 32", "rounded, 32", 0.25),
    Goal("gptq, 64", "rounded, 64", 0.25),
    Goal("gptq, 32", "Q4_K, importance matrix", 0.5),
)
GOALS_LLAMA = (Goal("gptq, 32", "Q4_0, importance matrix", 0.3),)
"""By what llama.cpp itself computes."""
LOGITS_AT = 8
"""Bytes before the sizes in a file of log-probabilities."""
COMPARED = ("gptq, 32", "Q4_0", with_matrix("Q4_0"), "Q4_K", with_matrix("Q4_K"))
"""What llama.cpp itself computes, too."""


def bits(path: Path) -> float:
    """Bits of a weight of the linears of the layers, in a packed folder or a GGUF file."""
    if path.suffix == ".gguf":
        from llmctl.checkpoint.formats import gguf

        tensors = [t for name, t in gguf.read(path).tensors.items() if name.startswith("blk.") and len(t.shape) == 2]
        return 8 * sum(t.nbytes for t in tensors) / sum(t.shape[0] * t.shape[1] for t in tensors)
    from llmctl.infer.packed.folder import open_packed
    from llmctl.infer.packed.linear import bits_of

    return bits_of(linear.weight for layer in open_packed(path).layers for linear in layer.linears)


class LlamaCpp:
    """llama.cpp's own tools.

    Args:
        tools: Their folder.
        folder: Where files go.
        threads: Threads that they use.
    """

    def __init__(self, tools: Path, folder: Path, threads: int) -> None:
        self._tools, self._folder, self._threads = tools, folder, str(threads)

    def run(self, tool: str, *words: object) -> None:
        """Runs a tool."""
        found = subprocess.run([str(self._tools / tool), *map(str, words)], text=True, capture_output=True, check=False)
        if found.returncode:
            raise SystemExit(f"{tool} ended with {found.returncode}: {found.stderr[-2000:]}")

    def quantized(self, floats: Path, calibration: Path) -> dict[str, Path]:
        """Name -> file, of each type without and with the matrix."""
        matrix = self._folder / "imatrix.gguf"
        self.run("llama-imatrix", "-m", floats, "-f", calibration, "-o", matrix, "-c", WINDOW, "-b", WINDOW,
                 "-t", self._threads, "--chunks", CHUNKS, "--no-ppl")  # fmt: skip
        found = {}
        for kind in TYPES:
            for name, words in ((kind, []), (with_matrix(kind), ["--imatrix", matrix])):
                if words and kind == "Q8_0":
                    continue  # it does not look at the matrix
                found[name] = self._folder / f"{kind}{'-matrix' if words else ''}.gguf"
                self.run("llama-quantize", "--pure", "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0", *words,
                         floats, found[name], kind, self._threads)  # fmt: skip
        return found

    def divergences(self, floats: Path, files: dict[str, Path], text: Path) -> dict[str, float]:
        """Mean KL of each file from the floats on the second half of each window, from what llama.cpp computes."""
        exact = self._log_probabilities(floats, text)
        found = {}
        for name, file in files.items():
            other = self._log_probabilities(file, text)
            found[name] = float((np.exp(exact) * (exact - other)).sum(axis=1).mean())
        return found

    def _log_probabilities(self, file: Path, text: Path) -> np.ndarray:
        """[tokens, V], from the file that ``--kl-divergence`` of its tool would compare with: in steps of 16 / 65535."""
        saved = self._folder / "logits"
        self.run("llama-perplexity", "-m", file, "-f", text, "-c", WINDOW, "-b", WINDOW, "-t", self._threads,
                 "--kl-divergence-base", saved)  # fmt: skip
        content = saved.read_bytes()
        window, words, windows = np.frombuffer(content, np.int32, 3, LOGITS_AT)
        start = LOGITS_AT + 12 + 4 * window * windows
        rows = np.frombuffer(content, np.uint16, offset=start).reshape(-1, 2 * ((words + 1) // 2) + 4)
        if len(rows) != windows * (window - 1 - window // 2):
            raise SystemExit(f"llama-perplexity saved {len(rows)} tokens of {file}")
        step, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).astype(np.float64).T
        return step[:, None] * rows[:, 4 : 4 + words] + least[:, None]


def measured(model: Path, made: dict[str, Path], held_out: Path) -> dict[str, dict[str, float]]:
    """Name -> what ``llmctl eval`` says of it beside the float model, and its bits."""
    words = ["--text", held_out, "--window", WINDOW, "--stride", WINDOW - 1, "--engine", "fused", "--json"]
    rows = json.loads(llmctl("eval", model, *made.values(), *words, show=False))[1:]
    return {name: {**row, "bits": bits(made[name])} for name, row in zip(made, rows, strict=True)}


def missed(found: dict[str, float], goals: tuple[Goal, ...]) -> int:
    """Prints every goal; returns how many were missed."""
    wrong = 0
    for goal in goals:
        share = found[goal.mine] / found[goal.other]
        wrong += share > goal.most
        print(f"{goal.mine}: KL {share:.2f} of that of {goal.other}, allowed {goal.most}")
    return wrong


def picture(found: dict[str, dict[str, float]]) -> str:
    """Bits against KL, as SVG; a line joins what llama.cpp does without and with the matrix."""
    at = {name: points.Point(name, row["bits"], row["kl"]) for name, row in found.items()}
    pairs = [(at[kind], replace(at[with_matrix(kind)], name="")) for kind in TYPES if with_matrix(kind) in at]
    kinds = {
        "llmctl": [at[name] for name in OURS],
        "llmctl, rounded to nearest": [at[name] for name in ROUNDED],
        "llama.cpp": [at[kind] for kind in TYPES],
        "llama.cpp, importance matrix": [better for _, better in pairs],
    }
    return points.draw(kinds, "bits a weight", "KL divergence from the float model, nats a token", pairs)


def main() -> int:
    """Prints the tables; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder for the model that is trained here")
    parser.add_argument(
        "--llama", type=Path, required=True, help="folder of llama-quantize, llama-imatrix, llama-perplexity"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument(
        "--characters", type=int, default=40_000, help="of the text that is held out; all are measured on these"
    )
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--svg", type=Path, help="file of the picture")
    options = parser.parse_args()
    model, calibration, held_out = weight_quality.train(options, options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured_text = folder / "measured.txt"
        measured_text.write_text(held_out.read_text(encoding="utf-8")[: options.characters], encoding="utf-8")
        made = {name: folder / f"ours{number}" for number, name in enumerate((*ROUNDED, *OURS))}
        for name, words in (ROUNDED | OURS).items():
            weight_quality.quantize(model, words, calibration, options.tokens, made[name])
            made[name] = next(made[name].glob("*.gguf"), made[name])
        floats = folder / "floats.gguf"
        llmctl("convert", model, floats, "--to", "gguf", "--dtype", "float32", "--quiet")
        peer = LlamaCpp(options.llama, folder, options.threads)
        theirs = peer.quantized(floats, calibration)
        found = measured(model, {**made, **theirs}, measured_text)
        compared = {name: path for name, path in {**made, **theirs}.items() if name in COMPARED}
        by_llama = peer.divergences(floats, compared, measured_text)
    print(f"\nBy llmctl, on {next(iter(found.values()))['tokens']:,} tokens\n")
    print("| weights | bits | KL | same likeliest token |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['bits']:.2f} | {row['kl']:.6f} | {100 * row['same_top']:.1f} % |")
    print("\nBy llama.cpp, on the second half of each window\n\n| file | KL |\n|---|---|")
    for name, kl in by_llama.items():
        print(f"| {name} | {kl:.6f} |")
    print()
    if options.svg:
        options.svg.write_text(picture(found), encoding="utf-8")
    wrong = missed({name: row["kl"] for name, row in found.items()}, GOALS) + missed(by_llama, GOALS_LLAMA)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
