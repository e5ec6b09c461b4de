"""Pieces of an answer: stop strings across tokens, log-probabilities only of what is shown."""

import pytest

from llmctl.infer.request import Event, Generation
from llmctl.infer.sampling import SamplingParams, TokenLogprob
from llmctl.serve.answers.answer import Answer, Piece
from llmctl.serve.problems import Problem
from llmctl.tokenizers.stream import DecodeStream

TOKENS = [b"ab", b"cd", b"ef", b"\xe4\xbd", b"\xa0", b"!"]


class Letters:
    """A tokenizer of a few tokens."""

    def stream(self):
        return DecodeStream(lambda ids: b"".join(TOKENS[one] for one in ids).decode("utf-8", "replace"))


def grow(tokens, reason="length", **params):
    answer, whole = Answer(Letters(), SamplingParams(logprobs=0, **params)), Piece()
    for token in tokens:
        if not answer.done:
            whole.add(answer.take(Event(0, token, TokenLogprob(token, -float(token)))))
    if not answer.done:
        whole.add(answer.take(Event(0, done=Generation([], reason))))
    return answer, whole


def test_without_a_stop_string_everything_is_shown():
    answer, whole = grow([0, 1, 3, 4, 5], "end")
    assert (whole.said("text"), whole.finish, answer.tokens) == ("abcd你!", "stop", 5)
    assert [(start, score.token) for start, score in whole.scores] == [(0, 0), (2, 1), (4, 3), (4, 4), (5, 5)]


@pytest.mark.parametrize(
    "stop, text, kept",
    [("cd", "ab", [0]), ("bcde", "a", [0]), ("bc", "a", [0]), ("f", "abcde", [0, 1, 2]), ("ab", "", [])],
)
def test_a_stop_string_may_begin_and_end_inside_tokens(stop, text, kept):
    _, whole = grow([0, 1, 2], stop=(stop,))
    assert (whole.said("text"), whole.finish) == (text, "stop")
    assert [score.token for _, score in whole.scores] == kept


def test_what_only_looked_like_a_stop_string_is_shown_in_the_end():
    _, whole = grow([0, 1], stop=("cdx",))
    assert (whole.said("text"), whole.finish, len(whole.scores)) == ("abcd", "length", 2)


def test_a_broken_character_at_the_end_is_shown_as_such():
    assert grow([0, 3])[1].said("text") == "ab\ufffd"


def test_an_answer_that_fails_says_whose_fault_it_is():
    from llmctl.errors import ConfigError

    for cause, status in ((ConfigError("too long"), 400), (None, 500)):
        with pytest.raises(Problem) as failed:
            Answer(Letters(), SamplingParams()).take(Event(0, done=Generation([], "error", "broken", cause=cause)))
        assert failed.value.status == status
