"""Loss curves of tuning a checkpoint, here and in transformers, peft and TRL: a row of ``CASES`` for each method.

Here a method runs as its command does, on files of examples or preferences. The peer starts from the weights, adapter or
virtual tokens that were drawn (peft reads the folder that is written here), and takes the same AdamW steps on the texts
of each update (``lib/tuning_peer.py``): it pads them itself, a row for each text, also where they share a row here. Both compute
in float32, so the curves part slowly; the run fails if they are further apart than ``TOLERANCE``. With ``--control`` the peer
runs once more from a beginning that is a rounding error away: how far it comes from itself is what rounding explains.

    python benchmarks/tuning_curves.py --model FOLDER --sft TRAIN DEV --dpo TRAIN DEV --peer-python PYTHON_WITH_TRL
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

TRAIN = {
    "batch_size": 8, "schedule": "cosine", "warmup_ratio": 0.05, "weight_decay": 0.01, "max_grad_norm": 1.0,
    "log_every": 50,
}  # fmt: skip
TOLERANCE = {"first": 1e-4, "any": 1e-3, "dev": 1e-3}
"""Largest difference of the losses of the first ten steps, of any step, and on the dev file whenever it is measured."""
EVALUATIONS = 6
"""Of the dev file, evenly over the run, beside the one before it."""


@dataclass(frozen=True)
class Case:
    """A method: the command that runs it, and what its configuration says beside ``TRAIN``."""

    command: str
    rate: float
    method: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    steps: int = 300


LORA = {"name": "lora", "rank": 8, "alpha": 16.0}
LENGTHS = {"src_length": 96, "max_length": 256}
PAIRS = {"max_prompt_length": 96, "max_length": 480, "chat_template": "family"}
CASES = {
    "sft": Case("finetune", 1e-3, data=LENGTHS, train={"batch_size": 4, "grad_accumulation": 2}),
    "sft, packed": Case("finetune", 1e-3, data={**LENGTHS, "packing": "best-fit"}),
    "lora": Case("finetune", 5e-3, LORA, LENGTHS),
    "rslora, lora+": Case("finetune", 2e-3, {**LORA, "rslora": True, "lora_plus_ratio": 4.0}, LENGTHS),
    "dora": Case("finetune", 5e-3, {**LORA, "dora": True}, LENGTHS),
    "prefix": Case("finetune", 3e-2, {"name": "prefix", "virtual_tokens": 32}, LENGTHS),
    "dpo": Case("dpo", 5e-5, data=PAIRS, train={"batch_size": 16}, steps=102),
    "dpo, lora": Case("dpo", 3e-4, LORA, PAIRS, {"batch_size": 16}, 102),
}


def ours(case: Case, options: argparse.Namespace, folder: Path) -> dict:
    """Trains as the command does; leaves the beginning and the texts of each update for the peer, returns the curve."""
    from llmctl import runtime
    from llmctl.config import schema
    from llmctl.jobs import registry
    from llmctl.train import trainer
    from llmctl.train.callbacks.base import Callback
    from llmctl.train.trainable import base

    class Kept(Callback):
        def __init__(self):
            self.updates, self.evaluations = [], []

        def on_step_end(self, update):
            self.updates.append(update)

        def on_evaluate(self, step, epoch, metrics):
            self.evaluations.append((step, metrics))

    command = registry.COMMANDS[case.command]
    config = schema.build(registry.resolve(command.config), sections(case, options, folder))
    job = registry.resolve(command.check)(config, options.family)
    runtime.import_paddle("the benchmark")
    prepare = registry.resolve(command.method).prepare
    (folder / "initial").mkdir()
    base.load(job, None).save(folder / "initial", "float32")
    kept = Kept()
    info = trainer.run(job, [kept])
    steps, dev = TEXTS[case.command](job, prepare(job).task, len(kept.updates))
    task = {
        "command": case.command,
        "model": str(options.model),
        "adapted": bool(case.method),
        "threads": options.threads,
        "weight_decay": TRAIN["weight_decay"],
        "max_grad_norm": TRAIN["max_grad_norm"],
        "rate_of_b": case.method.get("lora_plus_ratio", 1.0),
        "rates": [update.lr for update in kept.updates],
        "evaluated": [step for step, _ in kept.evaluations],
        "steps": steps,
        "dev": dev,
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return {
        "loss": [update.loss for update in kept.updates],
        "grad_norm": [update.grad_norm for update in kept.updates],
        "evaluations": [(0, info["before"]["metrics"]), *kept.evaluations],
        "what": f"llmctl {info['versions']['llmctl']}",
    }


def sections(case: Case, options: argparse.Namespace, folder: Path) -> dict:
    """The configuration of a case."""
    files, steps = getattr(options, case.command), options.steps or case.steps
    ends = {"max_steps": steps, "eval_every": max(1, steps // EVALUATIONS), "save_every": steps}
    return {
        "model": {"path": str(options.model)},
        "method": case.method,
        "data": {"train": str(files[0]), "dev": str(files[1]), **case.data},
        "train": {**TRAIN, **ends, "learning_rate": options.rate or case.rate, **case.train},
        "output": {"dir": str(folder / "ours"), "samples": 0, "load_best": False},
    }


def examples(job, task, count: int) -> tuple[list, list]:
    """Ids and labels (as long, not shifted) of the texts of each update, and of the dev file."""
    from llmctl.data.encoded import encode
    from llmctl.data.sft.encoding import Encoder

    def texts(batch) -> list:
        found = []
        for i in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][i].sum())
            ids, asked = batch["input_ids"][i, :length].tolist(), batch["labels"][i, :length].tolist()
            positions = batch["position_ids"][i, :length].tolist() if "position_ids" in batch else [*range(length)]
            starts = [at for at, position in enumerate(positions) if position == 0]
            for start, end in zip(starts, [*starts[1:], length], strict=True):
                found.append({"ids": ids[start:end], "labels": [-100, *asked[start : end - 1]]})
        return found

    steps = [
        [text for batch in task.micro_batches(step) for text in texts(batch.arrays)] for step in range(1, count + 1)
    ]
    encoder = Encoder(job.tokenizer, job.config.data.src_length, job.config.data.max_length)
    held_out = encode(job.dev, encoder.coder).rows
    return steps, [{"ids": row.input_ids, "labels": [-100, *row.labels[:-1]]} for row in held_out]


def pairs(job, task, count: int) -> tuple[list, list]:
    """Prompt, chosen and rejected answer of the pairs of each update, and of the dev file."""
    from llmctl.data.encoded import encode
    from llmctl.data.preference.encoding import PairEncoder

    encoder = PairEncoder(job.tokenizer, job.config.data.max_prompt_length, job.config.data.max_length)
    train, dev = (
        [
            {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in encode(rows, encoder.coder()).rows
        ]
        for rows in (job.train, job.dev)
    )
    numbers = [[batch.arrays["pair"] for batch in task.micro_batches(step)] for step in range(1, count + 1)]
    return [[train[i] for batch in batches for i in batch] for batches in numbers], dev


TEXTS = {"finetune": examples, "dpo": pairs}


def compare(name: str, mine: dict, other: dict) -> dict[str, float]:
    """Prints both curves; the largest differences."""
    apart = differences(mine, other)
    print(f"\n{name}; peer: {other['what']}")
    print(f"{'step':>6} {'llmctl':>10} {'peer':>10} {'difference':>12} {'gradient norms':>20}")
    count = len(apart)
    for step in sorted({1, 2, 5, 10, 20, 50, *range(100, count + 1, 100), count}):
        if step <= count:
            (a, b), (n, m) = ((mine[key][step - 1], other[key][step - 1]) for key in ("loss", "grad_norm"))
            print(f"{step:6} {a:10.5f} {b:10.5f} {abs(a - b):12.1e} {n:10.4f} {m:9.4f}")
    print("on the dev file, llmctl and peer:")
    for (step, here), (_, there) in zip(mine["evaluations"], other["evaluations"], strict=True):
        shown = "  ".join(f"{key} {here[key]:.5f} {value:.5f}" for key, value in there.items())
        print(f"{step:6} {shown}")
    evaluated = [
        abs(here["eval_loss"] - there["eval_loss"])
        for (_, here), (_, there) in zip(mine["evaluations"], other["evaluations"], strict=True)
    ]
    return {"first": max(apart[:10]), "any": max(apart), "mean": sum(apart) / count, "dev": max(evaluated)}


def differences(one: dict, other: dict) -> list[float]:
    """Of the losses of each update."""
    return [abs(a - b) for a, b in zip(one["loss"], other["loss"], strict=True)]


def keep(name: str, sides: dict[str, dict], folder: Path) -> None:
    """Writes both curves as folders of runs, and a page that shows them in one picture."""
    from llmctl.report.write import write

    made = []
    for side, curve in sides.items():
        made.append(folder / name.replace(", ", "-") / side)
        made[-1].mkdir(parents=True, exist_ok=True)
        rows = [{"step": i, "loss": loss, "grad_norm": norm}
                for i, (loss, norm) in enumerate(zip(curve["loss"], curve["grad_norm"], strict=True), 1)]  # fmt: skip
        rows += [{"step": step, **metrics} for step, metrics in curve["evaluations"]]
        (made[-1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        info = {"family": curve["what"], "outcome": {"state": "finished"}}
        (made[-1] / "run.json").write_text(json.dumps(info), encoding="utf-8")
    print(f"{write(made, folder / (name.replace(', ', '-') + '.html'))} written")


def main() -> int:
    """Runs both sides of each method and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sft", dest="finetune", type=Path, nargs=2, metavar=("TRAIN", "DEV"))
    parser.add_argument("--dpo", type=Path, nargs=2, metavar=("TRAIN", "DEV"))
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="one method; may be repeated")
    parser.add_argument("--family", default="auto")
    parser.add_argument("--steps", type=int, help="instead of the method's")
    parser.add_argument("--rate", type=float, help="peak learning rate instead of the method's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--control", action="store_true", help="also how far the peer comes from itself by rounding")
    parser.add_argument("--output", type=Path, help="folder for curves and pages that show both")
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        curve = ours(CASES[options.case[-1]], options, options.folder)
        (options.folder / "ours.json").write_text(json.dumps(curve), encoding="utf-8")
        return 0
    if not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch, transformers, peft and trl")
    names = [name for name in options.case or CASES if getattr(options, CASES[name].command)]
    table = {name: both(name, options) for name in names}
    print(f"\n{'largest differences':<20}" + "".join(f"{key:>10}" for key in next(iter(table.values()))))
    for name, found in table.items():
        print(f"{name:<20}" + "".join(f"{value:10.1e}" for value in found.values()))
    wrong = [name for name, found in table.items() if any(found[key] > limit for key, limit in TOLERANCE.items())]
    print(f"further apart than allowed: {', '.join(wrong)}" if wrong else "the curves agree")
    return 1 if wrong else 0


def both(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Both sides of one method, in a process each; their largest differences."""
    sides, threads = {}, str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "LLMCTL_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        commands = {"ours": [sys.executable, __file__, *sys.argv[1:], "--case", name, "--folder", folder]}
        for side in ("peer", "shaken") if options.control else ("peer",):
            commands[side] = [
                options.peer_python,
                str(Path(__file__).with_name("lib") / "tuning_peer.py"),
                folder,
                side,
            ]
        for side, command in commands.items():
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {side}:\n{done.stdout[-4000:]}")
            sides[side] = json.loads((Path(folder) / f"{side}.json").read_text(encoding="utf-8"))
    if options.output:
        keep(name, {"llmctl": sides["ours"], "peer": sides["peer"]}, options.output)
    control = {"control": max(differences(sides["peer"], sides["shaken"]))} if options.control else {}
    return {**compare(name, sides["ours"], sides["peer"]), **control}


if __name__ == "__main__":
    sys.exit(main())
