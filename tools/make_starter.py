"""Makes the starter of the llama plugin: data, tokenizer, and a small base model trained from nothing on our own text.

Run ``python tools/make_starter.py data`` for the fine-tuning examples, ``model`` for the tokenizer and the base model
(some ten minutes on two cores), ``check`` to compare the committed files with their checksums and the data with what
the generator writes. The texts are in ``starter_text.py``; the fine-tuning recipe lies in the plugin's ``recipes``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import starter_text

STARTER = Path(__file__).resolve().parents[1] / "plugins" / "llama" / "llmctl_llama" / "starter"
SUMS = "SHA256SUMS"

SEED, DEV_SEED, BASE_SEED = 7, 8, 9
TRAIN_COUNT, DEV_COUNT = 4000, 200

VOCAB = 768
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|assistant|>' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SIZES = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 4, "ffn": 352, "max_positions": 512, "tied": True}
INIT_STD = 0.08
"""Four times the usual one: at this width attention learns to look up within a few hundred updates, not thousands."""
STEPS, ROWS, PEAK, WARMUP = 1500, 32, 2e-3, 50


def write_data(folder: Path) -> None:
    """Writes train.jsonl and dev.jsonl; no source of one is in the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, count, held_out in (("train", SEED, TRAIN_COUNT, False), ("dev", DEV_SEED, DEV_COUNT, True)):
        lines = [json.dumps(row) + "\n" for row in starter_text.rewrites(seed, count, held_out)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_tokenizer() -> Any:
    """A byte-level BPE of the little world's words; every text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(starter_text.base_documents(BASE_SEED, 4000))
    texts += [row["src"] for row in starter_text.rewrites(SEED, 2000, held_out=False)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json with the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "additional_special_tokens": list(SPECIAL[3:]),
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": SIZES["max_positions"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Documents:
    """Plain documents as a task of the training loop: each is seen once, and every token but the first is a label."""

    fingerprint = "starter"

    def __init__(self, tokenizer: Any, steps: int, rows: int) -> None:
        bos, eos = (tokenizer.token_to_id(SPECIAL[i]) for i in (1, 2))
        texts = list(starter_text.base_documents(BASE_SEED, steps * rows))
        encoded = [[bos, *row.ids, eos] for row in tokenizer.encode_batch(texts)]
        self.batches = _by_length(encoded, rows)
        self.steps_per_epoch = steps

    def micro_batches(self, step: int) -> list[Any]:
        import numpy as np

        from llmctl.train.task import Batch

        rows = self.batches[step - 1]
        width = max(map(len, rows)) - 1
        ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -100, np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row) - 1] = row[:-1]
            labels[i, : len(row) - 1] = row[1:]
        return [Batch({"input_ids": ids, "labels": labels}, [], sum(map(len, rows)))]

    def loss(self, model: Any, batch: Any) -> tuple[Any, int]:
        from llmctl.train.methods.evaluate import label_states

        hidden_ND, labels_N = label_states(model, batch.arrays)
        return model.vocabulary.loss(hidden_ND, labels_N), labels_N.shape[0]

    def evaluate(self, model: Any) -> dict[str, float]:
        return {}


def _by_length(rows: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    """Batches of rows of like length, in random order: sorted within stretches of sixteen batches."""
    rng = random.Random(BASE_SEED)
    batches = []
    for start in range(0, len(rows), 16 * size):
        stretch = sorted(rows[start : start + 16 * size], key=len)
        part = [stretch[i : i + size] for i in range(0, len(stretch), size)]
        rng.shuffle(part)
        batches += part
    return batches


def train_base(folder: Path, steps: int) -> None:
    """Trains the base model and writes it, in bfloat16, with its tokenizer."""
    from llmctl import plugins, runtime

    runtime.configure()
    from llmctl.checkpoint import save_weights
    from llmctl.checkpoint.build import build
    from llmctl.train.callbacks.base import LoopSettings
    from llmctl.train.callbacks.progress import ProgressLines
    from llmctl.train.loop import Loop
    from llmctl.train.optim.adamw import AdamW
    from llmctl.train.optim.schedules import schedule

    tokenizer = make_tokenizer()
    write_tokenizer(tokenizer, folder)
    plugin = plugins.load("llama")
    keys = {setting.name: setting.key for setting in plugin.card.settings}
    sizes = {**SIZES, "vocab": tokenizer.get_vocab_size(), "init_std": INIT_STD}
    dims = plugin.card.dims_from_config({keys[name]: value for name, value in sizes.items()})
    runtime.seed(BASE_SEED)
    model = build(plugin, dims)
    adamw = AdamW(dict(model.named_parameters()), beta2=0.95, weight_decay=0.01, decays=_is_matrix(model), max_norm=1.0)
    rate = schedule("cosine", PEAK, steps, WARMUP, min_ratio=0.05)
    task = Documents(tokenizer, steps, ROWS)
    Loop(model, task, adamw, rate, LoopSettings(steps, steps, steps, BASE_SEED), [ProgressLines(every=100)]).run()
    renames = plugin.hooks.weight_map(card=plugin.card, dims=dims, source="torch")
    save_weights(folder, model, renames, dtype="bfloat16")
    special = {name: tokenizer.token_to_id(SPECIAL[i]) for i, name in enumerate(("pad", "bos", "eos"))}
    ids = {f"{name}_token_id": number for name, number in special.items()}
    config = {**plugin.card.config_from_dims(dims), **ids, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")


def _is_matrix(model: Any) -> Any:
    matrices = {name for name, parameter in model.named_parameters() if len(parameter.shape) == 2}
    return matrices.__contains__


def sums(folder: Path) -> str:
    """SHA-256 of every file of the starter, as ``sha256sum`` writes it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    rows = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix()) for path in files)
    return "".join(f"{digest}  {name}\n" for digest, name in rows)


def check(folder: Path) -> list[str]:
    """What is wrong with a starter folder, a line each."""
    import tempfile

    problems = []
    if (folder / SUMS).read_text(encoding="utf-8") != sums(folder):
        problems.append(f"the files are not those of {SUMS}")
    with tempfile.TemporaryDirectory() as temporary:
        write_data(Path(temporary))
        for path in sorted(Path(temporary).iterdir()):
            if path.read_bytes() != (folder / "data" / path.name).read_bytes():
                problems.append(f"data/{path.name} is not what the generator writes")
    return problems


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("data", "model", "check"))
    parser.add_argument("--folder", type=Path, default=STARTER, help="the starter folder")
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of the base model")
    options = parser.parse_args()
    if options.what == "check":
        problems = check(options.folder)
        sys.exit("\n".join(problems) if problems else 0)
    if options.what == "data":
        write_data(options.folder / "data")
    else:
        train_base(options.folder / "model", options.steps)
    (options.folder / SUMS).write_text(sums(options.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
