"""Every command that docs/inference.md shows works as shown, in order; run in this process."""

import json
import re
import shutil
from pathlib import Path

from kit import fake_harness
from kit.pages import ROOT, STARTER, follow

from llmctl.infer.text.prompt_file import read_prompts
from llmctl.testing.tiny import write_adapter

PAGE = "docs/inference.md"


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_harness.install(monkeypatch)
    Path("my-tasks").mkdir()
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    questions = [{"src": f"Ask about this: {name} likes tea."} for name in ("Tom", "Mia", "Leo")]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    Path("adapters").mkdir()
    for seed, name in enumerate(("formal", "short")):
        write_adapter(Path("adapters") / name, Path("path/to/model"), seed)
    chosen = [
        {**row, **more} for row, more in zip(questions, ({}, {"adapter": "formal"}, {"adapter": "short"}), strict=True)
    ]
    Path("by-adapter.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    Path("held-out.txt").write_text("Tom lives in Rome. The cat sleeps on the mat. " * 5)
    shutil.copy(STARTER / "data" / "dev.jsonl", "questions-and-answers.jsonl")
    said = follow(PAGE, "finetune", {}, 18)
    assert said.pop("llmctl chat path/to/model") == "" and all(said.values())
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["src"] for row in answers] == [row["src"] for row in questions]
    plain = said['llmctl generate path/to/model --prompt "Deny this: Tom lives in Rome." --engine dynamic']
    assert said['llmctl generate program --prompt "Deny this: Tom lives in Rome."'] == plain
    assert said['llmctl generate path/to/model --prompt "Deny this: Tom lives in Rome."'] == plain
    assert said["llmctl eval path/to/model packed --data questions-and-answers.jsonl"].count("│") > 10
    assert json.loads(Path("bench.json").read_text())["requests"] == 4


def test_the_lines_that_the_page_shows_are_questions(tmp_path):
    lines = re.search(r"```json\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "in.jsonl").write_text(lines)
    assert [len(line.conversation.turns) for line in read_prompts(tmp_path / "in.jsonl")] == [1, 2]
