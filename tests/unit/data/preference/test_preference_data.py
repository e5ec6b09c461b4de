"""Preferences: reading with every complaint, truncation, and the layout of a prompt with both answers."""

import json

import numpy as np
import pytest
from kit.chat_templates import JINJA
from kit.examples import read_split
from kit.tiny_tokenizers import write_json

from llmctl import tokenizers
from llmctl.data.encoded import encode
from llmctl.data.preference import rows as pair_rows
from llmctl.data.preference.encoding import Pair, PairEncoder, check_preference
from llmctl.data.preference.examples import Preference, PreferenceReader
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, prompt_ids
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError
from llmctl.tokenizers.conversation import Conversation, Message

GOOD = {"src": ["a"], "tgt": [], "response": ["b", "c"], "sort": [1, 0]}
FOX = "the quick brown fox"


def preference(chosen="hello world", rejected="over the lazy dog", src=(FOX,), tgt=(), system=None):
    prompt = Conversation(zip(src, (*tgt, None), strict=True), system)
    return Preference(prompt, Message("assistant", chosen), Message("assistant", rejected), "f:1")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tokenizers.load(write_json(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_json(tmp_path_factory.mktemp("chat"))
    (folder / "chat_template.jinja").write_text(JINJA)
    return tokenizers.load(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"src": None, "source": "a"}, "missing key 'src' .found 'source'"),
        ({"tgt": None}, "missing key 'tgt'"),
        ({"response": None}, "missing key 'response'"),
        ({"sort": None, "sorted": [1, 0]}, "missing key 'sort' .found 'sorted'"),
        ({"src": ["a", "b"]}, "'src' has 2 turns, 'tgt' has 0; 'src' must have one more"),
        ({"tgt": ["b"]}, "'src' has 1 turns, 'tgt' has 1; 'src' must have one more"),
        ({"src": ["a", "b"], "tgt": [" "]}, "'tgt' is empty"),
        ({"response": ["b"]}, "'response' must have two answers, got 1"),
        ({"response": ["b", " "]}, "'response' is empty"),
        ({"response": ["b", "b "]}, "the two answers of 'response' are the same"),
        ({"response": ["b", 3]}, "'response' must be a string or a list of strings, not a number"),
        ({"sort": [1, 1]}, "are equal, so neither answer is better"),
        ({"sort": [1]}, "'sort' must be a list of two numbers"),
        ({"sort": [True, False]}, "'sort' must be a list of two numbers"),
        ({"sort": [float("nan"), 1]}, "are equal, so neither answer is better"),
        ({"context": {"sistem": "x"}}, "allows only the key 'system'"),
    ],
)
def test_broken_line_gives_its_reason(change, reason):
    row = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=reason):
        PreferenceReader()(json.dumps(row), "f:1")


def test_the_answer_with_the_larger_sort_is_chosen():
    for sort, chosen, rejected in (([1, 0], "b", "c"), ([0.5, 2], "c", "b")):
        row = PreferenceReader()(json.dumps({**GOOD, "sort": sort, "context": {"system": "be brief"}}), "f:1")
        assert (row.chosen.content, row.rejected.content, row.prompt.system) == (chosen, rejected, "be brief")


