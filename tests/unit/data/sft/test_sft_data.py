"""Data for fine-tuning: reading with every complaint at once, truncation, labels, batches."""

import json
import subprocess
import sys

import numpy as np
import pytest
from kit.chat_templates import JINJA
from kit.examples import read_split
from kit.tiny_tokenizers import write_json

from llmctl import tokenizers
from llmctl.data.encoded import encode
from llmctl.data.files import find_files
from llmctl.data.sft.collate import collate
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, prompt_ids
from llmctl.data.sft.examples import Example, ExampleReader
from llmctl.errors import DataError
from llmctl.tokenizers.conversation import Conversation


def example(src="the quick brown fox", tgt="hello world", system=None):
    src, tgt = ([text] if isinstance(text, str) else text for text in (src, tgt))
    return Example(tuple(src), tuple(tgt), system, "f:1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tokenizers.load(write_json(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_json(tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(JINJA)
    return tokenizers.load(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"src": "a"', "not valid JSON: .* at column"),
        ("[1]", "expected a JSON object, got a list"),
        ('{"source": "a", "tgt": "b"}', "missing key 'src' .found 'source'"),
        ('{"src": "a"}', "missing key 'tgt'"),
        ('{"src": 1, "tgt": "b"}', "'src' must be a string or a list of strings, not a number"),
        ('{"src": "a", "tgt": [null]}', "'tgt' must be a string or a list of strings, not null"),
        ('{"src": [], "tgt": []}', "'src' is an empty list"),
        ('{"src": ["a"], "tgt": ["b", "c"]}', "'src' has 1 turns, 'tgt' has 2"),
        ('{"src": "a", "tgt": " "}', "'tgt' is empty"),
        ('{"src": "a", "tgt": "b", "context": "x"}', "'context' must be an object, not a string"),
        ('{"src": "a", "tgt": "b", "context": {"system": 3}}', "'context.system' must be a string, not a number"),
        ('{"src": "a", "tgt": "b", "context": {"sistem": "x"}}', "allows only the key 'system', not 'sistem'"),
        ('{"src": "a", "src": "c", "tgt": "b"}', "the key 'src' is given twice"),
        ('{"src": "\\ud83d\\ude00", "tgt": "\\ud83d!"}', r"\\ud83d is half of a surrogate pair"),
        (None, "not valid UTF-8"),
        ("[" * 100000, "nested too deeply|not valid JSON"),
    ],
)
def test_broken_line_gives_its_reason(line, reason):
    with pytest.raises(ValueError, match=reason):
        ExampleReader()(line, "f:1")


def test_all_broken_lines_of_all_files_are_reported_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"src": "a", "tgt": "b"}\n\n{"src": 1, "tgt": "b"}\n\xff\xfe\n')
    (tmp_path / "b.jsonl").write_text("oops\n")
    (tmp_path / "c.jsonl").write_text("\n")
    with pytest.raises(DataError) as caught:
        read_split([tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")], "train", ExampleReader())
    message = str(caught.value)
    assert message.startswith("4 problems in the train data:")
    for part in (
        "a.jsonl:3: 'src'",
        "a.jsonl:4: not valid UTF-8",
        "b.jsonl:1: not valid JSON",
        "c.jsonl: the file has no",
    ):
        assert part in message


def test_long_listings_are_capped_with_their_count(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"src": "a", "tgt": {[1] * number}}}\n' for number in range(2, 52)))
    with pytest.raises(
        DataError, match=r"50 problems(.|\n)*50 lines \(.*a.jsonl:1, .*a.jsonl:2, .*a.jsonl:3 ...\): 'tgt' must be "
    ) as caught:
        read_split([tmp_path / "a.jsonl"], "train", ExampleReader())
    assert str(caught.value).count("\n") == 2
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"src": "a", "tgt": ["b"] * number}) + "\n" for number in range(2, 52))
    )
    with pytest.raises(DataError, match=r"50 lines .*: 'src' has 1 turns, 'tgt' has 2"):
        read_split([tmp_path / "b.jsonl"], "train", ExampleReader())


def test_files_folders_and_sub_folders_are_found(tmp_path):
    row = json.dumps({"src": "a", "tgt": "b"}) + "\n"
    (tmp_path / "one" / "dev").mkdir(parents=True)
    (tmp_path / "one" / "train.json").write_text(row)
    for name in ("y.jsonl", "x.json", "notes.txt"):
        (tmp_path / "one" / "dev" / name).write_text(row)
    (tmp_path / "more.jsonl").write_text(row * 2)
    train = read_split([tmp_path / "one", tmp_path / "more.jsonl"], "train", ExampleReader())
    assert [e.source.rpartition("/")[2] for e in train] == ["train.json:1", "more.jsonl:1", "more.jsonl:2"]
    assert [e.source.rpartition("/")[2] for e in read_split([tmp_path / "one"], "dev", ExampleReader())] == [
        "x.json:1",
        "y.jsonl:1",
    ]
    with pytest.raises(DataError, match="has no dev data: looked for dev.jsonl, dev-"):
        read_split([tmp_path], "dev", ExampleReader())
    assert not find_files(tmp_path, "dev", optional=True).files


