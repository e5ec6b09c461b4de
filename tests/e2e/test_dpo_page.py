"""Every command that docs/dpo.md shows works as shown, in order; run in this process."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmctl.cli import main
from llmctl.data.preferences import parse_preference

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"
PAGE = (ROOT / "docs" / "dpo.md").read_text(encoding="utf-8")


def run(arguments):
    """Exit code and output of a command in this process."""
    with CliRunner().isolation() as streams, pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code, b"".join(stream.getvalue() for stream in streams[:2]).decode()


def quick(**settings):
    return [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def write_pairs(folder):
    rows = [json.loads(line) for line in (STARTER / "data" / "dev.jsonl").read_text(encoding="utf-8").splitlines()[:6]]
    lines = [
        json.dumps({"src": [row["src"]], "tgt": [], "response": [row["tgt"], other["tgt"]], "sort": [1, 0]})
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", Path("path") / "to" / "model")
    write_pairs(Path("my-pairs"))
    Path("dpo.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 5
    fast = quick(train__max_steps=2, data__max_prompt_length=64, data__max_length=128, output__samples=0)
    for line in commands:
        name, *words = shlex.split(line)
        assert name == "llmctl"
        code, text = run([*words, *(fast if "dpo" in words and "--check" not in words else [])])
        assert code == 0 and "Traceback" not in text, (line, text)
        assert "--check" not in words or "6 pairs to train on, 6 held out" in text
    assert Path("runs/dpo/reference.npz").is_file() and Path("runs/preferred/model/adapter_config.json").is_file()


def test_the_line_of_data_that_the_page_shows_is_one():
    row = parse_preference(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1], "docs/dpo.md")
    assert (row.chosen, row.system) == ("In Italy.", "Be brief.")


def test_mistakes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STARTER / "model", "model")
    write_pairs(Path("pairs"))
    base = ["--model", "llama", "dpo", *quick(model__path="model", data__train="pairs/train.jsonl", output__dir="out")]
    lengths = quick(data__max_prompt_length=32, data__max_length=64)
    good = {"src": ["a"], "tgt": [], "response": ["b", "c"], "sort": [1, 0]}
    lines = [{**good, "sort": [1, 1]}, good, {**good, "src": ["a", "b"], "tgt": ["x"]}, {**good, "response": ["b"]}]
    Path("broken.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("turns.jsonl").write_text(json.dumps(lines[2]) + "\n")
    for more, part in (
        ([], "data.max_length=2048 is over"),
        ([*lengths, *quick(data__train="broken.jsonl")], "2 problems in the train data"),
        ([*lengths, *quick(data__train="turns.jsonl", data__chat_template="none")], "needs a chat template"),
        ([*lengths, *quick(train__best_metric="rewards/accuracies")], "needs held-out examples; set data.dev"),
        ([*lengths, *quick(dpo__bet=1)], "did you mean dpo.beta?"),
        ([*lengths, *quick(train__eval_generate="true")], "unknown key train.eval_generate"),
    ):
        code, text = run([*base, *more])
        assert code == 2 and part in text and "Traceback" not in text, text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "model", "pairs", "turns.jsonl"]
