"""Peak memory of quantizing a model of a billion random parameters, beside the size of its file.

The file is in bfloat16 and mapped, so its pages count as memory of the process while there is room for them. A layer that is done leaves
its codes in memory; ``--layers`` takes fewer layers than the model has, because one takes minutes.

    python benchmarks/quantize_memory.py --text FILE --tokenizer FOLDER --layers 2
"""

from __future__ import annotations

import argparse
import json
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


def resident(process: int) -> dict[str, int]:
    """Bytes of a process: all, its own pages, and those of files; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    wanted = ("VmHWM", "RssAnon", "RssFile")
    return {name: int(fields[name].split()[0]) * 1024 for name in wanted if name in fields}


def main() -> int:
    """Prints a table; 1 if the peak is too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a folder with a tokenizer of at most 32,000 words"
    )
    parser.add_argument("--size", choices=list(random_llama.SIZES), default="1b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--method", default="gptq")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = prepared(options, Path(name))
        command = [
            sys.executable, "-m", "llmctl", "quantize", model, "--method", options.method, "--calibration", options.text,
            "--tokens", options.tokens, "--max-kl", 1000, "--output", Path(name, "quantized"),
        ]  # fmt: skip
        start, most = time.monotonic(), dict[str, int]()
        process = subprocess.Popen(list(map(str, command)))
        while process.poll() is None:
            most = {field: max(most.get(field, 0), value) for field, value in resident(process.pid).items()} or most
            time.sleep(PAUSE)
        if process.returncode:
            return process.returncode
        mapped = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    found = {"layers": options.layers, "tokens": options.tokens, "model": mapped, "seconds": time.monotonic() - start}
    print(json.dumps({**found, **most, "beside_the_model": most["VmHWM"] - mapped}))
    return int(most["VmHWM"] - mapped > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