def test_reading_needs_neither_numpy_nor_paddle():
    code = "import sys, llmctl.data.sft.examples; print({'numpy', 'paddle', 'tokenizers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_loss_is_on_the_answer_and_its_end_only(plain):
    row = Encoder(plain, 32, 64).encode(example())
    source = [plain.bos_id, *plain.encode("the quick brown fox", False)]
    answer = [*plain.encode("hello world", False), plain.eos_id]
    assert row.input_ids == source + answer and not row.truncated
    assert row.labels == [IGNORE_INDEX] * (len(source) - 1) + answer + [IGNORE_INDEX]


def test_source_is_cut_from_the_left_and_keeps_its_bos(plain):
    encoder = Encoder(plain, 5, 64)
    row = encoder.encode(example())
    ids = plain.encode("the quick brown fox", False)
    assert row.input_ids[:5] == [plain.bos_id, *ids[-4:]] and row.truncated
    assert encoder.prompt(example()) == row.input_ids[:5]


def test_a_cut_answer_has_no_end_token(plain):
    source, answer = len(plain.encode("a")), plain.encode("hello world hello world", False)
    row = Encoder(plain, 8, source + 3).encode(example("a", "hello world hello world"))
    assert row.input_ids[source:] == answer[:3] and row.truncated and plain.eos_id not in row.input_ids


def test_an_answer_that_leaves_no_room_for_its_end_token_counts_as_cut(plain):
    source, answer = len(plain.encode("a")), plain.encode("hello world", False)
    full, room = (Encoder(plain, 8, source + len(answer) + more).encode(example("a")) for more in (0, 1))
    assert full.input_ids[source:] == answer and full.truncated
    assert room.input_ids[source:] == [*answer, plain.eos_id] and not room.truncated


def test_what_a_template_alone_makes_too_long_is_not_cut(chat):
    row = Encoder(chat, 2, 60).encode(example("", "hello"))
    assert not row.truncated and row.input_ids == Encoder(chat, 60, 60).encode(example("", "hello")).input_ids


def test_an_example_without_room_for_an_answer_is_dropped_and_counted(plain):
    found = encode([example("a", "b"), example("the quick brown fox " * 9, "b")], Encoder(plain, 9, 9).coder)
    assert len(found.rows) == 1 and (found.examples, found.dropped) == (2, 1)


def test_prompt_of_generation_is_the_training_prefix(plain, chat):
    for tokenizer in (plain, chat):
        row = Encoder(tokenizer, 64, 128).encode(example())
        prompt = Encoder(tokenizer, 64, 128).prompt(example())
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels[len(prompt) - 1] == row.input_ids[len(prompt)]
        assert set(row.labels[: len(prompt) - 1]) == {IGNORE_INDEX}
        asked = Conversation(((example().question, None),))
        assert prompt_ids(tokenizer, asked) == prompt_ids(tokenizer, example().conversation) == prompt


def test_oldest_turns_are_dropped_whole_and_the_system_text_stays(chat):
    turns = example(["hello"] * 6, ["world"] * 6, "be brief")
    whole = Encoder(chat, 400, 400).encode(turns)
    short = Encoder(chat, 30, 40).encode(turns)
    assert len(whole.input_ids) > 40 >= len(short.input_ids)
    text = chat.decode(short.input_ids, skip_special=False)
    assert text.startswith("<s>be brief\n<|user|>hello") and short.truncated
    kept = text.count("<|user|>")
    assert (
        1 <= kept < 6
        and short.input_ids
        == Encoder(chat, 400, 400).encode(example(["hello"] * kept, ["world"] * kept, "be brief")).input_ids
    )


def test_a_single_turn_is_cut_inside_what_the_user_wrote(chat):
    row = Encoder(chat, 24, 60).encode(example("the quick brown fox " * 20 + "jumps", "hello", "be brief"))
    text = chat.decode(row.input_ids, skip_special=False)
    assert text.startswith("<s>be brief\n<|user|>") and "jumps\n<|bot|>hello</s>" in text and row.truncated
    assert len(row.input_ids) <= 60


def test_several_turns_without_a_template_are_refused(plain):
    with pytest.raises(DataError, match="f:1 has 2 turns, which needs a chat template"):
        Encoder(plain, 32, 64).encode(example(["a", "b"], ["c", "d"]))
    with pytest.raises(DataError, match="f:1 has a system prompt, which needs a chat template"):
        Encoder(plain, 32, 64).encode(example(system="s"))


def test_an_answer_without_an_end_token_gets_one(tmp_path):
    folder = write_json(tmp_path)
    (folder / "chat_template.json").write_text(
        json.dumps({"conversation": ["{{user}}:", "{{bot}}"], "query": "{{query}}:"})
    )
    tokenizer = tokenizers.load(folder)
    assert Encoder(tokenizer, 32, 64).encode(example()).input_ids[-1] == tokenizer.eos_id


def test_batches_are_padded_on_the_right_to_the_multiple(plain):
    rows = encode([example("a", "b"), example()], Encoder(plain, 32, 64).coder).rows
    batch = collate(rows, plain.pad_id, multiple=8)
    assert batch["input_ids"].shape[1] % 8 == 0
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert batch["input_ids"][i, :length].tolist() == row.input_ids
        assert batch["labels"][i, :length].tolist() == row.labels
        assert (batch["labels"][i, length:] == IGNORE_INDEX).all()
    assert all(value.dtype == np.int64 for value in batch.values())
