"""Peak memory of loading a checkpoint: a synthetic bfloat16 folder is filled into a float32 layer in a fresh process.

Run it from the repository's root: ``python benchmarks/load_memory.py [--megabytes 400] [--source bfloat16]``. Claim: the
peak above the bare layer is the largest tensor, plus a few megabytes of chunk.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HIDDEN = 2048
MB = 1 << 20


def shapes(megabytes: int) -> dict[str, tuple[int, int]]:
    """Float32 tensors of about so many megabytes in all: an embedding of a quarter, the rest square."""
    rows = megabytes * MB // 4 // (4 * HIDDEN)
    count = max(1, 3 * megabytes * MB // 4 // (4 * HIDDEN * HIDDEN))
    return {"embed.weight": (rows, HIDDEN), **{f"layers.{i}.weight": (HIDDEN, HIDDEN) for i in range(count)}}


def write(folder: str, megabytes: int, dtype: str) -> None:
    """Writes random weights of these shapes under their own names."""
    from llmctl.card.weight_map import WeightMapping
    from llmctl.checkpoint import save_weights

    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes(megabytes).items()}
    save_weights(folder, state, [WeightMapping(name, name) for name in state], dtype, max_shard_bytes=100 * MB)


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now or ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def load(folder: str, megabytes: int) -> dict[str, float]:
    """Loads the folder into a layer, linears transposed; bytes at each stage."""
    import paddle

    from llmctl.card.weight_map import WeightMapping
    from llmctl.checkpoint import load_weights

    class Model(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in shapes(megabytes).items():
                value = shape if name.startswith("embed") else shape[::-1]
                self.add_parameter(name.replace(".", "_"), paddle.create_parameter(list(value), "float32"))

    gc.collect()
    bare = resident("VmRSS")
    model = Model()
    renames = [WeightMapping(name, name.replace(".", "_"), not name.startswith("embed")) for name in shapes(megabytes)]
    built = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    load_weights(folder, model, renames)
    sizes = [4 * int(np.prod(shape)) for shape in shapes(megabytes).values()]
    return {
        "model_mb": sum(sizes) / MB,
        "largest_tensor_mb": max(sizes) / MB,
        "layer_rss_mb": (built - bare) / MB,
        "peak_minus_bare_mb": (resident("VmHWM") - bare) / MB,
        "peak_over_model": (resident("VmHWM") - bare) / sum(sizes),
        "peak_minus_layer_in_largest_tensors": (resident("VmHWM") - built) / max(sizes),
    }


def main() -> None:
    """Writes a folder, loads it in a fresh process, prints the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="size of the float32 model")
    parser.add_argument("--source", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(load(arguments.folder, arguments.megabytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(folder, arguments.megabytes, arguments.source)
        command = [sys.executable, __file__, "--megabytes", str(arguments.megabytes), "--folder", folder]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    print(json.dumps({"source": arguments.source, **{k: round(v, 3) for k, v in measured.items()}}, indent=2))


if __name__ == "__main__":
    main()
