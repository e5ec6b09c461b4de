"""How contexts and continuations are cut where a prompt is one whole, or where there is no bos."""

from types import SimpleNamespace

import pytest

from llmctl.errors import DataError, UnsupportedError
from llmctl.infer.harness import tokens

BOS, EOS, MARK = 1, 2, 3


class Letters:
    """A token for each byte."""

    def __init__(self, bos=BOS, prefix=(BOS,), bridge=()):
        self.bos_id, self.eos_id = bos, EOS
        self.special = SimpleNamespace(prefix=prefix, bridge=bridge, suffix=())

    def encode(self, text, add_special=False, parse_special=False):
        assert not add_special
        return list(text.encode())

    def decode(self, ids, skip_special=True):
        return {BOS: "<s>", EOS: "</s>"}[ids[0]]


def test_spaces_before_the_continuation_are_its_own():
    window = tokens.continuation(Letters(), "ab  ", "c", 100)
    assert [*window.ids] == [BOS, *b"ab  c"] and [*window.scored] == [3, 4, 5]


def test_an_empty_context_is_bos_or_else_eos():
    assert [*tokens.continuation(Letters(), "", "ab", 100).ids] == [BOS, *b"ab"]
    assert [*tokens.continuation(Letters(bos=None, prefix=()), "", "ab", 100).ids] == [EOS, *b"ab"]


def test_a_long_context_loses_its_beginning_and_the_last_token_takes_no_position():
    window = tokens.continuation(Letters(), "abcdef", "gh", 4)
    assert bytes(window.ids) == b"defgh" and [*window.scored] == [3, 4]
    with pytest.raises(DataError, match="has 5 tokens; that is over the 4 positions"):
        tokens.continuation(Letters(), "a", "bcdef", 4)


def test_an_answer_behind_a_bridge_begins_a_text():
    tokenizer = Letters(prefix=(), bridge=(MARK, BOS))
    window = tokens.continuation(tokenizer, "ab", " cd", 100)
    assert [*window.ids] == [*b"ab", MARK, BOS, *b"cd"] and [*window.scored] == [4, 5]
    assert tokens.prompt(tokenizer, "abc", 4) == [*b"bc", MARK, BOS]
    with pytest.raises(UnsupportedError, match="reads a prompt in both directions"):
        tokens.rolling(tokenizer, "ab", 100)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 9, 11])
def test_a_whole_text_is_predicted_once_by_windows_of_all_positions(count):
    text = "abcdefghijk"[:count]
    windows, whole = tokens.rolling(Letters(prefix=()), text, 4), [BOS, *text.encode()]
    assert [window.ids[at] for window in windows for at in window.scored] == whole[1:]
    assert all(len(window.ids) == min(5, len(whole)) for window in windows)
