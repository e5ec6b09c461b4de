"""A step of training from every format that docs/data.md shows, in this process."""

import json
import re

import pytest
from kit.data_files import WRITERS, write_dataset, write_datasets
from kit.pages import ROOT, SHORT, STARTER, quick, run

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: "
    "{{ m.tool_calls | tojson if m.tool_calls else m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TABLES = re.findall(
    r"\| format \| a line \|\n\|---\|---\|\n((?:\|.*\n)+)", (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("command", "table"), [*zip(("finetune", "dpo"), TABLES, strict=True)])
def test_a_step_is_trained_from_every_format(tmp_path, command, table):
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    lines = re.findall(r"`(\{.*\})`", table)
    assert len(lines) == {"finetune": 5, "dpo": 7}[command]
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
    for data, output in [(f"{tmp_path}/{number}.jsonl", str(number)) for number in range(len(lines))]:
        given = quick({**settings, "data.train": f"[{data}]", "output.dir": tmp_path / output})
        code, text = run([command, str(tmp_path / "empty.yaml"), *given])
        assert code == 0, text


CALL = {"name": "paint", "arguments": {"colour": "blue"}}
ROWS = [
    {
        "conversations": [
            {"from": "human", "value": f"Name colour {number}."}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "painted"}, {"from": "gpt", "value": "Blue."},
        ],
        "tools": json.dumps([{"name": "paint", "parameters": {}}]),
    }
    for number in range(2)
]  # fmt: skip
PAIRS = [{"prompt": f"Name colour {number}.", "chosen": "Blue.", "rejected": "Seven."} for number in range(2)]


def lay_out(folder, rows):
    """Every kind of file and folder with these rows; the entries of ``data.train`` that name them."""
    cells = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
    ]
    for name, write in WRITERS.items():
        write(folder / name, cells if name.startswith("table") and "sv" in name else rows)
    write_dataset(folder / "dataset", rows)
    write_datasets(folder / "datasets", {"train": rows, "test": rows})
    for number in range(2):
        for name in (f"hub/data/train-0000{number}-of-00002.parquet", f"shards/part-{number}.arrow"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            WRITERS["table.parquet" if name.endswith("parquet") else "file.arrow"](folder / name, rows)
    WRITERS["table.parquet"](folder / "hub" / "data" / "test-00000-of-00001.parquet", rows)
    return [
        *(folder / name for name in WRITERS),
        *(folder / name for name in ("dataset", "datasets", "hub", "shards/*.arrow")),
    ]


@pytest.mark.parametrize(
    ("command", "rows", "streaming"), [("finetune", ROWS, False), ("finetune", ROWS, True), ("dpo", PAIRS, False)]
)
def test_a_step_is_trained_from_every_kind_of_file(tmp_path, command, rows, streaming):
    (tmp_path / "template.jinja").write_text(TOOLS_TEMPLATE)
    (tmp_path / "empty.yaml").write_text("{}\n")
    (tmp_path / "data").mkdir()
    entries = lay_out(tmp_path / "data", rows)
    count = 2 * (len(entries) + 2)
    given = {
        "train.max_steps": 1, "train.batch_size": count, "data.max_length": 256, "output.samples": 0,
        "data.src_length" if command == "finetune" else "data.max_prompt_length": 128,
        "model.path": STARTER / "model", "data.chat_template": tmp_path / "template.jinja",
        "data.train": f"[{', '.join(map(str, entries))}]", "data.streaming": str(streaming).lower(),
        "output.dir": tmp_path / "out",
    }  # fmt: skip
    code, said = run([command, str(tmp_path / "empty.yaml"), *quick(given)])
    assert code == 0, said
    name = "ShareGPT" if command == "finetune" else "prompt-chosen-rejected"
    assert f"data format: {name} ({tmp_path / 'data' / 'list.json'}, " in said and f"train: {count} " in said
    assert (
        f"not trained on: {tmp_path / 'data' / 'datasets' / 'test'}, {tmp_path / 'data' / 'hub' / 'data' / 'test-0000'}"
        in said
    )
    (step,) = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[:1])
    assert step["step"] == 1 and step["loss"] > 0


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
