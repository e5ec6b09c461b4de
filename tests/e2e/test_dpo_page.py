"""Every command that docs/dpo.md shows works as shown, in order; run in this process."""

import json
import re
import shutil
from pathlib import Path

from kit import pages
from kit.pages import ROOT, STARTER, config_of, follow, run

from llmctl.data.preference.examples import PreferenceReader

PAGE = "docs/dpo.md"


def quick(**settings):
    return pages.quick({key.replace("__", "."): value for key, value in settings.items()})


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
    Path("dpo.yaml").write_text(config_of(PAGE), encoding="utf-8")
    short = {"train.max_steps": 2, "data.max_prompt_length": 64, "data.max_length": 128, "output.samples": 0}
    said = follow(PAGE, "dpo", short, 5)
    assert all("6 pairs to train on, 6 held out" in text for line, text in said.items() if "--check" in line)
    assert Path("runs/dpo/reference.npz").is_file() and Path("runs/preferred/model/adapter_config.json").is_file()


def test_the_line_of_data_that_the_page_shows_is_one():
    row = PreferenceReader()(
        re.search(r"```json\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)[1], "docs/dpo.md"
    )
    assert (row.chosen.content, row.prompt.system) == ("In Italy.", "Be brief.")


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
        (quick(data__max_length=2048), "data.max_length=2048 exceeds the 512 positions"),
        ([*lengths, *quick(data__train="broken.jsonl")], "2 problems in the train data"),
        ([*lengths, *quick(data__train="turns.jsonl", data__chat_template="none")], "needs a chat template"),
        ([*lengths, *quick(train__best_metric="rewards/accuracies")], "needs held-out examples; set data.dev"),
        ([*lengths, *quick(dpo__bet=1)], "did you mean dpo.beta?"),
        ([*lengths, *quick(train__eval_generate="true")], "unknown key train.eval_generate"),
    ):
        code, text = run([*base, *more])
        assert code == 2 and part in text and "Traceback" not in text, text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "model", "pairs", "turns.jsonl"]
