"""Records beam searches of transformers: answers and scores for every rule that ends a search.

``python tools/goldens/make_beam_golden.py MODEL`` runs the model in the folder MODEL (stories260K) in float32 on the CPU and writes
tests/goldens/beams. It needs torch and transformers, which nothing else here does; docs/goldens.md says which versions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "beams"
PROMPTS = ((1, 403, 407, 261, 378), (1, 432, 383, 286), (1, 268, 388, 261, 370, 432, 352, 266), (1,))
FULL_STOP = 426
"""A token that stands often, as end token: beams end at all lengths."""
CASES: dict[str, dict[str, Any]] = {
    "plain": dict(num_beams=4, max_new_tokens=24),
    "early": dict(num_beams=4, max_new_tokens=40, early_stopping=True),
    "never": dict(num_beams=3, max_new_tokens=32, early_stopping="never"),
    "long": dict(num_beams=5, max_new_tokens=32, length_penalty=2.0),
    "long never": dict(num_beams=3, max_new_tokens=24, length_penalty=2.0, early_stopping="never"),
    "short": dict(num_beams=4, max_new_tokens=32, length_penalty=-1.0),
    "penalised": dict(num_beams=4, max_new_tokens=24, repetition_penalty=1.3),
    "least": dict(num_beams=2, max_new_tokens=24, min_new_tokens=10, length_penalty=0.0),
    "two ends": dict(num_beams=3, max_new_tokens=24, eos_token_id=[FULL_STOP, 432]),
}


def without_end(ids: list[int], ends: list[int]) -> list[int]:
    """The tokens before an end token and the filling after it."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def main(folder: str) -> None:
    """Writes the recordings."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    found = []
    for name, options in CASES.items():
        for prompt in PROMPTS:
            made = model.generate(
                torch.tensor([prompt]), do_sample=False, num_return_sequences=options["num_beams"],
                return_dict_in_generate=True, output_scores=True, pad_token_id=0,
                **{"eos_token_id": FULL_STOP, **options},
            )  # fmt: skip
            ends = options.get("eos_token_id", [FULL_STOP])
            answers = [without_end(ids[len(prompt) :].tolist(), ends) for ids in made.sequences]
            scores = made.sequences_scores.tolist()
            found.append({"case": name, "options": options, "prompt": prompt, "answers": answers, "scores": scores})
    FOLDER.mkdir(parents=True, exist_ok=True)
    origin = {"transformers": transformers.__version__, "torch": torch.__version__, "end": FULL_STOP}
    rows = ",\n".join(json.dumps(row) for row in found)
    text = f'{{"origin": {json.dumps(origin)}, "searches": [\n{rows}\n]}}\n'
    (FOLDER / "stories260K.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
