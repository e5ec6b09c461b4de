"""Records what TRL's trainer computes of a batch of pairs: losses, rewards, gradients, for every loss that it has.

``python tools/goldens/make_dpo_golden.py`` makes a tiny random LLaMA and another as its reference, runs the trainer in float32 on
the CPU and writes tests/goldens/dpo. It needs torch, transformers and trl, which nothing else here does; docs/goldens.md
says which versions. TRL has neither ``kto_pair`` nor smoothing of ``sigmoid``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "dpo"
LOSSES = ("sigmoid", "hinge", "ipo", "sppo_hard", "nca_pair")
SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = ((5, 3, 6), (2, 7, 1), (6, 4, 4), (3, 1, 5))
"""Tokens of prompt, chosen and rejected answer, without their ends."""
BETA = 0.15
KEPT = "sigmoid"
"""The loss whose gradients are kept whole; of the others the norm of each tensor's."""


def model(seed: int) -> Any:
    """A random model; norms are random too, so that none hides a mistake."""
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **SPECIAL))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            mean = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(mean + 0.3 * torch.randn(parameter.shape, generator=generator))
    return made.float()


def tokenizer() -> Any:
    """One that writes the id i as t<i>."""
    names = {0: "<pad>", 1: "<s>", 2: "</s>"}
    plain = Tokenizer(models.WordLevel({names.get(i, f"t{i}"): i for i in range(SIZES["vocab_size"])}, "<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def rows() -> list[dict[str, str]]:
    """Random pairs as texts."""
    rng = np.random.default_rng(3)
    made = []
    for sizes in LENGTHS:
        texts = [" ".join(f"t{i}" for i in rng.integers(3, SIZES["vocab_size"], n)) for n in sizes]
        made.append({"prompt": texts[0], "chosen": f" {texts[1]}", "rejected": f" {texts[2]}"})
    return made


def run(loss: str, policy: Any, reference: Any, scratch: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The batch, and what the trainer makes of it."""
    settings = trl.DPOConfig(
        output_dir=scratch, loss_type=[loss], beta=BETA, use_cpu=True, report_to=[], bf16=False, disable_tqdm=True,
        per_device_train_batch_size=len(LENGTHS), gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=policy, ref_model=reference, args=settings, train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer(),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    policy.zero_grad()
    value = trainer.compute_loss(policy, batch)
    value.backward()
    arrays = {name: batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask")}
    reported = {name: float(values[-1]) for name, values in trainer._metrics["train"].items() if "/" in name}
    gradients = {name: parameter.grad.numpy().copy() for name, parameter in policy.named_parameters()}
    found = {
        "loss": float(value),
        "means": {name: reported[name] for name in reported if name.startswith(("rewards/", "logps/"))},
        "gradient_norms": {name: float(np.linalg.norm(gradient)) for name, gradient in gradients.items()},
    }
    if loss == KEPT:
        arrays |= {f"gradient/{name}": gradient for name, gradient in gradients.items()}
    return arrays, found


def main() -> int:
    """Writes the folder; 0."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    policy, reference = model(1), model(2)
    for made, folder in ((policy, FOLDER), (reference, FOLDER / "reference")):
        made.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
    arrays: dict[str, np.ndarray] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        for loss in LOSSES:
            found, losses[loss] = run(loss, policy, reference, scratch)
            assert all(np.array_equal(found[name], arrays.get(name, found[name])) for name in found)
            arrays |= found
    np.savez_compressed(FOLDER / "golden.npz", **arrays)
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    case = {"what": "TRL's DPOTrainer on one batch, chosen rows before rejected ones", "versions": versions,
            "beta": BETA, "losses": losses}  # fmt: skip
    (FOLDER / "case.json").write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
