"""CPU time of bound answers: compiling a JSON schema, the tokens that may come next, and applying them to logits.

CPU time of the thread, not the clock: a busy machine does not change it. Answers are random among the allowed tokens, which is harder
than what a model writes: texts are of all the world's scripts.

    python benchmarks/grammars.py TOKENIZER_FOLDER --family qwen --vocab 151936
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from llmctl import plugins, tokenizers
from llmctl.infer.sampling.constraint import allow
from llmctl.serve.answers.grammars import Grammars


def schema(texts: dict[str, object]) -> dict[str, object]:
    """A person with an address and tags.

    Args:
        texts: Further limits of its texts.
    """
    text = {"type": "string", **texts}
    address = {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "street": text}
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
    rows = {"name": text, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "tags": tags}
    inner = {"type": "object", "properties": address, "required": [*address], "additionalProperties": False}
    rows = {**rows, "address": inner}
    return {"type": "object", "properties": rows, "required": [*rows], "additionalProperties": False}


def measure(grammars: Grammars, name: str, body: dict[str, object], logits: np.ndarray, ends: set[int]) -> None:
    """Prints the row of a schema."""
    compiling, masks, applying, count = [], [], [], 0
    for number in range(20):
        begun = time.thread_time()
        compiled = grammars.compiled("json", json.dumps({**body, "title": str(number)}), "schema")
        compiling.append(time.thread_time() - begun)
    for number in range(20):
        matcher, draws = compiled.matcher(), np.random.default_rng(number)
        for _ in range(150):
            begun = time.thread_time()
            words = matcher.allowed()
            middle = time.thread_time()
            scores = allow(logits, words)
            masks.append(middle - begun)
            applying.append(time.thread_time() - middle)
            tokens = [token for token in np.flatnonzero(np.isfinite(scores)).tolist() if token not in ends]
            count += matcher.accept([int(draws.choice(tokens))])
            if matcher.complete:
                break
    cells = [f"{1e3 * np.median(compiling):.1f} ms, {1e3 * max(compiling):.1f}"]
    cells += [f"{1e6 * np.median(times):.0f} us, {1e6 * np.percentile(times, 99):.0f}" for times in (masks, applying)]
    print(f"| {name} ({count} tokens) | {' | '.join(cells)} |")


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--family", required=True)
    parser.add_argument("--vocab", type=int, required=True)
    given = parser.parse_args()
    tokenizer = tokenizers.load(given.tokenizer, card=plugins.load(given.family).card)
    grammars, begun = Grammars(tokenizer, given.vocab), time.thread_time()
    grammars.prepare()
    print(f"the vocabulary is read once, in {time.thread_time() - begun:.1f} s\n")
    print("| schema | compile, longest | allowed tokens, 99 % | applied, 99 % |\n|---|---|---|---|")
    logits = np.random.default_rng(0).standard_normal(given.vocab).astype(np.float32)
    ends = {*tokenizer.eos_ids}
    measure(grammars, "texts of any length", schema({}), logits, ends)
    measure(grammars, "texts of at most 20 characters", schema({"maxLength": 20}), logits, ends)


if __name__ == "__main__":
    main()
