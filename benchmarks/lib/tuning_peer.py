"""The peer's side of ``tuning_curves.py``: the steps that were taken there, with transformers, peft and TRL on torch.

    python benchmarks/lib/tuning_peer.py FOLDER NAME

FOLDER holds ``task.json``, and in ``initial`` the checkpoint or adapter that training begins with; ``NAME.json`` is written
there. With ``shaken`` for a name, what is trained begins a rounding error (1e-7 of each number) away from there.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models

ROWS = 8
"""Texts or pairs of a forward pass in evaluations."""


def main(folder: Path, name: str) -> None:
    """Trains, and writes losses, gradient norms and evaluations."""
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    model = load(folder, task)
    loss_of = {"finetune": examples, "dpo": pairs}[task["command"]](model)
    optimizer = torch.optim.AdamW(groups(model, task), betas=(0.9, 0.999), eps=1e-8)
    factors = [group["lr"] for group in optimizer.param_groups]
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "shaken":
        shake(moving)
    losses, norms, evaluations = [], [], [(0, evaluation(model, loss_of, task["dev"]))]
    for step, (rows, rate) in enumerate(zip(task["steps"], task["rates"], strict=True), 1):
        model.train()
        loss, _ = loss_of(rows)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(moving, task["max_grad_norm"])))
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step in task["evaluated"]:
            evaluations.append((step, evaluation(model, loss_of, task["dev"])))
    names = ", ".join(f"{module.__name__} {module.__version__}" for module in (transformers, peft, trl, torch))
    curve = {"loss": losses, "grad_norm": norms, "evaluations": evaluations, "what": names}
    (folder / f"{name}.json").write_text(json.dumps(curve), encoding="utf-8")


def load(folder: Path, task: dict):
    """The model that training begins with, adapters in motion."""
    start = task["model"] if task["adapted"] else folder / "initial"
    model = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    if not task["adapted"]:
        return model
    # PeftModel.from_pretrained refuses to go on training virtual tokens.
    config = peft.PeftConfig.from_pretrained(folder / "initial")
    config.inference_mode = False
    model = peft.get_peft_model(model, config)
    peft.set_peft_model_state_dict(model, peft.load_peft_weights(folder / "initial"))
    return model


@torch.no_grad()
def shake(parameters: list) -> None:
    """Changes every number by about its rounding error."""
    torch.manual_seed(0)
    for parameter in parameters:
        parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))


def groups(model, task: dict) -> list[dict]:
    """Parameters that move, by decay and learning rate; norms and magnitudes have no decay, LoRA+'s B a larger rate."""
    found: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if "norm" in name or "magnitude" in name else task["weight_decay"]
            found.setdefault((decay, task["rate_of_b"] if "lora_B" in name else 1.0), []).append(parameter)
    return [{"params": part, "weight_decay": decay, "lr": factor} for (decay, factor), part in found.items()]


def examples(model):
    """Rows -> transformers' loss, the mean over labels, and their number; texts padded on the right."""

    def loss(rows: list[dict]):
        width = max(len(row["ids"]) for row in rows)
        columns = {
            "input_ids": [row["ids"] + [0] * (width - len(row["ids"])) for row in rows],
            "attention_mask": [[1] * len(row["ids"]) + [0] * (width - len(row["ids"])) for row in rows],
            "labels": [row["labels"] + [-100] * (width - len(row["ids"])) for row in rows],
        }
        found = model(**{name: torch.tensor(values) for name, values in columns.items()}).loss
        asked = sum(label != -100 for row in rows for label in row["labels"])
        return found, {"eval_loss": (float(found), asked)}

    return loss


def pairs(model):
    """Rows -> the loss of TRL's trainer, the mean over pairs, and their number; a row for each answer."""
    trainer = trainer_of(model)

    def loss(rows: list[dict]):
        texts = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
        width = max(len(prompt) + len(answer) for prompt, answer in texts)
        columns = {"input_ids": [], "attention_mask": [], "completion_mask": []}
        for prompt, answer in texts:
            pad = [0] * (width - len(prompt) - len(answer))
            columns["input_ids"].append([*prompt, *answer, *pad])
            columns["attention_mask"].append([1] * (len(prompt) + len(answer)) + pad)
            columns["completion_mask"].append([0] * len(prompt) + [1] * len(answer) + pad)
        found = trainer.compute_loss(model, {name: torch.tensor(values) for name, values in columns.items()})
        right = trainer._metrics["train" if model.training else "eval"]["rewards/accuracies"][-1]
        return found, {"eval_loss": (float(found), len(rows)), "rewards/accuracies": (right, len(rows))}

    return loss


def trainer_of(model):
    """TRL's trainer around a model, with a frozen copy of it or its adapters beside."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, "<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    settings = trl.DPOConfig(
        output_dir=tempfile.mkdtemp(), beta=0.1, use_cpu=True, report_to=[], bf16=False, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    # Its own data is never asked for: batches are made as its collator does.
    unused = Dataset.from_list([{"prompt": "<pad>", "chosen": "<pad>", "rejected": "</s>"}])
    reference = None if hasattr(model, "peft_config") else copy.deepcopy(model)
    return trl.DPOTrainer(
        model=model, ref_model=reference, args=settings, train_dataset=unused, processing_class=tokenizer
    )


@torch.no_grad()
def evaluation(model, loss_of, rows: list[dict]) -> dict[str, float]:
    """Means over the dev file: of the loss, and of what is reported beside it."""
    model.eval()
    totals: dict[str, list[float]] = {}
    for at in range(0, len(rows), ROWS):
        for name, (value, weight) in loss_of(rows[at : at + ROWS])[1].items():
            before = totals.get(name, [0.0, 0])
            totals[name] = [before[0] + value * weight, before[1] + weight]
    return {name: total / weight for name, (total, weight) in totals.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
