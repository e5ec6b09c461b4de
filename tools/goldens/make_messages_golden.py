"""Records what transformers makes of conversations with tools: text, ids, and the mask of what templates mark as answers.

``python tools/goldens/make_messages_golden.py`` writes a small tokenizer and ``cases.json`` into tests/goldens/messages. Those
of the repository were made with transformers 5.24.0 and tokenizers 0.23.3; no test needs them.
"""

import json
from pathlib import Path

from make_chat_golden import byte_level
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import AutoTokenizer

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "messages"
SPECIAL = ["<|start|>", "<|end|>", "<|tool|>"]
TEXT = [
    '{"name": "weather", "arguments": {"city": "Rome"}}',
    "What is the weather in Rome?",
    "It is sunny.",
    "你好",
] * 8

TEMPLATES = {
    # One block for each message, tool calls as lines of JSON, results of one step joined into one block.
    "blocks": (
        "{% if tools %}<|start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
        "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>{% endif %}"
        "{% for m in messages %}{% if m.role == 'system' and not (tools and loop.first) or m.role == 'user' %}"
        "<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% elif m.role == 'assistant' %}<|start|>assistant\n{% generation %}"
        "{% if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{% if m.content %}{{ m.content }}{% endif %}{% for call in m.tool_calls %}"
        '<|tool|>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% endfor %}'
        "<|end|>{% endgeneration %}{% elif m.role == 'tool' %}"
        "{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<|start|>user{% endif %}\n<|tool|>"
        "{{ m.content }}{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|end|>{% endif %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
    # Names and ids of results, arguments in a loop, thoughts of earlier turns left out.
    "named": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}"
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.name %}={{ m.name }}{% endif %}"
        "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{{ '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{% if m.reasoning_content and loop.index0 > ns.last %}({{ m.reasoning_content }}){% endif %}"
        "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<|tool|>{{ call.id }} {{ call.function.name }}"
        "{% for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}{% endfor %}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    ),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city, é 你好",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def call(city, number):
    """A tool call with arguments as an object."""
    return {"id": f"call{number}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def said(role, content, **more):
    """A message."""
    return {"role": role, "content": content, **more}


TALKS = {
    "plain": ([said("user", "你好"), said("assistant", "It is sunny.")], None),
    "systems": ([said("system", "Be brief."), said("system", "Be kind."), said("user", "Hi"), said("user", "What?"),
                 said("assistant", "Sunny."), said("user", "And?"), said("assistant", "Rome.")], None),
    "tools": ([said("system", "Be brief."), said("user", "What is the weather in Rome?"),
               said("assistant", None, tool_calls=[call("Rome", 1)]), said("tool", "sunny", tool_call_id="call1", name="weather"),
               said("assistant", "It is sunny."), said("user", "And in 北京?"),
               said("assistant", "Both:", tool_calls=[call("北京", 2), call("Rome", 3)]),
               said("tool", '{"sky": "grey"}', tool_call_id="call2", name="weather"),
               said("tool", "sunny", tool_call_id="call3", name="weather"), said("assistant", "Grey and sunny.")], TOOLS),
    "thoughts": ([said("user", "What?"), said("assistant", "Rome.", reasoning_content="Hm."), said("user", "And?"),
                  said("assistant", "Sunny.", reasoning_content="Oh.")], None),
}  # fmt: skip


def write():
    """The tokenizer's folder."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<think>", "</think>")])
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "unk_token": "<unk>"}
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def record():
    """Text, ids and mask of every conversation under every template; prompts before each answer."""
    tokenizer, cases = AutoTokenizer.from_pretrained(FOLDER), []
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        for talk, (messages, tools) in TALKS.items():
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
            found = tokenizer.apply_chat_template(
                messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            prompts = {
                index: tokenizer.apply_chat_template(
                    messages[:index], tools=tools, add_generation_prompt=True, return_dict=False
                )
                for index, message in enumerate(messages)
                if message["role"] == "assistant"
            }
            row = {
                "template": name,
                "talk": talk,
                "text": text,
                "ids": found["input_ids"],
                "mask": found["assistant_masks"],
            }
            cases.append({**row, "prompts": prompts})
    talks = {name: {"messages": messages, "tools": tools} for name, (messages, tools) in TALKS.items()}
    content = {"templates": TEMPLATES, "talks": talks, "cases": cases}
    (FOLDER / "cases.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
    record()
