"""Records what transformers makes of a line of every data format: ids, and the mask of what templates mark as answers.

``python tools/goldens/make_formats_golden.py`` writes ``cases.json`` into tests/goldens/formats, with the tokenizer and templates
of tests/goldens/messages. The messages of each line are written here by hand, as transformers takes them; nothing of llmctl
takes part. Those of the repository were made with transformers 5.24.0 and tokenizers 0.23.3; no test needs them.
"""

import json
from pathlib import Path

from make_messages_golden import TEMPLATES, TOOLS, call, said
from transformers import AutoTokenizer

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
ASK, TELL = "What is the weather in Rome?", "It is sunny."
SYSTEM, FIRST = "Be brief.", [said("user", "你好"), said("assistant", "It is grey.")]
FUNCTION = TOOLS[0]["function"]
CALLED = [
    said("system", SYSTEM), said("user", ASK), said("assistant", None, tool_calls=[call("Rome", 1)]),
    said("tool", "sunny", tool_call_id="call1", name="weather"), said("assistant", TELL),
]  # fmt: skip


def bare(messages):
    """The messages without ids and names, which ShareGPT does not have."""
    found = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key not in ("tool_call_id", "name")}
        if "tool_calls" in kept:
            kept["tool_calls"] = [{"type": "function", "function": row["function"]} for row in kept["tool_calls"]]
        found.append(kept)
    return found


def openai(messages):
    """The messages as OpenAI's files have them: arguments as JSON text, content in parts."""
    found = json.loads(json.dumps(messages))
    for message in found:
        for row in message.get("tool_calls", ()):
            row["function"]["arguments"] = json.dumps(row["function"]["arguments"])
    found[1]["content"] = [
        {"type": "text", "text": found[1]["content"][:4]},
        {"type": "text", "text": found[1]["content"][4:]},
    ]
    return found


def sharegpt(*turns):
    """Turns of ShareGPT."""
    return [{"from": speaker, "value": text} for speaker, text in turns]


PLAIN = [said("system", SYSTEM), *FIRST, said("user", ASK), said("assistant", TELL)]
"""A conversation of two turns."""

FINETUNE = [
    ("llmctl", {"src": ["你好", ASK], "tgt": ["It is grey.", TELL], "context": {"system": SYSTEM}, "label": [0, 1]},
     PLAIN, None, [0, 1]),
    ("ShareGPT", {"conversations": sharegpt(("human", "你好"), ("gpt", "It is grey."), ("human", ASK), ("gpt", TELL)), "system": SYSTEM},
     PLAIN, None, [1, 1]),
    ("ShareGPT", {"conversations": sharegpt(
        ("system", SYSTEM), ("human", ASK), ("function_call", '{"name": "weather", "arguments": {"city": "Rome"}}'),
        ("observation", "sunny"), ("gpt", TELL)), "tools": json.dumps([FUNCTION])}, bare(CALLED), TOOLS, [1, 1]),
    ("messages", {"messages": openai(CALLED), "tools": TOOLS}, CALLED, TOOLS, [1, 1]),
    ("messages", {"messages": [said("system", SYSTEM), FIRST[0], {**FIRST[1], "weight": 0}, *PLAIN[3:]]}, PLAIN, None, [0, 1]),
    ("messages", {"messages": [said("system", SYSTEM), FIRST[0], {**FIRST[1], "loss": False}, *PLAIN[3:]]}, PLAIN, None, [0, 1]),
    ("messages", {"messages": [*CALLED[:2], said("tool_call", '{"name": "weather", "arguments": {"city": "Rome"}}'),
                               said("tool_response", "sunny"), CALLED[4]], "tools": TOOLS}, bare(CALLED), TOOLS, [1, 1]),
    ("messages", {"messages": [*PLAIN[:4], {**PLAIN[4], "thinking": "Hm."}]}, [*PLAIN[:4], {**PLAIN[4], "thinking": "Hm."}], None, [1, 1]),
    ("Alpaca", {"instruction": "What is the weather", "input": "in Rome?", "output": TELL, "system": SYSTEM,
                "history": [["你好", "It is grey."]]},
     [*PLAIN[:3], said("user", "What is the weather\nin Rome?"), PLAIN[4]], None, [1, 1]),
    ("Alpaca", {"instruction": ASK, "input": "", "output": TELL}, PLAIN[3:], None, [1]),
    ("prompt-completion", {"prompt": ASK, "completion": TELL, "system": SYSTEM}, [PLAIN[0], *PLAIN[3:]], None, [1]),
    ("prompt-completion", {"prompt": PLAIN[:4], "completion": PLAIN[4:]}, PLAIN, None, [0, 1]),
    ("prompt-completion", {"prompt": openai(CALLED)[:2], "completion": openai(CALLED)[2:], "tools": TOOLS}, CALLED, TOOLS, [1, 1]),
]  # fmt: skip
"""Format, line, messages, tools, and whether each answer is trained on."""

OTHER = "Rome."
DPO = [
    ("llmctl", {"src": ["你好", ASK], "tgt": ["It is grey."], "response": [OTHER, TELL], "sort": [0, 1], "system": SYSTEM}, PLAIN[:4], None),
    ("ShareGPT", {"conversations": sharegpt(("human", "你好"), ("gpt", "It is grey."), ("human", ASK)), "system": SYSTEM,
                  "chosen": {"from": "gpt", "value": TELL}, "rejected": {"from": "gpt", "value": OTHER}}, PLAIN[:4], None),
    ("PaddleFormers", {"messages": PLAIN[:4], "chosen_response": [said("assistant", TELL)],
                       "rejected_response": [said("assistant", OTHER)]}, PLAIN[:4], None),
    ("ms-swift", {"messages": PLAIN, "rejected_response": OTHER}, PLAIN[:4], None),
    ("ms-swift-messages", {"messages": PLAIN, "rejected_messages": [*PLAIN[:4], said("assistant", OTHER)]}, PLAIN[:4], None),
    ("Alpaca", {"instruction": ASK, "chosen": TELL, "rejected": OTHER, "system": SYSTEM, "history": [["你好", "It is grey."]]},
     PLAIN[:4], None),
    ("prompt-chosen-rejected", {"prompt": ASK, "chosen": TELL, "rejected": OTHER}, PLAIN[3:4], None),
    ("prompt-chosen-rejected", {"chosen": [*openai(CALLED)[:4], said("assistant", TELL)],
                                "rejected": [*openai(CALLED)[:4], said("assistant", OTHER)], "tools": TOOLS}, CALLED[:4], TOOLS),
]  # fmt: skip
"""Format, line, messages before the answers, and tools."""


def record():
    """Ids and mask of every line under every template."""
    tokenizer, found = AutoTokenizer.from_pretrained(GOLDENS / "messages"), {"finetune": [], "dpo": []}

    def rendered(messages, tools):
        made = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"ids": made["input_ids"], "mask": made["assistant_masks"]}

    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        for kind, row, messages, tools, trained in FINETUNE:
            case = {"template": name, "format": kind, "row": row, "trained": trained}
            found["finetune"].append({**case, **rendered(messages, tools)})
        for kind, row, messages, tools in DPO:
            answers = {
                side: rendered([*messages, said("assistant", text)], tools)["ids"]
                for side, text in (("chosen", TELL), ("rejected", OTHER))
            }
            prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
            found["dpo"].append({"template": name, "format": kind, "row": row, "prompt": prompt, **answers})
    (GOLDENS / "formats").mkdir(exist_ok=True)
    (GOLDENS / "formats" / "cases.json").write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
