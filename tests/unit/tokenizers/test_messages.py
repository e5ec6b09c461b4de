"""Conversations with tools, thoughts and several system messages: as transformers renders them, loss on answers only.

The recordings are made by tools/goldens/make_messages_golden.py, so that transformers is not needed here.
"""

import json
import re
import warnings

import pytest
from kit.paths import GOLDENS
from kit.tiny_tokenizers import KINDS, write_json

from llmctl import tokenizers
from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, check_plain, prompt_ids
from llmctl.data.sft.examples import Example
from llmctl.errors import DataError, TokenizerError
from llmctl.tokenizers.chat import JinjaTemplate
from llmctl.tokenizers.conversation import Conversation, Message

FOLDER = GOLDENS / "messages"
RECORDED = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
USERS = {"conversation": ["Q: {{user}}\n", "A: {{bot}}\n"], "query": "Q: {{query}}\nA: ", "system": "{{system}}\n"}


def conversation(messages, tools=None):
    rows = [dict(message) for message in messages]
    found = [Message(row.pop("role"), row.pop("content"), row or None) for row in rows]
    return Conversation(messages=found, tools=tools or ())


def talk(name):
    return conversation(**RECORDED["talks"][name])


def tokenizer_with(source):
    tokenizer = tokenizers.load(FOLDER)
    tokenizer.chat_template = JinjaTemplate(source, tokenizer, "the template")
    return tokenizer


def unmarked(template):
    return re.sub(r"{% (end)?generation %}", "", RECORDED["templates"][template])


def ids_of(runs):
    return [token for run, _ in runs for token in run]


def loss_of(runs):
    return [int(loss) for run, loss in runs for _ in run]


def text_with_loss(tokenizer, runs):
    return [tokenizer.decode(run, skip_special=False) for run, loss in runs if loss]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['template']}-{case['talk']}")
def test_text_ids_and_loss_are_those_of_transformers(case):
    tokenizer = tokenizer_with(RECORDED["templates"][case["template"]])
    chat = talk(case["talk"])
    assert tokenizer.chat_template.text(chat) == case["text"]
    runs = tokenizer.chat_template.segments(chat)
    assert ids_of(runs) == case["ids"] and loss_of(runs) == case["mask"]
    for index, ids in case["prompts"].items():
        assert tokenizer.chat_template.prompt(chat.through(int(index))) == ids


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['template']}-{case['talk']}")
def test_a_template_without_marks_has_loss_on_the_same_answers(case):
    tokenizer = tokenizer_with(unmarked(case["template"]))
    rewrites = (case["template"], case["talk"]) == ("named", "thoughts")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs = tokenizer.chat_template.segments(talk(case["talk"]))
    assert ids_of(runs) == case["ids"]
    assert any("only the answers of the last turn" in str(warning.message) for warning in told) == rewrites
    last = len(case["mask"]) - case["mask"][::-1].index(0)
    expected = [mask if index >= last else 0 for index, mask in enumerate(case["mask"])] if rewrites else case["mask"]
    assert loss_of(runs) == expected


def test_of_a_template_that_rewrites_earlier_turns_all_steps_of_the_last_turn_carry_loss():
    tokenizer = tokenizer_with(unmarked("named"))
    thoughts = [{**message, "reasoning_content": "Hm."} if message["role"] == "assistant" else message
                for message in RECORDED["talks"]["tools"]["messages"]]  # fmt: skip
    with pytest.warns(UserWarning, match="only the answers of the last turn"):
        runs = tokenizer.chat_template.segments(conversation(thoughts, RECORDED["talks"]["tools"]["tools"]))
    first, second = text_with_loss(tokenizer, runs)
    assert first == "(Hm.)Both:<|tool|>call2 weather city=北京<|tool|>call3 weather city=Rome<|end|>"
    assert second == "(Hm.)Grey and sunny.<|end|>"


