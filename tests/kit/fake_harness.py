"""What ``llmctl eval --tasks`` uses of lm-evaluation-harness, in few lines: names of tasks, models, and results of its form."""

import json
import sys
from fnmatch import filter as matching
from types import ModuleType, SimpleNamespace

from kit.paths import GOLDENS

QUESTIONS = [json.loads(line) for line in (GOLDENS / "lm_eval" / "questions.jsonl").read_text().splitlines()]


class LM:
    """The harness's class of models."""


class TaskManager:
    """Some tasks, and those of a folder."""

    def __init__(self, include_path=None):
        self.all_tasks = ["arc_easy", "tiny_choice", "tiny_exact", *(["my_task"] if include_path else [])]

    def match_tasks(self, names):
        return [task for name in names for task in matching(self.all_tasks, name)]


def simple_evaluate(model, tasks, num_fewshot, limit, task_manager, apply_chat_template, **given):
    """Questions of the goldens, answered by choosing or by writing."""
    assert isinstance(model, LM) and set(tasks) <= set(task_manager.all_tasks) and not given["log_samples"]
    rows = QUESTIONS[: None if limit is None else int(limit)]
    examples = "".join(f"{row['q']}\nAnswer: {row['choices'][row['a']]}\n\n" for row in QUESTIONS[: num_fewshot or 0])
    prompts = [f"{examples}{row['q']}\nAnswer:" for row in rows]
    if apply_chat_template:
        prompts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in prompts]
    results = {}
    for task in tasks:
        if task != "tiny_exact":
            found = [_chosen(model, prompt, row) == row["a"] for prompt, row in zip(prompts, rows, strict=True)]
            results[task] = {"alias": task, "acc,none": sum(found) / len(rows), "acc_stderr,none": 0.25}
        else:
            asked = [SimpleNamespace(args=(prompt, {"until": ["\n"], "max_gen_toks": 4})) for prompt in prompts]
            hits = sum(text.strip() == row["choices"][row["a"]] for text, row in zip(model.generate_until(asked), rows, strict=True))  # fmt: skip
            results[task] = {"alias": task, "exact_match,strict": hits / len(rows), "exact_match_stderr,strict": "N/A"}
    counts = {task: {"original": len(QUESTIONS), "effective": len(rows)} for task in tasks}
    return {"results": results, "n-samples": counts}


def _chosen(model, prompt, row):
    asked = [SimpleNamespace(args=(prompt, f" {choice}")) for choice in row["choices"]]
    sums = [total for total, _ in model.loglikelihood(asked)]
    return sums.index(max(sums))


def install(monkeypatch, **changes):
    """Makes ``import lm_eval`` find this."""
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.tasks")}
    modules["lm_eval"].simple_evaluate = changes.get("simple_evaluate", simple_evaluate)
    modules["lm_eval.api.model"].LM = LM
    modules["lm_eval.tasks"].TaskManager = TaskManager
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
