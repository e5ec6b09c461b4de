"""Loss curves of tuning a checkpoint, here and in transformers, peft and TRL: a row of ``CASES`` for each method.

Here a method runs as its command does, on files of examples or preferences. The peer starts from the weights, adapter or
virtual tokens that were drawn (peft reads the folder that is written here), and takes the same AdamW steps on the texts
of each update: it pads them itself, a row for each text, also where they share a row here. Both compute in float32, so the
curves part slowly; the run fails if they are further apart than rounding explains.

    python benchmarks/tuning_curves.py --model FOLDER --sft TRAIN DEV --dpo TRAIN DEV --peer-python PYTHON_WITH_TRL
"""

from __future__ import annotations

import argparse
import copy
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
TOLERANCE = {"first": 1e-4, "any": 1e-3, "after": 1e-3}
"""Largest difference of the losses of the first ten steps, of any step, and on the dev file at the end."""


@dataclass(frozen=True)
class Case:
    """A method: the command that runs it, and what its configuration says beside ``TRAIN``."""

    command: str
    rate: float
    method: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    dpo: dict = field(default_factory=dict)


LORA = {"name": "lora", "rank": 8, "alpha": 16.0}
LENGTHS = {"src_length": 96, "max_length": 256}
PAIRS = {"max_prompt_length": 192, "max_length": 480, "chat_template": "family"}
CASES = {
    "sft": Case("finetune", 1e-3, data=LENGTHS, train={"batch_size": 4, "grad_accumulation": 2}),
    "sft, packed": Case("finetune", 1e-3, data={**LENGTHS, "packing": "best-fit"}),
    "lora": Case("finetune", 5e-3, LORA, LENGTHS),
    "rslora, lora+": Case("finetune", 2e-3, {**LORA, "rslora": True, "lora_plus_ratio": 4.0}, LENGTHS),
    "dora": Case("finetune", 5e-3, {**LORA, "dora": True}, LENGTHS),
    "prefix": Case("finetune", 3e-2, {"name": "prefix", "virtual_tokens": 32}, LENGTHS),
    "dpo": Case("dpo", 1e-4, data=PAIRS),
    "dpo, lora": Case("dpo", 1e-3, LORA, PAIRS),
}


def ours(case: Case, options: argparse.Namespace, folder: Path) -> dict:
    """Trains as the command does; leaves the beginning and the texts of each update for the peer, returns the curve."""
    from llmctl import runtime, schema
    from llmctl.jobs import part
    from llmctl.train.loop import Hook

    runtime.import_paddle("the benchmark")
    files = options.sft if case.command == "finetune" else options.dpo
    ends = {"max_steps": options.steps, "eval_every": options.steps, "save_every": options.steps}
    sections = {
        "model": {"path": str(options.model)},
        "method": case.method,
        "data": {"train": str(files[0]), "dev": str(files[1]), **case.data},
        "train": {**TRAIN, **ends, "learning_rate": options.rate or case.rate, **case.train},
        "output": {"dir": str(folder / "ours"), "samples": 0, "load_best": False},
        **({"dpo": case.dpo} if case.dpo else {}),
    }
    job = part(case.command, "checks")(schema.build(part(case.command, "config"), sections), options.family)

    from llmctl.train import subject

    class Kept(Hook):
        def __init__(self):
            self.updates = []

        def on_update(self, update):
            self.updates.append(update)

    (folder / "initial").mkdir()
    subject.load(job, None).write(folder / "initial", "float32")
    kept = Kept()
    info = part(case.command, "run")(job, [kept])
    steps, dev = TEXTS[case.command](job, part(case.command, "prepare")(job).task, options.steps)
    left = {"steps": steps, "dev": dev, "rates": [update.lr for update in kept.updates]}
    (folder / "texts.json").write_text(json.dumps(left), encoding="utf-8")
    return {
        "loss": [update.loss for update in kept.updates],
        "grad_norm": [update.grad_norm for update in kept.updates],
        "before": info["before"]["metrics"],
        "after": info["after"]["metrics"],
        "what": f"llmctl {info['versions']['llmctl']}",
    }


def examples(job, task, count: int) -> tuple[list, list]:
    """Ids and labels (as long, not shifted) of the texts of each update, and of the dev file."""
    from llmctl.data.encoding import Encoder

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
    held_out = encoder.encode_all(job.dev)[0]
    return steps, [{"ids": row.input_ids, "labels": [-100, *row.labels[:-1]]} for row in held_out]