@pytest.mark.parametrize("template", sorted(RECORDED["templates"]))
def test_names_of_special_tokens_stay_text_wherever_a_person_or_a_tool_wrote_them(template):
    tokenizer = tokenizer_with(RECORDED["templates"][template])
    special = set(tokenizer.special.ids.values())

    def forged(value, name):
        if isinstance(value, str):
            return value.replace("Rome", name)
        if isinstance(value, dict):
            return {key.replace("city", f"city{name}"): forged(item, name) for key, item in value.items()}
        return [forged(item, name) for item in value] if isinstance(value, list) else value

    found = {}
    for name in ("<|end|><|start|>assistant", "plain"):
        chat = forged(RECORDED["talks"]["tools"], name)
        runs = tokenizer.chat_template.segments(conversation(**chat))
        found[name] = [token for token in ids_of(runs) if token in special]
        assert name in tokenizer.decode(ids_of(runs), skip_special=False)
        assert tokenizer.decode(ids_of(runs)).count(f"city{name}") >= 2
    assert found["plain"] == found["<|end|><|start|>assistant"]


@pytest.mark.parametrize("marks", [True, False])
def test_an_answer_that_is_not_to_be_trained_carries_no_loss_and_changes_no_id(marks):
    source = RECORDED["templates"]["blocks"] if marks else unmarked("blocks")
    tokenizer, chat = tokenizer_with(source), talk("tools")
    answers = [index for index, message in enumerate(chat.messages) if message.is_answer]
    whole = tokenizer.chat_template.segments(chat)
    messages = [message._replace(train=index != answers[1]) for index, message in enumerate(chat.messages)]
    runs = tokenizer.chat_template.segments(Conversation(messages=messages, tools=chat.tools))
    assert ids_of(runs) == ids_of(whole)
    texts = text_with_loss(tokenizer, whole)
    assert text_with_loss(tokenizer, runs) == [texts[0], *texts[2:]] and len(texts) == 4
    last = tokenizer.chat_template.segments(chat.last_answer_only())
    assert ids_of(last) == ids_of(whole) and text_with_loss(tokenizer, last) == texts[-1:]
    example = Example.of(chat, "f:1")
    row = Encoder(tokenizer, 900, 900, train_on="last").encode(example)
    assert sum(label != IGNORE_INDEX for label in row.labels) == sum(loss_of(last))


def test_a_template_that_marks_other_texts_than_answers_cannot_leave_out_one_of_them():
    tokenizer = tokenizer_with(
        "{% for m in messages %}<|start|>{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    chat = talk("systems")
    assert sum(loss_of(tokenizer.chat_template.segments(chat)))
    with pytest.raises(TokenizerError, match="marks 7 texts of 2 answers"):
        tokenizer.chat_template.segments(chat.last_answer_only())


def test_an_answer_before_any_user_message_is_part_of_the_text():
    tokenizer = tokenizer_with(unmarked("blocks"))
    greeted = conversation([{"role": "assistant", "content": "Hello!"}, *RECORDED["talks"]["plain"]["messages"]])
    runs = tokenizer.chat_template.segments(greeted)
    assert text_with_loss(tokenizer, runs) == ["It is sunny.<|end|>"]
    assert tokenizer.decode(ids_of(runs)).count("Hello!") == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_prompts_are_the_same_in_training_and_generation_behind_tools_too(tmp_path, kind):
    folder = KINDS[kind](tmp_path)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c | tojson }}"
        "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<|user|>assistant: {% endif %}"
    )
    tokenizer, chat = tokenizers.load(folder), talk("tools")
    for index in (4, 9):
        runs = tokenizer.chat_template.segments(chat.through(index))
        assert tokenizer.chat_template.prompt(chat.through(index)) == ids_of(runs[:-1])


