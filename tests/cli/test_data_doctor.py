"""``llmctl data doctor``: numbers counted by hand, everything that is wrong found, and nothing in sound data."""

import json
from pathlib import Path

import pytest
from kit.data_cli import run
from kit.tiny_tokenizers import write_json

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "plugins" / "llama" / "llmctl_llama" / "starter"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder without a chat template."""
    return write_json(tmp_path_factory.mktemp("model"))


def examine(folder, rows, model, *arguments, code=0):
    path = folder / "data.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return json.loads(run("doctor", path, "--model-folder", model, "--json", *arguments, code=code))


def kinds(report):
    return {finding["kind"]: [place.rpartition("data.jsonl:")[2] for place in finding["places"]]
            for finding in report["findings"]}  # fmt: skip


def ask(src, tgt="hello world"):
    return {"src": src, "tgt": tgt}


def test_sound_data_has_no_findings_and_is_shown_with_its_loss(tmp_path, model):
    report = examine(tmp_path, [ask("the quick brown fox")], model, "--show", "1")
    assert report["ok"] and report["findings"] == []
    tokens = report["shown"][0]["tokens"]
    assert "".join(token["text"] for token in tokens if token["loss"]) == "hello world</s>"
    assert "".join(token["text"] for token in tokens if not token["loss"]) == "<s>the quick brown fox"


def test_the_shown_text_marks_what_carries_loss(tmp_path, model):
    (tmp_path / "a.jsonl").write_text(json.dumps(ask("the fox")) + "\n")
    said = run("doctor", tmp_path / "a.jsonl", "--model-folder", model)
    assert "<s>the fox«hello world</s>»" in said and said.endswith("no errors\n")


def test_warnings_are_pointed_at_in_the_end(tmp_path, model):
    (tmp_path / "a.jsonl").write_text((json.dumps(ask("the fox")) + "\n") * 2)
    said = run("doctor", tmp_path / "a.jsonl", "--model-folder", model)
    assert "warning" in said and said.endswith("no errors; see the warnings\n")


def test_lengths_and_truncation_are_counted(tmp_path, model):
    # Of ten words, each one token or more: the source is too long; then the answer is.
    rows = [ask("hello " * 10), ask("hello", "hello " * 30), ask("hello")]
    report = examine(tmp_path, rows, model, "--src-length", "8", "--max-length", "16")
    found = kinds(report)
    assert found["truncated"] == ["1", "2"] and found["cut-answer"] == ["2"]
    assert found["long-source"][0].startswith("1 (")
    cut = report["truncation"]
    assert (cut["truncated"], cut["source_over_src_length"], cut["dropped"]) == (2, 1, 0)
    assert report["endings"] == {"ended": 2, "cut": 1, "missing": 0}
    assert report["ok"], "warnings alone are no error"


def test_answers_of_which_nothing_is_left_are_an_error(tmp_path, model):
    report = examine(tmp_path, [ask("hello " * 30), ask("hello")], model, "--src-length", "8", "--max-length", "8",
                     code=1)  # fmt: skip
    assert kinds(report)["no-label"] == ["1"] and not report["ok"]


def test_answers_without_an_end_are_an_error(tmp_path):
    model = write_json(tmp_path / "endless", eos_token=None)
    report = examine(tmp_path, [ask("hello")], model, code=1)
    assert kinds(report)["missing-eos"] == ["1"]
    assert "without EOS token (the tokenizer has none)" in report["findings"][0]["message"]


def test_a_template_that_generation_renders_otherwise_is_an_error(tmp_path):
    model = write_json(tmp_path / "model")
    # Whether an answer follows changes the question's text.
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
        "{% if not loop.last %} {% endif %}<|bot|>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    said = run("doctor", _one(tmp_path), "--model-folder", model, code=1)
    assert "error not-encoded" in said and "rewrites earlier text" in said


def _one(folder):
    (folder / "one.jsonl").write_text(json.dumps(ask("hello")) + "\n")
    return folder / "one.jsonl"


def test_a_prompt_that_is_no_beginning_of_its_row_is_found(tmp_path, model, monkeypatch):
    from llmctl.data.sft.encoding import Encoder

    honest = Encoder.prompt
    monkeypatch.setattr(Encoder, "prompt", lambda self, example: [*honest(self, example), 7])
    report = examine(tmp_path, [ask("hello")], model, code=1)
    assert kinds(report)["template"] == ["1"] and kinds(report)["generation"] == ["1"]
    assert report["template"]["differing"] == 1


def test_duplicates_are_listed(tmp_path, model):
    rows = [ask("a", "same"), ask("b", "same"), ask("c", "same"), ask("a", "same"), ask("d", "other")]
    report = examine(tmp_path, rows, model)
    found = kinds(report)
    assert len(found["duplicate-example"]) == 1 and found["duplicate-example"][0] == "1"
    assert report["findings"][0]["places"][0].startswith(str(tmp_path / "data.jsonl:4 is "))
    assert found["duplicate-answer"] == ["3 times: same"]
    assert report["ok"]


def test_broken_lines_and_empty_answers_are_errors_and_the_rest_is_still_examined(tmp_path, model):
    report = examine(tmp_path, ['{"src": "a"', ask("b", "  "), ask(" "), ask("hello")], model, code=1)
    found = kinds(report)
    assert found["bad-line"][0].startswith("1: not valid JSON") and found["empty-answer"] == ["2"]
    assert found["empty-question"] == ["3"] and report["examples"] == 2


def test_the_starters_own_data_is_sound():
    data = [STARTER / "data" / f"{split}.jsonl" for split in ("train", "dev")]
    report = json.loads(run("doctor", *data, "--model-folder", STARTER / "model", "--json"))
    assert report["ok"] and report["template"]["kind"] == "JinjaTemplate" and report["template"]["differing"] == 0


def test_packing_says_how_full_rows_would_be(tmp_path, model):
    """Rows counted by hand: each example has 5 tokens, and 14 hold two of them."""
    report = examine(tmp_path, [ask("hello", "world")] * 3, model, "--src-length", "8", "--max-length", "14")
    tokens = report["tokens"]["whole"]
    assert tokens["min"] == tokens["max"] == 5
    packed = {"rows": 2, "fill": round(3 * 5 / 28, 4)}
    assert report["packing"] == {
        "none": {"rows": 3, "fill": round(3 * 5 / 42, 4)}, "first-come": packed, "best-fit": packed
    }  # fmt: skip


def test_tables_folders_and_keys_of_other_names_are_checked(tmp_path, model):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("question,answer,mood\nthe fox,hello,glad\nthe dog,hello world,\n")
    (tmp_path / "data" / "test.csv").write_text("question,answer\n")
    columns = ["--column", "question=src", "--column", "answer=tgt"]
    said = run("doctor", tmp_path / "data", "--model-folder", model, *columns, "--json")
    assert "not trained on" in said and "test.csv; give it as an argument" in said
    report = json.JSONDecoder().raw_decode(said, said.index("{"))[0]
    assert report["examples"] == 2 and report["formats"] == {"llmctl": 2}
    assert [finding["message"] for finding in report["findings"]] == [
        "lines whose key 'mood' holds text that is not read"
    ]
    report = json.loads(run("doctor", f"{tmp_path}/data/a*.csv", "--model-folder", model, *columns, "--json"))
    assert report["examples"] == 2
    assert "matches no file" in run("doctor", f"{tmp_path}/b*.csv", "--model-folder", model, code=2)


def test_mistakes_of_a_kind_are_one_line_with_their_number(tmp_path, model):
    report = examine(tmp_path, [{"instruction": "a", "response": "b"}] * 40, model, code=1)
    (finding,) = report["findings"]
    assert finding["count"] == 40 and len(finding["places"]) == 1
    assert "data.jsonl:3 ...): looks like Alpaca" in finding["places"][0]


def test_only_the_last_answer_has_loss_where_training_does_so(tmp_path):
    folder = write_json(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    rows = [{"src": ["the fox", "the dog"], "tgt": ["hello", "world"]}]
    for how, expected in (("all", "hello</s>world</s>"), ("last", "world</s>")):
        report = examine(tmp_path, rows, folder, "--train-on", how)
        assert "".join(token["text"] for token in report["shown"][0]["tokens"] if token["loss"]) == expected


def test_pairs_are_recognised_and_checked(tmp_path, model):
    rows = [
        {"prompt": "the fox", "chosen": "hello", "rejected": "world"},
        {"prompt": "the fox", "chosen": "hello", "rejected": "world"},
        {"prompt": "the dog", "chosen": "hello", "rejected": "hello"},
    ]
    report = examine(tmp_path, rows, model, code=1)
    assert report["examples"] == 2 and report["formats"] == {"prompt-chosen-rejected": 2}
    shown = {row["source"].rpartition(":")[2]: "".join(token["text"] for token in row["tokens"] if token["loss"])
             for row in report["shown"]}  # fmt: skip
    assert shown == {"1 (chosen)": "hello</s>", "1 (rejected)": "world</s>"}
    assert [finding["kind"] for finding in report["findings"]] == ["bad-line", "duplicate-example"]
    long = [{"prompt": "the fox " * 9, "chosen": "hello " * 9, "rejected": "world"}]
    report = examine(tmp_path, long, model, "--max-prompt-length", "8", "--max-length", "12")
    assert report["truncation"]["truncated"] == 1 and kinds(report).keys() == {"truncated", "cut-answer"}
    said = run("doctor", tmp_path / "data.jsonl", "--model-folder", model, "--train-on", "last", code=2)
    assert "--train-on is for data of finetune" in said


def test_lines_that_the_template_refuses_are_named_and_the_others_checked(tmp_path):
    folder = write_json(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "paint", "arguments": {}}}]}
    rows = [ask("the fox"), {"messages": [{"role": "user", "content": "a"}, call]}]
    report = examine(tmp_path, rows, folder, code=1)
    (finding,) = report["findings"]
    assert finding["kind"] == "not-encoded" and "data.jsonl:2: " in finding["places"][0]
    assert "does not write tool calls" in finding["places"][0] and report["labels"]["tokens"] > 2
    pair = {"messages": [{"role": "user", "content": "a"}], "chosen_response": call, "rejected_response": "b"}
    assert examine(tmp_path, [pair], folder, code=1)["findings"][0]["kind"] == "not-encoded"