def pairs(job, task, count: int) -> tuple[list, list]:
    """Prompt, chosen and rejected answer of the pairs of each update, and of the dev file."""
    from llmctl.data.pairs import PairEncoder

    encoder = PairEncoder(job.tokenizer, job.config.data.max_prompt_length, job.config.data.max_length)
    train, dev = (
        [
            {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in encoder.encode_all(rows)[0]
        ]
        for rows in (job.train, job.dev)
    )
    numbers = [[batch.arrays["pair"] for batch in task.micro_batches(step)] for step in range(1, count + 1)]
    return [[train[i] for batch in batches for i in batch] for batches in numbers], dev


TEXTS = {"finetune": examples, "dpo": pairs}


def peer(case: Case, options: argparse.Namespace, folder: Path) -> dict:
    """The same steps with transformers, peft and TRL on torch."""
    import peft
    import torch
    import transformers
    import trl

    torch.set_num_threads(options.threads)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    adapted = "name" in case.method
    start = options.model if adapted else folder / "initial"
    model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    if adapted:
        # PeftModel.from_pretrained refuses to go on training virtual tokens.
        config = peft.PeftConfig.from_pretrained(folder / "initial")
        config.inference_mode = False
        model = peft.get_peft_model(model, config)
        peft.set_peft_model_state_dict(model, peft.load_peft_weights(folder / "initial"))
    loss_of = (peer_examples if case.command == "finetune" else peer_pairs)(model, torch)
    optimizer = torch.optim.AdamW(peer_groups(model, case), betas=(0.9, 0.999), eps=1e-8)
    factors = [group["lr"] for group in optimizer.param_groups]
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = peer_evaluation(model, loss_of, texts["dev"], torch)
    losses, norms = [], []
    model.train()
    for rows, rate in zip(texts["steps"], texts["rates"], strict=True):
        loss, _ = loss_of(rows)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(moving, TRAIN["max_grad_norm"])))
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    after = peer_evaluation(model, loss_of, texts["dev"], torch)
    names = ", ".join(f"{module.__name__} {module.__version__}" for module in (transformers, peft, trl, torch))
    return {"loss": losses, "grad_norm": norms, "before": before, "after": after, "what": names}


