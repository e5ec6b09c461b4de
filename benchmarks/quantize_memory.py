"""Memory and time of quantizing a model of a billion random parameters by GPTQ, beside the size of its file and beside GPTQModel.

The file is in bfloat16 and mapped, so its pages count as memory of the process while there is room for them. A layer that is done leaves
its codes in memory; ``--layers`` takes fewer layers than the model has. The peer quantizes the same file with the same tokens, in
windows as long, with its own defaults: it neither searches scales and ranges, nor checks held-out rows, nor compares the models.

    python benchmarks/quantize_memory.py --text FILE --tokenizer FOLDER --layers 2 [--peer-python PYTHON_WITH_GPTQMODEL]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib import random_llama

ALLOWED = 3e9
"""Bytes beside the model's file."""
PAUSE = 0.02  # seconds between two looks at the process
GROUP = 128
WINDOW = 256
PEER_ROWS = 8
"""Windows of a batch of the peer: as many tokens as are computed together here."""


def prepared(options: argparse.Namespace, folder: Path) -> Path:
    """The model in bfloat16, with a tokenizer."""
    random_llama.SIZES["some layers"] = {**random_llama.SIZES[options.size], "layers": options.layers}
    floats = random_llama.write_folder(folder / "float32", "some layers")
    for file in options.tokenizer.glob("token*"):
        shutil.copy(file, floats)
    model = folder / "bfloat16"
    command = [sys.executable, "-m", "llmctl", "convert", floats, model, "--to", "hf", "--dtype", "bfloat16", "--quiet"]
    subprocess.run(list(map(str, command)), check=True)
    shutil.rmtree(floats)
    return model


def windows(options: argparse.Namespace, model: Path) -> list[list[int]]:
    """The tokens that llmctl calibrates on, in windows of one length for the peer."""
    from llmctl import tokenizers
    from llmctl.config.quantize import CalibrationConfig
    from llmctl.infer.quantize.calibration import read_calibration

    config = CalibrationConfig(file=str(options.text), tokens=options.tokens, window=WINDOW)
    vocabulary = random_llama.SIZES[options.size]["vocab"]
    drawn = read_calibration(config, tokenizers.load(model), vocabulary, random_llama.CONTEXT, True).windows
    ids = [int(token) for window in drawn for token in window]
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def resident(process: int) -> dict[str, int]:
    """Bytes of a process: all, its own pages, and those of files; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    wanted = ("VmHWM", "RssAnon", "RssFile")
    return {name: int(fields[name].split()[0]) * 1024 for name in wanted if name in fields}


def measured(command: list[object], threads: int, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds and peaks in bytes of a process that runs in a folder.

    Raises:
        SystemExit: It failed.
    """
    names = ("LLMCTL_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environ = {**os.environ, **dict.fromkeys(names, str(threads))}
    start, most, ended = time.monotonic(), dict[str, int](), 0
    process = subprocess.Popen(list(map(str, command)), env=environ, cwd=folder)
    while not ended:
        most = {field: max(most.get(field, 0), value) for field, value in resident(process.pid).items()} or most
        time.sleep(PAUSE)
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return {"seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime, **most}


def main() -> int:
    """Prints a line for each; 1 if the peak of llmctl is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text to calibrate on")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer of at most 32,000 words")
    parser.add_argument("--size", choices=list(random_llama.SIZES), default="1b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", help="Python with gptqmodel, to quantize the same model with")
    parser.add_argument("--peer", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(*options.peer)
    if not (options.text and options.tokenizer):
        parser.error("--text and --tokenizer are missing")
    with tempfile.TemporaryDirectory() as name:
        model, work = prepared(options, Path(name)), Path(name)
        mapped = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        shape = {"layers": options.layers, "tokens": options.tokens, "threads": options.threads, "model": mapped}
        found = measured([
            sys.executable, "-m", "llmctl", "quantize", model, "--method", options.method, "--calibration", options.text.resolve(),
            "--tokens", options.tokens, "--window", WINDOW, "--group", GROUP, "--max-kl", 1000, "--output", work / "quantized",
        ], options.threads, work)  # fmt: skip
        beside = found["VmHWM"] - mapped
        print(json.dumps({"by": "llmctl", **shape, **found, "beside_the_model": beside}), flush=True)
        if options.peer_python:
            (work / "windows.json").write_text(json.dumps(windows(options, model)), encoding="utf-8")
            script = Path(__file__).resolve()
            command = [options.peer_python, script, "--peer", model, work / "windows.json", work / "by the peer"]
            found = measured(command, options.threads, work)
            print(json.dumps({"by": "GPTQModel", **shape, **found, "beside_the_model": found["VmHWM"] - mapped}))
    return int(beside > ALLOWED)


# What follows runs in the other Python.


def peer(model: Path, ids: Path, output: Path) -> int:
    """Quantizes a folder with GPTQModel."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # With fewer its loader refuses to start.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = [
        {"input_ids": torch.tensor([window]), "attention_mask": torch.ones((1, len(window)), dtype=torch.long)}
        for window in json.loads(ids.read_text(encoding="utf-8"))
    ]
    quantized = GPTQModel.load(str(model), QuantizeConfig(bits=4, group_size=GROUP, device="cpu"))
    quantized.quantize(rows, batch_size=PEER_ROWS)
    quantized.save(str(output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
