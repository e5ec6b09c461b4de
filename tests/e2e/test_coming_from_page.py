"""What docs/coming-from.md shows works, and all that its tables name of llmctl exists."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from kit.pages import ROOT, SHORT, follow, lay_out
from kit.shown_options import KEY, options_of, unknown_in_command, wrong_key

import llmctl
from llmctl.commands.bench import command as bench
from llmctl.commands.generate import command as generate
from llmctl.infer.options import EngineOptions

PAGE = "docs/coming-from.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
CALLED = {"SamplingParams": llmctl.SamplingParams, "LLM": EngineOptions}
"""What the page calls -> what has its options as fields."""


def rows(text):
    """Cells of the tables in the first section of a text."""
    section = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.+\|$", section, re.MULTILINE)
    ]


OURS = sorted(
    {code for section in TEXT.split("\n## ") for row in rows(section) for code in re.findall(r"`([^`]+)`", row[1])}
)


def test_the_commands_work_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(20)
    rows = map(json.loads, Path("my-data/train.jsonl").read_text(encoding="utf-8").splitlines())
    examples = [{"instruction": row["src"], "input": "", "output": row["tgt"]} for row in rows]
    Path("alpaca.json").write_text(json.dumps(examples), encoding="utf-8")
    follow(PAGE, "finetune", SHORT, 3)
    info = json.loads(Path("runs/alpaca/run.json").read_text(encoding="utf-8"))
    assert info["config"]["method"]["name"] == "lora" and Path("runs/alpaca-merged/model.safetensors").is_file()


@pytest.mark.parametrize("code", OURS)
def test_what_the_tables_name_of_llmctl_exists(code):
    if code.startswith("llmctl "):
        assert code == "llmctl generate" or not unknown_in_command(code)
    elif code.startswith("--"):
        assert code.split()[0] in options_of(generate) | options_of(bench)
    elif code.startswith("llmctl."):
        assert hasattr(llmctl, code.removeprefix("llmctl."))
    elif match := re.fullmatch(r"(\w+)\((.+)\)", code):
        fields = {field.name for field in dataclasses.fields(CALLED[match[1]])}
        assert {part.partition("=")[0].strip() for part in match[2].split(",")} <= fields
    elif KEY.fullmatch(code):
        assert not wrong_key(code)
    else:
        assert code in ("generate", "chat") and hasattr(llmctl.LLM, code)


@pytest.mark.parametrize(("dialect", "at_least"), [("paddlenlp", 7), ("factory", 18)])
def test_pairs_agree_with_those_that_migrating_uses(dialect, at_least):
    # PaddleNLP's keys have the names of transformers' trainer where both have them.
    text = (ROOT / "core/llmctl/migrate" / dialect / "keys.yaml").read_text(encoding="utf-8")
    pairs = yaml.safe_load(text)["same"]
    section = "## LLaMA-Factory" if dialect == "factory" else "## TRL"
    said = {row[0].strip("`"): row[1].strip("`").partition(":")[0] for row in rows(TEXT.partition(section)[2])}
    targets = {key: {new} if isinstance(new, str) else set(new.values()) for key, new in pairs.items() if key in said}
    wrong = {key: said[key] for key, new in targets.items() if said[key] not in new}
    assert len(targets) >= at_least and not wrong
