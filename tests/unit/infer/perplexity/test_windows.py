"""How text is cut: every token is predicted once, with context."""

import pytest

from llmctl.data.sft.encoding import EncodedExample
from llmctl.errors import DataError
from llmctl.infer.perplexity.windows import answer_windows, text_windows


class Special:
    def __init__(self, prefix=()):
        self.prefix = prefix


class Letters:
    """A token for each byte, and 0 before a text."""

    def __init__(self, prefix=(0,)):
        self.special = Special(prefix)

    def encode(self, text, add_special=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


@pytest.mark.parametrize(
    ("count", "length", "stride"), [(1, 8, 4), (7, 8, 4), (8, 8, 4), (30, 8, 3), (31, 8, 7), (5, 2, 1)]
)
def test_every_token_is_predicted_once_with_the_context_that_the_stride_leaves(count, length, stride):
    text = "".join(chr(97 + i % 26) for i in range(count))
    passage = text_windows(Letters(), text, length, stride)
    whole, seen = [0, *text.encode()], []
    for number, window in enumerate(passage.windows):
        assert len(window.ids) <= length
        start = whole.index(window.ids[0]) if number == 0 else seen[-1] + 1 - window.scored[0]
        assert list(window.ids) == whole[start : start + len(window.ids)]
        assert number == 0 or window.scored[0] >= min(length - stride, seen[-1])
        seen += [start + at for at in window.scored]
    assert seen == list(range(1, count + 1))
    assert passage.size == count


def test_without_a_token_before_the_text_its_first_token_is_not_counted():
    passage = text_windows(Letters(()), "abc", 8, 4)
    assert [list(window.scored) for window in passage.windows] == [[1, 2]] and passage.size == 2


def test_a_text_of_one_token_is_refused():
    with pytest.raises(DataError, match="fewer than two tokens"):
        text_windows(Letters(()), "a", 8, 4)


def test_of_an_example_the_tokens_with_a_label_are_predicted():
    # Answers: tokens 7 and 8 at 2 and 3, and the end token 2, which is only a label.
    row = EncodedExample([5, 6, 7, 8], [-100, 7, 8, 2], "a:1", False)
    (window,) = answer_windows([row]).windows
    assert (list(window.ids), list(window.scored)) == ([5, 6, 7, 8, 2], [2, 3, 4])
    inside = EncodedExample([5, 7, 6, 6], [7, -100, -100, -100], "a:2", False)
    assert list(answer_windows([inside]).windows[0].ids) == [5, 7]