def test_all_broken_lines_are_listed(tmp_path):
    lines = [GOOD, {**GOOD, "sort": [0, 0]}, GOOD, {**GOOD, "response": ["b"]}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n[1]\n")
    with pytest.raises(DataError) as caught:
        read_split([tmp_path], "train", PreferenceReader())
    message = str(caught.value)
    assert message.startswith("3 problems in the train data:")
    assert all(f"train.jsonl:{line}: " in message for line in (2, 4, 5))


def test_prompt_and_answers_are_those_of_fine_tuning_and_of_generation(plain, chat):
    for tokenizer in (plain, chat):
        row = preference()
        pair = PairEncoder(tokenizer, 64, 128).encode(row)
        assert pair.prompt == prompt_ids(tokenizer, row.prompt) and not pair.truncated
        for text, answer in ((row.chosen, pair.chosen), (row.rejected, pair.rejected)):
            trained = Encoder(tokenizer, 64, 128).encode(Example((row.question,), (text.content,), None, "f:1"))
            whole = pair.prompt + answer
            assert whole == trained.input_ids[: len(whole)] and tokenizer.eos_id == answer[-1]
            assert all(label == IGNORE_INDEX for label in trained.labels[len(whole) - 1 :])


def test_several_turns_need_a_template(plain):
    with pytest.raises(DataError, match="has 2 turns, which needs a chat template"):
        check_preference(preference(src=("a", "b"), tgt=("c",)), plain)


def test_a_long_prompt_keeps_its_end_and_answers_are_cut_in_proportion(plain):
    row = preference("hello world " * 10, "over the lazy dog " * 2, ["x " * 40 + FOX])
    whole = PairEncoder(plain, 1000, 1000).encode(row)
    pair = PairEncoder(plain, 12, 36).encode(row)
    assert pair.truncated and len(pair.prompt) == 12 and len(pair) == 36
    assert pair.prompt[1:] == whole.prompt[-11:] and pair.prompt[0] == plain.bos_id
    expected = 24 * len(whole.chosen) // (len(whole.chosen) + len(whole.rejected))
    assert pair.chosen == whole.chosen[:expected] and pair.rejected == whole.rejected[: 24 - expected]
    assert plain.eos_id not in pair.chosen + pair.rejected


def test_a_prompt_over_its_limit_is_whole_where_everything_fits(plain):
    assert not PairEncoder(plain, 4, 1000).encode(preference()).truncated


def test_a_template_keeps_its_own_text_when_the_question_is_cut(chat):
    row = preference(src=["x " * 60 + FOX])
    pair = PairEncoder(chat, 20, 60).encode(row)
    head, tail = (prompt_ids(chat, preference(src=[text]).prompt) for text in ("", FOX))
    assert pair.truncated and len(pair.prompt) <= 20
    assert pair.prompt[0] == head[0] and pair.prompt[-3:] == tail[-3:] and chat.eos_id in pair.chosen


def test_earlier_turns_come_back_newest_first_while_they_fit(chat):
    row = preference(src=("first", "second", "third"), tgt=("one", "two"), system="be brief")
    whole = PairEncoder(chat, 100, 1000).encode(row)
    assert whole.dropped_turns == 0 and whole.prompt == prompt_ids(chat, row.prompt)
    shorter = PairEncoder(chat, 100, len(whole) - 1).encode(row)
    assert shorter.dropped_turns == 1 and not shorter.truncated
    assert shorter.prompt == prompt_ids(chat, row.prompt.without_turns(1))
    last = PairEncoder(chat, 100, len(shorter) - 1).encode(row)
    assert last.dropped_turns == 2 and last.prompt == prompt_ids(chat, row.prompt.without_turns(2))


def test_a_pair_without_a_difference_within_its_length_is_dropped_and_counted(plain):
    alike = preference("hello world one", "hello world two", ["x " * 30])
    nothing = preference("b", "a " * 200, ["x " * 30])
    found = encode([preference("b", "c"), alike, nothing, nothing], PairEncoder(plain, 8, 12).coder())
    assert len(found.rows) == 1 and (found.examples, found.truncated, found.dropped) == (4, 1, 3)


SHORT = Pair([1, 2, 3], [4, 5], [6, 7, 8], "f:1")
OTHER = Pair([9, 8], [7, 6, 5], [4], "f:2")


def asked(arrays):
    """What each answer is asked for, as (row, position, token) by answer."""
    width = arrays["input_ids"].shape[1]
    places = [(int(c) // width, int(c) % width) for c in arrays["column"]]
    rows = zip(arrays["answer"], places, arrays["token"], strict=True)
    return [(int(a), int(arrays["position_ids"][at]), int(token)) for a, at, token in rows]


def test_answers_share_a_prompt_whose_end_predicts_the_first_token_of_both():
    arrays = pair_rows.collate(pair_rows.rows_of([SHORT]), pad_id=0, multiple=10)
    assert arrays["input_ids"][0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]
    assert arrays["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 0]
    assert arrays["document_end"][0].tolist() == [8, 8, 8, 5, 5, 8, 8, 8, 0, 0]
    assert arrays["column"].tolist() == [2, 3, 2, 5, 6]
    assert asked(arrays) == [(0, 2, 4), (0, 3, 5), (1, 2, 6), (1, 3, 7), (1, 4, 8)]


@pytest.mark.parametrize("how", ["none", "first-come", "best-fit"])
@pytest.mark.parametrize("window", [None, 7, 6, 2])
def test_every_layout_asks_for_the_same(how, window):
    rows = pair_rows.rows_of([SHORT, OTHER], how, 20, window)
    assert len(rows) == (2 if how == "none" else 1)
    arrays = pair_rows.collate(rows, 0)
    found = sorted((int(arrays["pair"][a // 2]), a % 2, at, token) for a, at, token in asked(arrays))
    expected = []
    for number, pair in enumerate((SHORT, OTHER)):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            expected += [(number, side, len(pair.prompt) - 1 + i, token) for i, token in enumerate(answer)]
    assert found == sorted(expected)


def test_a_pair_longer_than_the_window_is_two_documents():
    row = pair_rows.rows_of([SHORT], window=7)[0]
    assert row.input_ids == [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8]
    assert row.packed.ends == [5] * 5 + [11] * 6 and row.source == "f:1"
    assert np.array_equal(row.packed.position_ids, [*range(5), *range(6)])
