"""Records what lm-evaluation-harness's own Hugging Face model (HFLM) answers for the starter model: tests/goldens/lm_eval.

Run with torch, transformers and lm_eval, none of which llmctl needs:

    python tools/goldens/make_lm_eval_golden.py
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "tests" / "goldens" / "lm_eval"
"""The tasks, ``FOLDER`` in them for the folder itself, and what is recorded."""
MODEL = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter" / "model"

LONG = "Tom lives in Rome. The cat sleeps on the mat, and nobody knows why. " * 20
"""More tokens than the model has positions."""

PAIRS = [
    ("Tom lives in", " Rome."),
    ("Tom lives in", " Paris."),
    ("Tom lives in ", "Rome."),  # the space belongs to the continuation
    ("Tom lives in  ", " Rome"),
    ("Tom lives in", "Rome"),  # one word with what is before
    ("", "Tom lives in Rome."),
    ("", "<s>Tom lives in Rome."),
    ("<s>Tom lives in", " Rome."),  # the context brings its own first token
    ("<s><|user|>Deny this: Tom lives in Rome.<|assistant|>", "Tom does not live in Rome.</s>"),
    ("<s><|user|>Deny this: Tom lives in Rome.<|assistant|>", "Tom lives in Rome.</s>"),
    ("Question: Who lives in Rome?\nA. Tom\nB. Mia\nAnswer:", " A"),
    ("Question: Who lives in Rome?\nA. Tom\nB. Mia\nAnswer:", " B"),
    (LONG, "Mia lives in Paris."),  # the context loses its beginning
    ("\u4f60\u597d", "\u4e16\u754c \N{GRINNING FACE}"),
]

TEXTS = ["", "Tom lives in Rome.", "<s>Tom lives in Rome.", LONG]

ASKED = [
    ("<s><|user|>Deny this: Tom lives in Rome.<|assistant|>", {"until": ["\n"], "max_gen_toks": 24}),
    ("<s><|user|>Deny this: Tom lives in Rome.<|assistant|>", {"until": [" in"], "max_gen_toks": 24, "do_sample": False}),
    ("Tom lives in", {"until": ".", "max_gen_toks": 16, "temperature": 0.0}),
    ("Tom lives in", {"until": [], "max_gen_toks": 7}),
    (LONG, {"until": ["?", "."], "max_gen_toks": 12}),
]  # fmt: skip


def main() -> None:
    """Writes the file."""
    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
    # transformers does not look at add_bos_token of a PreTrainedTokenizerFast, llmctl does.
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    # The cache of HFLM 0.4.13 mixes up continuations of other lengths that end in equal tokens.
    model = HFLM(pretrained=network, tokenizer=tokenizer, logits_cache=False, batch_size=1, device="cpu")
    answers = model.generate_until(_instances("generate_until", ASKED))
    # What the model writes by itself are its likeliest tokens.
    pairs = [*PAIRS, (ASKED[3][0], answers[3])]
    found = {
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")},
        "loglikelihood": list(zip(pairs, model.loglikelihood(_instances("loglikelihood", pairs)), strict=True)),
        "loglikelihood_rolling": [
            [text, model.loglikelihood_rolling(_instances("loglikelihood_rolling", [(text,)]))[0]] for text in TEXTS
        ],
        "generate_until": list(zip(ASKED, answers, strict=True)),
        "results": _results(model),
    }
    (TARGET / "golden.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _results(model: HFLM) -> dict:
    """Values of the tasks with one solved example in each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        for file in TARGET.glob("*.yaml"):
            (Path(folder) / file.name).write_text(file.read_text(encoding="utf-8").replace("FOLDER", str(TARGET)))
        manager = TaskManager(include_path=folder)
        names = ["tiny_choice", "tiny_exact", "tiny_text"]
        found = lm_eval.simple_evaluate(model=model, tasks=names, num_fewshot=1, task_manager=manager)
    return {
        task: {key: value for key, value in row.items() if key.endswith(",none")}
        for task, row in found["results"].items()
    }


def _instances(kind: str, rows: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=row, idx=number) for number, row in enumerate(rows)]


if __name__ == "__main__":
    main()
