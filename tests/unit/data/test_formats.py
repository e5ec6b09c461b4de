"""Formats of examples: recognised by their keys, the same conversation from each, what is not read is named."""

import json
import re
from dataclasses import fields

import pytest
from kit.paths import ROOT
from kit.tiny_tokenizers import write_json

from llmctl import tokenizers
from llmctl.config.dpo import DpoDataConfig
from llmctl.config.finetune import FinetuneDataConfig
from llmctl.data.formats import DPO, SFT
from llmctl.data.preference.examples import PreferenceReader
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder
from llmctl.data.sft.examples import ExampleReader
from llmctl.errors import ConfigError
from llmctl.infer.text.prompt_file import read_prompts
from llmctl.jobs.examples import _held_out

ASKED, ANSWER = "Name a colour.", "Blue."
CALL = {"name": "paint", "arguments": {"colour": "blue"}}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.tool_calls | tojson if m.tool_calls else m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def examples_of_page():
    """(name, line) of all formats in the tables of docs/data.md, for fine-tuning and for dpo."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| format \| a line \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    return [re.findall(r"^\| (\S+) \| `(.*)` \|$", table, re.MULTILINE) for table in tables]


TURNS = [{"role": "user", "content": "a"}]


def read(row):
    return ExampleReader()(json.dumps(row), "f:1").conversation


def spoken(chat):
    return [(message.role, message.content) for message in chat.messages]


def test_the_page_has_a_line_of_every_format_which_is_recognised():
    for rows, formats, make in zip(examples_of_page(), (SFT, DPO), (ExampleReader, PreferenceReader), strict=True):
        assert [name for name, _ in rows] == [form.name for form in formats]
        for name, line in rows:
            reader = make()
            reader(line, "page:1")
            assert list(reader.counts()) == [name] and not reader.warnings()


@pytest.mark.parametrize(
    "row",
    [
        {"src": ASKED, "tgt": ANSWER, "system": "Short."},
        {"src": [ASKED], "tgt": [ANSWER], "context": {"system": "Short."}},
        {"instruction": "Name", "input": "a colour.", "output": ANSWER, "system": "Short."},
        {"instruction": ASKED, "input": None, "output": ANSWER, "system": "Short.", "history": None},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}], "system": "Short."},
        {"messages": [{"role": "developer", "content": "Short."}, {"role": "user", "content": [{"type": "text", "text": ASKED}]},
                      {"role": "assistant", "content": ANSWER}]},
        {"prompt": ASKED, "completion": ANSWER, "system": "Short."},
        {"prompt": [{"role": "system", "content": "Short."}, {"role": "user", "content": ASKED}],
         "completion": [{"role": "assistant", "content": ANSWER}]},
    ],
)  # fmt: skip
def test_every_format_gives_the_same_conversation(row):
    found = [(role, " ".join(text.split())) for role, text in spoken(read(row))]
    assert found == [("system", "Short."), ("user", ASKED), ("assistant", ANSWER)]


def test_history_comes_before_the_instruction():
    row = {"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]]}
    assert spoken(read(row)) == [("user", "a"), ("assistant", "b"), ("user", "c\nd"), ("assistant", "e")]


def test_tool_calls_of_both_spellings_are_the_same_and_have_loss_but_results_have_none(tmp_path):
    folder = write_json(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tools = [{"name": "paint", "parameters": {}}]
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "the fox"}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "the dog"}, {"from": "gpt", "value": "hello"},
        ],
        "tools": json.dumps(tools),
    }  # fmt: skip
    called = {"id": "1", "type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
    openai = {
        "messages": [
            {"role": "user", "content": "the fox"}, {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "the dog", "tool_call_id": "1"}, {"role": "assistant", "content": "hello"},
        ],
        "tools": [{"type": "function", "function": tools[0]}],
    }  # fmt: skip
    first, second = read(sharegpt), read(openai)
    assert first.tools == second.tools == ({"type": "function", "function": tools[0]},)
    functions = [chat.messages[1].more["tool_calls"][0]["function"] for chat in (first, second)]
    assert functions == [CALL, CALL]
    tokenizer = tokenizers.load(folder)
    row = Encoder(tokenizer, 1000, 1000).encode(ExampleReader()(json.dumps(sharegpt), "f:1"))
    trained = tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX])
    assert "paint" in trained and "hello" in trained and "dog" not in trained and "fox" not in trained


def test_answers_with_weight_or_label_zero_are_not_trained_on():
    def trained(row):
        return [message.train for message in read(row).messages if message.is_answer]

    turns = {"src": ["a", "b"], "tgt": ["c", "d"]}
    assert trained({**turns, "label": [0, 1]}) == [False, True]
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}] * 2
    said[-1] = {"role": "assistant", "content": "d", "label": 1}
    assert trained({"messages": said}) == [False, True]
    for mark in ({"loss": False}, {"loss_scale": 0.0}, {"train": False}, {"training": False}):
        said[1] = {"role": "assistant", "content": "b", **mark}
        assert trained({"messages": said}) == [False, True]
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert trained({"prompt": before, "completion": "d"}) == [False, True]
    for label, reason in (([0, 0], "no answer is trained on"), ([1], "0 or 1 for each of the 2 answers")):
        with pytest.raises(ValueError, match=reason):
            read({**turns, "label": label})


def test_thoughts_are_read_by_each_of_their_names():
    for name in ("reasoning_content", "thinking", "reasoning"):
        said = [{"role": "user", "content": "a", name: None}, {"role": "assistant", "content": "b", name: "Hm."}]
        for row in ({"messages": said}, {"prompt": said[:1], "completion": said[1:]}):
            assert [message.more for message in read(row).messages] == [None, {"reasoning_content": "Hm."}]


def test_calls_of_ms_swift_and_of_openais_first_kind_are_calls():
    openai = [{"role": "assistant", "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])}},
              {"role": "function", "name": "paint", "content": "done"}]  # fmt: skip
    swift = [*[{"role": "tool_call", "content": json.dumps(CALL)}] * 2, {"role": "tool_response", "content": "done"}]
    for said, count in ((openai, 1), (swift, 2)):
        chat = read({"messages": [{"role": "user", "content": "a"}, *said, {"role": "assistant", "content": "b"}]})
        assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
        assert [call["function"] for call in chat.messages[1].more["tool_calls"]] == [CALL] * count


def test_speakers_and_texts_may_be_named_by_either_spelling():
    for speaker, text in (("role", "value"), ("from", "content")):
        said = [{speaker: "user", text: "a"}, {speaker: "model", text: "b"}]
        assert spoken(read({"conversations": said})) == [("user", "a"), ("assistant", "b")]


def test_values_for_the_template_are_those_of_the_line(tmp_path):
    folder = write_json(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ mood }}" + TEMPLATE)
    template = tokenizers.load(folder).chat_template
    row = {"src": "a", "tgt": "b", "chat_template_kwargs": {"mood": "kind", "other": None}}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    (line,) = read_prompts(tmp_path / "in.jsonl", "Short.")
    assert line.conversation.system == "Short." and template.text(line.conversation).startswith("kind<system>")
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"mood": "kind"}}
    for chat in (read(row), PreferenceReader()(json.dumps(pair), "f:1").prompt):
        assert template.text(chat).startswith("kind<user>a")
    with pytest.warns(UserWarning, match="does not write 'mod' of the data"):
        template.text(read({**row, "chat_template_kwargs": {"mod": 1}}))
    for value, reason in (
        ("kind", "must be an object"),
        ({"messages": []}, "chat_template_kwargs.messages cannot be set"),
    ):
        with pytest.raises(ValueError, match=reason):
            read({**row, "chat_template_kwargs": value})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"instruction": "a", "response": "b"},
            r"looks like Alpaca \(instruction, output\), but: missing key 'output'",
        ),
        (
            {"text": "a"},
            "no known format: the line has 'text'; known are llmctl .src, tgt.*it would be a line of text for llmctl data build",
        ),
        ({"question": "a", "answer": "b"}, "with the columns question=instruction, answer=output it would be Alpaca"),
        ({"instruction": "a", "response": "b"}, "with the columns response=output it would be Alpaca"),
        ({"prompt": "a", "response": "b"}, "with the columns response=completion it would be prompt-completion"),
        (
            {"input": "a", "output": "b"},
            "with the columns output=completion, input=prompt it would be prompt-completion",
        ),
        (
            {"instruction": "a", "context": "c", "response": "b"},
            "looks like Alpaca .*; with the columns context=input, response=output it would be Alpaca",
        ),
        (
            {"conversation": [{"from": "human", "value": "a"}]},
            "with the columns conversation=conversations it would be ShareGPT",
        ),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "it would be a line of Alpaca for llmctl dpo"),
        ({"instruction": "a", "output": None}, "looks like Alpaca, but 'output' is null"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message is of the role user"),
        ({"messages": [{"role": "bot", "content": "a"}]}, r"messages\[0\].role is 'bot'; known are system"),
        ({"messages": [{"role": "user", "content": "a", "txt": "b"}]}, "has the key 'txt', which would not be read"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is no text"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]},
            r"messages\[1\].weight is 0.5; it must be 0 or 1",
        ),
        ({"conversations": "a"}, "must be a list of messages, not a string"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "must be JSON text"),
        ({"src": "a", "tgt": "b", "system": "c", "context": {"system": "d"}}, "differ; keep one"),
        ({"src": "a", "tgt": "b", "system": ["c"]}, "'system' must be a string, not a list"),
        ({"instruction": "a", "output": "b", "history": "c"}, "'history' must be a list of .question, answer."),
        ({"prompt": "a", "completion": " "}, "'completion' is empty"),
        ({"messages": [*TURNS, {"role": "assistant", "content": " "}]}, "an answer is empty"),
        (
            {"messages": [*TURNS, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]},
            "a name and arguments for each call",
        ),
        (
            {"messages": [*TURNS, {"role": "assistant", "content": "b"}], "tools": "[1]"},
            "'tools' must be a list of function",
        ),
        ({"src": ["a"], "tgt": ["b"], "label": [1, 0]}, "'label' must have 0 or 1 for each of the 1 answers"),
    ],
)
def test_a_wrong_line_says_what_it_looks_like_and_what_is_wrong(row, reason):
    with pytest.raises(ValueError, match=reason):
        read(row)


def test_keys_with_text_that_is_not_read_are_named_once():
    reader = ExampleReader()
    for number in range(3):
        reader(json.dumps({"src": "a", "tgt": "b", "persona": "c", "id": "d", "score": 1}), f"f:{number}")
    assert reader.summary() == "data format: llmctl (f)"
    (warning,) = reader.warnings()
    assert "'persona'" in warning and "3 lines (f:0, f:1, f:2)" in warning


def test_pairs_of_every_format_are_the_same():
    user, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
    )
    rows = [
        {"src": ["a"], "tgt": [], "response": ["c", "b"], "sort": [0, 1]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "a", "chosen": [user, good], "rejected": [user, bad]},
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
         "rejected": {"from": "gpt", "value": "c"}},
        {"messages": [user], "chosen_response": [good], "rejected_response": "c"},
        {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"},
        {"messages": [user, good], "rejected_response": "c"},
        {"messages": [user, good], "rejected_response": [bad]},
        {"messages": [user, good], "rejected_messages": [user, bad]},
    ]  # fmt: skip
    found = [PreferenceReader()(json.dumps(row), "f:1") for row in rows]
    assert {(spoken(pair.prompt)[0], pair.chosen.content, pair.rejected.content) for pair in found} == {
        (("user", "a"), "b", "c")
    }
    for row, reason in (
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "are the same"),
        ({"chosen": "b", "rejected": "c"}, "missing key 'prompt'"),
        ({"chosen": [user, good], "rejected": [good, bad]}, "differ before their last message"),
        ({"messages": [user, good], "rejected_messages": [good, bad]}, "differ before their last message"),
        ({"messages": [user], "rejected_response": "c"}, "must be an assistant's answer"),
        (
            {"messages": [user, good], "chosen_response": "b", "rejected_response": "c"},
            "the prompt ends with an answer",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            PreferenceReader()(json.dumps(row), "f:1")


def test_prompts_of_every_format_are_read_without_their_last_answer(tmp_path):
    rows = [json.loads(line) for _, line in examples_of_page()[0][1:]]
    bare = [{"instruction": ASKED}, {"prompt": ASKED}, {"src": ASKED, "system": "Short."}]
    (tmp_path / "in.json").write_text(json.dumps([*rows, *bare]))
    found = read_prompts(tmp_path / "in.json", "Long.")
    assert all(
        line.conversation.add_generation_prompt and line.conversation.question.startswith(ASKED) for line in found
    )
    assert [line.conversation.system for line in found] == [
        "Be brief.",
        "Long.",
        "Be brief.",
        "Long.",
        "Long.",
        "Long.",
        "Short.",
    ]


def test_a_format_can_be_chosen_and_keys_renamed():
    row = json.dumps({"question": "a", "answer": "b", "src": "c", "tgt": "d"})
    reader = ExampleReader("Alpaca", ["question=instruction", "answer=output"])
    assert spoken(reader(row, "f:1").conversation) == [("user", "a"), ("assistant", "b")]
    with pytest.raises(ValueError, match="missing key 'output'"):
        ExampleReader("Alpaca", ["question=instruction"])(row, "f:1")
    with pytest.raises(ValueError, match="'answer' is to be renamed to 'tgt', which the line has too"):
        ExampleReader(columns=["answer=tgt"])(row, "f:1")
    with pytest.raises(ConfigError, match="data.columns='answer'"):
        ExampleReader(columns=["answer"])


def test_configurations_know_the_names_of_all_formats():
    for config, formats in ((FinetuneDataConfig, SFT), (DpoDataConfig, DPO)):
        (field,) = (field for field in fields(config) if field.name == "format")
        assert field.metadata["choices"] == ("auto", *(form.name for form in formats))


def test_held_out_examples_are_some_of_the_data_and_the_same_for_a_seed():
    rows = list(range(20))
    for size, count in ((0.1, 2), (5, 5)):
        train, dev, parts = _held_out(rows, [15, 5], size, 1)
        assert len(dev) == count and sorted(train + dev) == rows
        assert parts == [sum(row < 15 for row in train), sum(row >= 15 for row in train)]
        assert (train, dev, parts) == _held_out(rows, [15, 5], size, 1)
    assert _held_out(rows, [20], 5, 1) != _held_out(rows, [20], 5, 2)
    for size in (0.01, 20):
        with pytest.raises(ConfigError, match="some must be left"):
            _held_out(rows, [20], size, 1)


def test_tools_are_read_in_every_format_and_keys_of_others_are_not():
    tools = [{"name": "paint", "parameters": {}}]
    for _, line in examples_of_page()[0]:
        row = {**json.loads(line), "tools": json.dumps(tools)}
        assert read(row).tools == ({"type": "function", "function": tools[0]},)
    for _, line in examples_of_page()[1]:
        pair = PreferenceReader()(json.dumps({**json.loads(line), "tools": tools}), "f:1")
        assert pair.prompt.tools == ({"type": "function", "function": tools[0]},)
    reader = ExampleReader()
    reader(json.dumps({"instruction": ASKED, "output": ANSWER, "context": "A hint."}), "f:1")
    assert "'context' holds text that is not read" in reader.warnings()[0]


def test_a_label_of_zero_is_seen_in_every_format():
    for _, line in examples_of_page()[0]:
        answers = sum(message.is_answer for message in read(json.loads(line)).messages)
        with pytest.raises(ValueError, match="no answer is trained on"):
            read({**json.loads(line), "label": [0] * answers})
