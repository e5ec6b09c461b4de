"""A step of training from every format that docs/data.md shows, in this process."""

import re

import pytest
from kit.pages import ROOT, SHORT, STARTER, quick, run

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TABLES = re.findall(
    r"\| format \| a line \|\n\|---\|---\|\n((?:\|.*\n)+)", (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("command", "table"), [*zip(("finetune", "dpo"), TABLES, strict=True)])
def test_a_step_is_trained_from_every_format(tmp_path, command, table):
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    lines = re.findall(r"`(\{.*\})`", table)
    assert len(lines) == 5
    settings = {
        **SHORT,
        "train.max_steps": 1,
        "model.path": STARTER / "model",
        "data.chat_template": tmp_path / "template.jinja",
    }
    if command == "dpo":
        del settings["data.src_length"], settings["output.samples"]
        settings["data.max_prompt_length"] = 64
    for number, line in enumerate(lines):
        (tmp_path / f"{number}.jsonl").write_text(line + "\n")
    (tmp_path / "empty.yaml").write_text("{}\n")
    for data, output in [(f"{tmp_path}/{number}.jsonl", str(number)) for number in range(5)]:
        given = quick({**settings, "data.train": f"[{data}]", "output.dir": tmp_path / output})
        code, text = run([command, str(tmp_path / "empty.yaml"), *given])
        assert code == 0, text


def test_a_run_holds_out_examples_and_reads_keys_of_other_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Name a colour.", "answer": "Blue."}\n' * 10)
    (tmp_path / "empty.yaml").write_text("{}\n")
    given = {
        **SHORT,
        "model.path": STARTER / "model",
        "data.train": f"[{tmp_path}/a.jsonl]",
        "data.columns": "[question=instruction, answer=output]",
        "data.dev_size": 0.2,
        "data.train_on": "last",
        "output.dir": tmp_path / "out",
    }
    code, text = run(["finetune", str(tmp_path / "empty.yaml"), "--check", *quick(given)])
    assert code == 0 and "8 examples to train on, 2 held out" in text, text
    assert run(["finetune", str(tmp_path / "empty.yaml"), *quick({**given, "train.max_steps": 1})])[0] == 0