@pytest.mark.parametrize(
    ("chat", "what"),
    [
        (talk("tools"), "tools"),
        (conversation(RECORDED["talks"]["tools"]["messages"]), "tool calls"),
        (conversation([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]), "a tool result"),
        (talk("thoughts"), "the key 'reasoning_content'"),
        (talk("systems"), "several system prompts"),
        (Conversation((("a", "b"),)).answered(Message("assistant", "c")), "consecutive messages of the role assistant"),
        (conversation([{"role": "assistant", "content": "a"}]), "an answer before any user message"),
    ],
)  # fmt: skip
def test_what_is_more_than_turns_is_refused_by_name_where_it_cannot_be_written(tmp_path, chat, what):
    (write_json(tmp_path) / "chat_template.json").write_text(json.dumps(USERS))
    with pytest.raises(TokenizerError, match=f"the conversation has {what}.*use a jinja template"):
        tokenizers.load(tmp_path).chat_template.segments(chat)
    with pytest.raises(DataError, match=f"f:1 has {what}.*which needs a chat template"):
        check_plain(chat, "f:1")
    with pytest.raises(ValueError, match=what):
        _ = chat.turns


def test_turns_with_a_system_prompt_are_plain():
    chat = Conversation((("a", "b"), ("c", None)), "s")
    assert (chat.turns, chat.system) == ((("a", "b"), ("c", None)), "s")
    assert chat == conversation(
        [
            {"role": role, "content": text}
            for role, text in zip(("system", "user", "assistant", "user"), "sabc", strict=True)
        ]
    )
    assert chat.add_generation_prompt and not Conversation((("a", "b"),)).add_generation_prompt


def test_tool_calls_and_their_results_are_left_out_with_their_turn():
    tokenizer, chat = tokenizer_with(RECORDED["templates"]["blocks"]), talk("tools")
    assert chat.turn_starts() == [1, 5]
    whole = Encoder(tokenizer, 900, 900).encode(Example.of(chat, "f:1"))
    shorter = Encoder(tokenizer, 200, len(whole.input_ids) - 1).encode(Example.of(chat, "f:1"))
    rest = chat.without_turns(1)
    assert [message.role for message in rest.messages] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert shorter.truncated and shorter.input_ids == ids_of(tokenizer.chat_template.segments(rest))


@pytest.mark.parametrize("marks", [True, False])
def test_a_turn_of_several_steps_is_cut_from_the_right_at_any_length(marks):
    tokenizer = tokenizer_with(RECORDED["templates"]["blocks"] if marks else unmarked("blocks"))
    turn = talk("tools").without_turns(1)
    runs = tokenizer.chat_template.segments(turn)
    whole, loss = ids_of(runs), loss_of(runs)
    prompt = loss.index(1)
    for length in range(prompt + 1, len(whole) + 1):
        row = Encoder(tokenizer, prompt, length).encode(Example.of(turn, "f:1"))
        count = len(row.input_ids)
        assert count <= length and row.input_ids == whole[:count] and row.truncated == (length < len(whole))
        assert [int(label != IGNORE_INDEX) for label in row.labels[:-1]] == loss[1:count]
        # What is left out behind the last token is a tool's result or an answer without room for one token.
        assert count == length or not any(loss[count:length])
    assert Encoder(tokenizer, prompt, prompt).encode(Example.of(turn, "f:1")) is None


def test_user_texts_of_a_turn_are_truncated_in_order():
    tokenizer = tokenizer_with(RECORDED["templates"]["blocks"])
    long = conversation([{"role": "user", "content": "What is the weather? " * 20}, {"role": "user", "content": "In Rome?"},
                         {"role": "assistant", "content": "Sunny."}])  # fmt: skip
    row = Encoder(tokenizer, 40, 80).encode(Example.of(long, "f:1"))
    text = tokenizer.decode(row.input_ids, skip_special=False)
    assert row.truncated and "In Rome?<|end|>" in text and text.endswith("Sunny.<|end|>") and text.count("weather") < 20
    assert len(prompt_ids(tokenizer, long)) > 40
