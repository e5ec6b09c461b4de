"""Converting a random checkpoint: GB/s and peak memory, beside reading the file and beside transformers.

    python benchmarks/convert.py [--gigabytes 1] [--rounds 3] [--peer-python PYTHON]

The peer is transformers' ``from_pretrained`` and ``save_pretrained`` in an environment of its own, given by its Python.
Rounds are interleaved and the medians shown; files are in the system's cache for all alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

READ = """
import sys
for block in iter(lambda f=open(sys.argv[1] + "/model.safetensors", "rb", buffering=0): f.read(1 << 22), b""):
    pass
"""
CONVERT = """
import sys, llmctl.cli
try:
    llmctl.cli.main(["convert", sys.argv[1], sys.argv[2]])
except SystemExit as end:
    assert not end.code
"""
PEER = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
"""
TIMED = """
import sys, time
start = time.perf_counter()
exec(open(sys.argv.pop(1)).read())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print("TIMED", time.perf_counter() - start, int(peak) / 1e6)
"""


def make(folder: Path, gigabytes: float) -> float:
    """A random LLaMA in bfloat16 of about this size; its bytes."""
    import numpy as np

    from llmctl import plugins
    from llmctl.checkpoint import convert, save_weights

    plugin = plugins.load("llama")
    sizes = dict(hidden=2048, heads=16, kv_heads=16, ffn=5504, vocab=32000)
    per_layer = 2 * (4 * 2048**2 + 3 * 2048 * 5504)
    layers = max(1, round((gigabytes * 1e9 - 4 * 2048 * 32000) / per_layer))
    dims = plugin.card.dims_of("llama2-7b", layers=layers, **sizes)
    config = {**plugin.card.config_from_dims(dims), "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = np.random.default_rng(0)

    class Random:
        """Values that are drawn when they are written."""

        dtype = "float32"

        def __init__(self, shape):
            self.shape = shape

        def numpy(self):
            return rng.standard_normal(self.shape, dtype="f4")

    state = {tensor.name: Random(tensor.shape) for tensor in plugin.card.expand(dims)}
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder, state, renames, dtype="bfloat16", max_shard_bytes=10**12)
    return convert.open_source(folder, plugin, dims).folder.nbytes


def timed(python: str, script: str, folder: Path, *arguments: Path) -> tuple[float, float]:
    """Seconds and peak gigabytes of a script in a process of its own."""
    for target in arguments[1:]:
        shutil.rmtree(target, ignore_errors=True)
    (folder / "script.py").write_text(script, encoding="utf-8")
    command = [python, "-c", TIMED, folder / "script.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak = done.stdout.split("TIMED")[1].split()
    return float(seconds), float(peak)


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source, target = work / "source", work / "target"
        source.mkdir()
        size = make(source, given.gigabytes) / 1e9
        jobs = {
            "reading the file": (sys.executable, READ, source),
            "llmctl convert": (sys.executable, CONVERT, source, target),
        }
        if given.peer_python:
            jobs["transformers"] = (given.peer_python, PEER, source, target)
        results = {title: [] for title in jobs}
        for _ in range(given.rounds):
            for title, (python, script, *paths) in jobs.items():
                results[title].append(timed(python, script, work, *paths))
        print(f"{size:.2f} GB, medians of {given.rounds} rounds")
        print("| work | seconds | GB/s | peak memory, GB |\n|---|---|---|---|")
        for title, rows in results.items():
            seconds, peak = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {title} | {seconds:.2f} | {size / seconds:.2f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
