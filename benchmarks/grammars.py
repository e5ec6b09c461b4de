"""CPU time of bound answers: compiling a JSON schema, the tokens that may come next, and applying them; and of log-probabilities.

CPU time of the thread, not the clock: a busy machine does not change it. Only what the engine waits for is by the clock: which tokens
may come next is computed in another thread while the model computes their logits, for which a sleep stands here. Answers are random
among the allowed tokens, which is harder than what a model writes: texts are of all the world's scripts.

    python benchmarks/grammars.py TOKENIZER_FOLDER --family qwen --vocab 151936
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from llmctl import plugins, tokenizers
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.constraint import allow
from llmctl.infer.sampling.logprobs import token_logprob
from llmctl.infer.sampling.rows import SamplerInput
from llmctl.infer.sampling.sampler import Sampler
from llmctl.serve.answers.grammars import Compiled, Grammars


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


def measure(
    grammars: Grammars, name: str, body: dict[str, object], logits: np.ndarray, ends: list[int], forward: float
) -> None:
    """Prints the row of a schema.

    Args:
        grammars: Compiles.
        name: Name of the row.
        body: The schema.
        logits: Any [V].
        ends: Tokens that end an answer.
        forward: Seconds for the model's logits.
    """
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
            scores[ends] = -np.inf
            tokens = np.flatnonzero(np.isfinite(scores))
            count += matcher.accept([int(draws.choice(tokens))])
            if matcher.complete:
                break
    cells = [f"{1e3 * np.median(compiling):.1f} ms, {1e3 * max(compiling):.1f}"]
    cells += [shown(times) for times in (masks, applying, waited(compiled, forward))]
    print(f"| {name} ({count} tokens) | {' | '.join(cells)} |")


def waited(compiled: Compiled, forward: float) -> list[float]:
    """Seconds that the engine spends on which tokens may come next, which another thread computes meanwhile."""
    found = []
    for number in range(6):
        matcher, draws = compiled.matcher(), np.random.default_rng(number)
        for _ in range(150):
            begun = time.perf_counter()
            matcher.prepare()
            spent = time.perf_counter() - begun
            time.sleep(forward)
            begun = time.perf_counter()
            words = matcher.allowed()
            found.append(spent + time.perf_counter() - begun)
            tokens = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            if not matcher.accept([int(draws.choice(tokens))]) or matcher.complete:
                break
    return found


def shown(seconds: list[float]) -> str:
    """The median and the 99th percentile."""
    return f"{1e6 * np.median(seconds):.0f} us, {1e6 * np.percentile(seconds, 99):.0f}"


def measure_logprobs(vocab: int) -> None:
    """Prints the rows of log-probabilities."""
    sampler, draws = Sampler(vocab), np.random.default_rng(0)
    for top in (None, 0, 5, 20):
        params, times = SamplingParams(logprobs=top), []
        for _ in range(300):
            logits = draws.standard_normal((1, vocab), np.float32)
            begun = time.thread_time()
            chosen = sampler.choose(logits, [SamplerInput()], top is not None)
            token = int(chosen.token_L[0])
            token_logprob(logits[0], token, params, (token, float(chosen.logprob_L[0])))
            times.append(time.thread_time() - begun)
        print(f"| {'none' if top is None else f'of the token and the {top} likeliest'} | {shown(times)} |")


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--family", required=True)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--forward", type=float, default=5.0, help="milliseconds that the model takes for logits")
    given = parser.parse_args()
    tokenizer = tokenizers.load(given.tokenizer, card=plugins.load(given.family).card)
    grammars, begun = Grammars(tokenizer, given.vocab), time.thread_time()
    grammars.prepare()
    print(f"the vocabulary is read once, in {time.thread_time() - begun:.1f} s\n")
    titles = ("schema", "compile, longest", "allowed tokens, 99 %", "applied, 99 %", "waited for, 99 %")
    print(f"| {' | '.join(titles)} |\n|" + "---|" * len(titles))
    logits = np.random.default_rng(0).standard_normal(given.vocab).astype(np.float32)
    ends = [*tokenizer.eos_ids]
    measure(grammars, "texts of any length", schema({}), logits, ends, given.forward / 1e3)
    measure(grammars, "texts of at most 20 characters", schema({"maxLength": 20}), logits, ends, given.forward / 1e3)
    print("\n| log-probabilities | a token, 99 % |\n|---|---|")
    measure_logprobs(given.vocab)


if __name__ == "__main__":
    main()
