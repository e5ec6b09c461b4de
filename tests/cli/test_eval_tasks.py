"""``llmctl eval --tasks``: beside a small stand-in of lm-evaluation-harness, and beside the harness itself where it is installed."""

import json
import sys

import pytest
from kit import fake_harness
from kit.model_cli import llmctl
from kit.paths import GOLDENS, STARTER

MODEL = STARTER / "model"


@pytest.fixture
def harness(monkeypatch):
    fake_harness.install(monkeypatch)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "int8"
    llmctl("export", MODEL, "--engine", "fused", "--weights", "int8", "--output", folder)
    return folder


def test_models_stand_side_by_side(harness, packed):
    out, _ = llmctl("eval", MODEL, packed, "--tasks", "tiny_choice,tiny_exact")
    lines = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line[1:4]] for line in lines] == [
        ["tiny_choice", "6", "acc"],
        ["tiny_exact", "6", "exact_match (strict)"],
    ]
    assert [len(line) for line in lines] == [7, 7] and "± 0.2500" in lines[0][4] and "±" not in lines[1][4]
    facts = json.loads(llmctl("eval", MODEL, packed, "--tasks", "tiny_*", "--json")[0])
    assert [one["model"] for one in facts] == [str(MODEL), str(packed)]
    for number, one in enumerate(facts):
        assert f"{one['tasks']['tiny_choice']['acc']:.4f}" in lines[0][4 + number]
        assert one["tasks"]["tiny_exact"]["exact_match (strict)_stderr"] is None and one["engine"] == "fused"


def test_options_reach_the_tasks(harness, tmp_path):
    options = ["--include-path", tmp_path, "--limit", "2", "--num-fewshot", "1", "--apply-chat-template", "--json"]
    (fact,) = json.loads(llmctl("eval", MODEL, "--tasks", "my_task", *options)[0])
    assert list(fact["tasks"]) == ["my_task"] and fact["tasks"]["my_task"]["documents"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "tiny_choise"], "has no task, group or tag of this name; did you mean tiny_choice"),
        (["--tasks", "my_task"], "Tasks of your own are found with --include-path FOLDER"),
        (["--tasks", " , "], "--tasks names no task"),
        (["--tasks", "tiny_choice", "--text", str(GOLDENS / "lm_eval" / "choice.yaml")], "and only one of them"),
        (["--tasks", "tiny_choice", "--window", "8"], "--window is for --text; leave it out with --tasks"),
        (["--data", str(STARTER / "data" / "dev.jsonl"), "--limit", "3"], "--limit is for --tasks; leave it out with --data"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(words, message, harness):
    assert message in llmctl("eval", MODEL, *words, code=2)[1]


def test_without_the_harness_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    _, said = llmctl("eval", MODEL, "--tasks", "arc_easy", code=2)
    assert "llmctl eval --tasks needs lm_eval, which is not installed. Run: pip install 'paddle-llmctl[eval]'" in said


def test_a_task_whose_data_cannot_be_read_is_an_error_with_its_reason(monkeypatch):
    def fails(**given):
        raise FileNotFoundError("no such data set: questions")

    fake_harness.install(monkeypatch, simple_evaluate=fails)
    _, said = llmctl("eval", MODEL, "--tasks", "tiny_choice", code=2)
    assert "--tasks tiny_choice: lm-evaluation-harness stopped: FileNotFoundError: no such data set: questions" in said


@pytest.mark.harness
def test_results_of_the_harness_are_those_of_its_own_hugging_face_model(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = GOLDENS / "lm_eval"
    for file in folder.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8").replace("FOLDER", str(folder)))
    words = ["--tasks", "tiny_*", "--include-path", tmp_path, "--num-fewshot", "1", "--json"]
    (fact,) = json.loads(llmctl("eval", MODEL, *words)[0])
    wanted = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["results"]
    assert set(fact["tasks"]) == set(wanted)
    for task, values in wanted.items():
        for key, value in values.items():
            found = fact["tasks"][task][key.removesuffix(",none")]
            assert (found is None) if value == "N/A" else found == pytest.approx(value, rel=1e-6)
