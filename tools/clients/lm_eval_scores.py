# /// script
# dependencies = ["lm_eval[api]>=0.4.9,<0.5", "transformers>=4.50"]
# ///
"""lm-eval's ``local-completions`` on questions of its own: prints what each choice is worth, and the accuracy."""

import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

URL, MODEL, FOLDER = sys.argv[1:4]
NAMES = ("Tom", "Mia", "Leo", "Ida")
ROWS = [
    {"question": f"Deny this: {name} {said}.", "choices": [f"{name} {denied}.", f"{name} {said}."], "label": 0}
    for name in NAMES
    for said, denied in (("likes tea", "does not like tea"), ("is old", "is not old"))
]
TASK = """
task: denials
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "denials.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    asked = {"model": MODEL, "base_url": f"{URL}/v1/completions", "tokenizer": FOLDER, "num_concurrent": 4}
    made = simple_evaluate(
        "local-completions", model_args=asked, tasks=["denials"], task_manager=TaskManager(include_path=name),
        log_samples=True, bootstrap_iters=0, cache_requests=False,
    )  # fmt: skip
found = [
    {"text": sample["arguments"][at][0], "choice": sample["arguments"][at][1], "worth": float(worth), "greedy": bool(greedy)}
    for sample in made["samples"]["denials"]
    for at, (worth, greedy) in enumerate(sample["filtered_resps"])
]  # fmt: skip
print(json.dumps({"accuracy": made["results"]["denials"]["acc,none"], "found": found}))
