"""Bodies are checked against tables, which have every field of OpenAI's client."""

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from llmctl.serve.apis.fields import CHAT, COMPLETIONS, IGNORED, KINDS, REFUSED, RESPONSES, TOKENIZE, WORKS, Field, read
from llmctl.serve.problems import Problem


@pytest.mark.parametrize("theirs, ours", [
    (chats.CompletionCreateParamsBase, CHAT), (completions.CompletionCreateParamsBase, COMPLETIONS),
    (responses.ResponseCreateParamsBase, RESPONSES),
])  # fmt: skip
def test_every_field_of_openai_is_in_the_table(theirs, ours):
    assert {*theirs.__annotations__, "stream"} <= {row.name for row in ours}


@pytest.mark.parametrize("fields", [CHAT, COMPLETIONS])
def test_rows_are_complete(fields):
    assert len({row.name for row in fields}) == len(fields)
    for row in fields:
        assert row.kind in KINDS and row.effect in (WORKS, IGNORED, REFUSED)
        assert row.effect == WORKS or row.note, row.name


def test_a_misspelt_field_is_refused_with_the_nearest_name():
    with pytest.raises(Problem, match="unknown field 'temprature'; did you mean temperature?"):
        read({"temprature": 1}, CHAT)


@pytest.mark.parametrize(
    "name, ours", [("max_length", "max_tokens"), ("min_length", "min_tokens"), ("num_predict", "max_tokens")]
)
def test_names_of_other_programs_are_known(name, ours):
    with pytest.raises(Problem, match=f"here it is called {ours}"):
        read({name: 3}, CHAT)


def test_null_is_as_if_the_field_were_not_there():
    assert read({"seed": None, "n": 1, "logit_bias": None}, CHAT) == {"n": 1}


def test_a_refused_field_passes_with_the_value_of_what_is_done_anyway():
    for row in CHAT + COMPLETIONS:
        for value in row.harmless:
            read({row.name: value}, [row])
        if row.effect == REFUSED:
            with pytest.raises(Problem) as refused:
                read({row.name: "something else"}, [row])
            assert refused.value.param == row.name and row.note in str(refused.value)


def test_true_is_not_the_number_one():
    with pytest.raises(Problem, match="best_of=True is not supported"):
        read({"best_of": True}, COMPLETIONS)


@pytest.mark.parametrize("kind, good, bad", [
    ("integer", [1, 2.0], [1.5, True, "1", float("inf")]),
    ("number", [1, 0.5], [True, "1", float("nan"), float("inf")]),
    ("boolean", [True], [1, "true"]),
    ("texts", ["a", ["a", "b"], []], [1, ["a", 1]]),
    ("integers", [[1, 2], []], [[1.0], [True], "12"]),
    ("prompt", ["a", ["a"], [1], [[1], [2, 3]]], [[["a"]], [[1], "a"], [1, "a"], 1, [True]]),
])  # fmt: skip
def test_values_have_the_type_of_their_field(kind, good, bad):
    for value in good:
        read({"f": value}, [Field("f", kind)])
    for value in bad:
        with pytest.raises(Problem, match="expected"):
            read({"f": value}, [Field("f", kind)])


def test_a_body_that_is_no_object_is_refused():
    for body in ([], "text", 1, None):
        with pytest.raises(Problem, match="must be a JSON object"):
            read(body, TOKENIZE)
