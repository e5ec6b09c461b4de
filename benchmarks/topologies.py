"""Loss curves of one fine-tuning in one process and shared by several in every way, drawn over each other.

Each run is a command with ``--devices`` and ``parallel``; they see the same rows in the same steps. The picture has the losses
above and their distance from those of one process below. A curve that leaves that of one process by more than rounding
explains ends the script.

    python benchmarks/topologies.py --model FOLDER --train FILE --dev FILE --svg docs/images/topologies.svg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import curves

RUNS = {
    "one process": {},
    "data 2": {"data": 2},
    "tensor 2, sequence": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "sharding 2, stage 3": {"sharding": 2, "sharding_stage": 3},
    "tensor 2, pipeline 2": {"tensor": 2, "pipeline": 2},
}
DEGREES = ("data", "tensor", "pipeline", "sharding")
TRAIN = {"batch_size": 4, "grad_accumulation": 4, "learning_rate": 1e-3, "warmup_steps": 5, "log_every": 1}
TOLERANCE = 1e-3
"""Largest relative distance of a loss from that of one process, in float32."""


def losses(options: argparse.Namespace, parallel: dict, output: Path) -> list[float]:
    """The losses of the steps of a run."""
    sections = {
        "model": {"path": str(options.model)},
        "data": {"train": str(options.train), "dev": str(options.dev), "max_length": 256, "packing": "best-fit"},
        "train": {**TRAIN, "max_steps": options.steps, "eval_every": options.steps, "save_every": options.steps},
        "output": {"dir": str(output), "samples": 0, "load_best": False},
        "parallel": parallel,
    }
    config = output.with_suffix(".yaml")
    config.write_text(json.dumps(sections), encoding="utf-8")
    devices = 1
    for name in DEGREES:
        devices *= parallel.get(name, 1)
    command = [sys.executable, "-m", "llmctl", "finetune", str(config), "--devices", str(devices)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LLMCTL_THREADS": "1"})
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def main() -> None:
    """Trains in every way, compares, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--train", type=Path, required=True, help="file of examples")
    parser.add_argument("--dev", type=Path, required=True, help="file of held-out examples")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", action="append", choices=list(RUNS), help="one of the runs; may be repeated")
    parser.add_argument("--svg", type=Path, help="file of the picture")
    options = parser.parse_args()
    chosen = {name: RUNS[name] for name in RUNS if name == "one process" or name in (options.only or RUNS)}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, parallel) in enumerate(chosen.items()):
            found[name] = losses(options, parallel, Path(folder) / f"run{number}")
            one = found["one process"]
            apart = max(abs(a - b) / b for a, b in zip(found[name], one, strict=True))
            print(
                f"{name:22} first {found[name][0]:.6f} last {found[name][-1]:.6f} largest distance {apart:.1e}",
                flush=True,
            )
            if apart > TOLERANCE:
                sys.exit(f"{name} is {apart:.1e} from one process; rounding explains {TOLERANCE:.0e}")
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(curves.draw(found), encoding="utf-8")


if __name__ == "__main__":
    main()
