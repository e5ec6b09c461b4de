"""Conversations against transformers: recorded ids of prompts and of answered conversations, flags and variables of all kinds.

The recordings are made by tools/goldens/make_chat_golden.py, so that transformers is not needed here.
"""

import json
import warnings

import pytest
from kit.paths import GOLDENS

from llmctl import tokenizers
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder
from llmctl.data.sft.examples import Example
from llmctl.tokenizers.conversation import Conversation

CASES = sorted(path.name for path in (GOLDENS / "chat").iterdir())


def conversation(messages):
    """The conversation of messages; its last answer is open unless they give it."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    texts = [message["content"] for message in messages if message["role"] != "system"]
    return Conversation(tuple(zip(texts[::2], [*texts[1::2], None], strict=False)), system)


@pytest.fixture(params=CASES)
def case(request):
    folder = GOLDENS / "chat" / request.param
    return tokenizers.load(folder), json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_prompts_have_the_text_and_ids_of_transformers(case):
    tokenizer, expected = case
    for row in expected["prompts"]:
        asked = conversation(row["messages"])
        assert tokenizer.chat_template.text(asked) == row["text"]
        assert tokenizer.chat_template.prompt(asked) == row["ids"], row["text"]
    assert tokenizer.encode(expected["plain"]["text"]) == expected["plain"]["ids"]


def test_an_answered_conversation_has_the_ids_of_transformers_and_loss_on_what_the_template_marks(case):
    tokenizer, expected = case
    answered = expected["answered"]
    talk = conversation(answered["messages"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs = tokenizer.chat_template.segments(talk)
    assert any("only the answers of the last turn" in str(w.message) for w in told) == (
        tokenizer.folder.name == "thinking"
    )
    ids = [token for run, _ in runs for token in run]
    asked = tokenizer.chat_template.prompt(talk.asked())
    assert answered["mask"] or ids[: len(asked)] == asked
    if answered["mask"] or answered["ids"][: len(asked)] == asked:
        assert ids == answered["ids"]
    if answered["mask"]:
        assert [int(answer) for run, answer in runs for _ in run] == answered["mask"]
        src, tgt = zip(*talk.turns, strict=True)
        row = Encoder(tokenizer, 900, 900).encode(Example(src, tgt, None, "row"))
        assert [int(label != IGNORE_INDEX) for label in row.labels] == [*answered["mask"][1:], 0]