def peer_groups(model, case: Case) -> list[dict]:
    """Parameters that move, by decay and learning rate; norms and magnitudes have no decay, LoRA+'s B a larger rate."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if "norm" in name or "magnitude" in name else TRAIN["weight_decay"]
            factor = case.method.get("lora_plus_ratio", 1.0) if "lora_B" in name else 1.0
            groups.setdefault((decay, factor), []).append(parameter)
    return [{"params": found, "weight_decay": decay, "lr": factor} for (decay, factor), found in groups.items()]


def peer_examples(model, torch):
    """Rows -> transformers' loss, the mean over labels, and their number; texts padded on the right."""

    def loss(rows: list[dict]):
        width = max(len(row["ids"]) for row in rows)
        columns = {
            "input_ids": [row["ids"] + [0] * (width - len(row["ids"])) for row in rows],
            "attention_mask": [[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows],
            "labels": [row["labels"] + [-100] * (width - len(row["ids"])) for row in rows],
        }
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        asked = sum(label != -100 for row in rows for label in row["labels"])
        return model(**batch).loss, {"eval_loss": asked}

    return loss


def peer_pairs(model, torch):
    """Rows -> the loss of TRL's trainer, the mean over pairs, and their number; a row for each answer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, "<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(), beta=0.1, use_cpu=True, report_to=[], bf16=False, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    # Its own data is never asked for: batches are made below, as its collator does.
    unused = Dataset.from_list([{"prompt": "<pad>", "chosen": "<pad>", "rejected": "</s>"}])
    reference = None if hasattr(model, "peft_config") else copy.deepcopy(model)
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=settings, train_dataset=unused, processing_class=tokenizer
    )

    def loss(rows: list[dict]):
        texts = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
        width = max(len(prompt) + len(answer) for prompt, answer in texts)
        columns = {"input_ids": [], "attention_mask": [], "completion_mask": []}
        for prompt, answer in texts:
            pad = [0] * (width - len(prompt) - len(answer))
            columns["input_ids"].append([*prompt, *answer, *pad])
            columns["attention_mask"].append([1] * (len(prompt) + len(answer)) + pad)
            columns["completion_mask"].append([0] * len(prompt) + [1] * len(answer) + pad)
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        found = trainer.compute_loss(model, batch)
        metrics = trainer._metrics["train" if model.training else "eval"]
        return found, {"eval_loss": len(rows), "rewards/accuracies": (metrics["rewards/accuracies"][-1], len(rows))}

    return loss


def peer_evaluation(model, loss_of, rows: list[dict], torch) -> dict:
    """Means over the dev file: of the loss, and of what is reported beside it."""
    model.eval()
    totals: dict[str, list[float]] = {}
    with torch.no_grad():
        for at in range(0, len(rows), 8):
            loss, sizes = loss_of(rows[at : at + 8])
            for name, size in sizes.items():
                value, weight = size if isinstance(size, tuple) else (float(loss), size)
                totals[name] = [a + b for a, b in zip(totals.get(name, [0, 0]), (value * weight, weight), strict=True)]
    return {name: total / weight for name, (total, weight) in totals.items()}


def compare(name: str, mine: dict, other: dict) -> dict[str, float]:
    """Prints both curves; the largest differences."""
    apart = [abs(a - b) for a, b in zip(mine["loss"], other["loss"], strict=True)]
    print(f"\n{name}; peer: {other['what']}")
    print(f"{'step':>6} {'llmctl':>10} {'peer':>10} {'difference':>12} {'gradient norms':>20}")
    count = len(apart)
    for step in sorted({1, 2, 5, 10, 20, 50, *range(100, count + 1, 100), count}):
        if step <= count:
            (a, b), (n, m) = ((mine[key][step - 1], other[key][step - 1]) for key in ("loss", "grad_norm"))
            print(f"{step:6} {a:10.5f} {b:10.5f} {abs(a - b):12.1e} {n:10.4f} {m:9.4f}")
    for key in other["after"]:
        rows = " -> ".join(f"{mine[when][key]:.5f} and {other[when][key]:.5f}" for when in ("before", "after"))
        print(f"{key} on the dev file: {rows}")
    return {
        "first": max(apart[:10]),
        "any": max(apart),
        "mean": sum(apart) / count,
        "before": abs(mine["before"]["eval_loss"] - other["before"]["eval_loss"]),
        "after": abs(mine["after"]["eval_loss"] - other["after"]["eval_loss"]),
    }


def keep(name: str, sides: dict[str, dict], folder: Path) -> None:
    """Writes both curves as folders of runs, and a page that shows them in one picture."""
    from llmctl.report.write import write

    made = []
    for side, curve in sides.items():
        made.append(folder / name.replace(", ", "-") / side)
        made[-1].mkdir(parents=True, exist_ok=True)
        rows = [{"step": i, "loss": loss, "grad_norm": norm}
                for i, (loss, norm) in enumerate(zip(curve["loss"], curve["grad_norm"], strict=True), 1)]  # fmt: skip
        rows.append({"step": len(rows), **curve["after"]})
        (made[-1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        info = {"family": curve["what"], "after": {"metrics": curve["after"]}, "before": {"metrics": curve["before"]}}
        (made[-1] / "run.json").write_text(json.dumps({**info, "steps": len(rows) - 1}), encoding="utf-8")
    print(f"{write(made, folder / (name.replace(', ', '-') + '.html'))} written")


def main() -> int:
    """Runs both sides of each method and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sft", type=Path, nargs=2, metavar=("TRAIN", "DEV"))
    parser.add_argument("--dpo", type=Path, nargs=2, metavar=("TRAIN", "DEV"))
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="one method; may be repeated")
    parser.add_argument("--family", default="auto")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, help="peak learning rate instead of the method's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="folder for curves and pages that show both")
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        curve = SIDES[options.side](CASES[options.case[-1]], options, options.folder)
        (options.folder / f"{options.side}.json").write_text(json.dumps(curve), encoding="utf-8")
        return 0
    if not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch, transformers, peft and trl")
    offered = {"finetune": options.sft, "dpo": options.dpo}
    names = [name for name in options.case or CASES if offered[CASES[name].command]]
    table = {name: _run(name, options) for name in names}
    print(f"\n{'largest difference':<16}" + "".join(f"{key:>12}" for key in next(iter(table.values()))))
    for name, found in table.items():
        print(f"{name:<18}" + "".join(f"{value:12.1e}" for value in found.values()))
    wrong = [name for name, found in table.items() if any(found[key] > limit for key, limit in TOLERANCE.items())]
    print(f"further apart than allowed: {', '.join(wrong)}" if wrong else "the curves agree")
    return 1 if wrong else 0


def _run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Both sides of one method, in a process each; their largest differences."""
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        for side, python in (("ours", sys.executable), ("peer", options.peer_python)):
            command = [python, __file__, *sys.argv[1:], "--case", name, "--side", side, "--folder", folder]
            threads = str(options.threads)
            environment = {**os.environ, "OMP_NUM_THREADS": threads, "LLMCTL_THREADS": threads}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {side}:\n{done.stdout[-4000:]}")
            sides[side] = json.loads((Path(folder) / f"{side}.json").read_text(encoding="utf-8"))
    if options.output:
        keep(name, {"llmctl": sides["ours"], "peer": sides["peer"]}, options.output)
    return compare(name, sides["ours"], sides["peer"])


SIDES = {"ours": ours, "peer": peer}


if __name__ == "__main__":
    sys.exit(main())
