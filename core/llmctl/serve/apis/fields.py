"""Every field of the bodies that are understood: data from which bodies are checked and the table of the docs is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.serve.problems import Problem, shown

WORKS, IGNORED, REFUSED = "works", "no effect", "refused"


@dataclass(frozen=True)
class Field:
    """A field of a body.

    Attributes:
        name: Its name.
        kind: What its value must be, a key of ``KINDS``.
        note: What it does, or why it has no effect or is refused.
        effect: ``works``, ``no effect`` (accepted, for the reason in the note) or ``refused``.
        low: Smallest number.
        high: Largest number.
        harmless: Values that are accepted where the field is refused, since they ask for what is done anyway.
    """

    name: str
    kind: str
    note: str = ""
    effect: str = WORKS
    low: float = -math.inf
    high: float = math.inf
    harmless: tuple[Any, ...] = ()


def _integer(value: Any) -> bool:
    return (type(value) is int) or (type(value) is float and value.is_integer() and abs(value) < 2**53)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _text_or_objects(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _prompt(value: Any) -> bool:
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return all(_integers(item) for item in value)
    return _texts(value) or _integers(value)


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "integer": ("an integer", _integer),
    "number": ("a number", _number),
    "boolean": ("true or false", lambda value: type(value) is bool),
    "text": ("text", lambda value: isinstance(value, str)),
    "texts": ("text or a list of texts", _texts),
    "integers": ("a list of token ids", _integers),
    "prompt": ("text, token ids, or a list of either", _prompt),
    "object": ("an object", lambda value: isinstance(value, dict)),
    "list": ("a list", lambda value: isinstance(value, list)),
    "texts or objects": ("text or a list of objects", _text_or_objects),
    "any": ("anything", lambda value: True),
}
"""Kind -> how messages call it, and the check."""

NO_STORE = "nothing is stored"
TEXT_ONLY = "the model reads and writes text only"


def _sampling() -> list[Field]:
    return [
        Field("temperature", "number", "0 takes the likeliest token", low=0, high=2),
        Field("top_p", "number", low=0, high=1),
        Field("presence_penalty", "number", low=-2, high=2),
        Field("frequency_penalty", "number", low=-2, high=2),
        Field("logit_bias", "object", "token id -> number from -100 to 100, up to 1024 tokens (fused engine)"),
        Field("seed", "integer", "the same answer alone, among others, streamed or whole; left out = random",
              low=-(2**63), high=2**63 - 1),
        Field("response_format", "object", "`text`, `json_object`, `json_schema`, or `regex` with `pattern`, `grammar` with `grammar` and "
              "`syntax` (`lark` or `gbnf`)"),
        Field("structured_outputs", "object", "the same as vLLM has it: one of `json`, `regex`, `choice`, `grammar`, `json_object`"),
        Field("stop", "texts", "up to 16 texts of up to 256 characters; they may begin and end inside tokens"),
        Field("n", "integer", "answers per prompt", low=1, high=16),
        Field("stream", "boolean", "server-sent events"),
        Field("stream_options", "object", "`include_usage`, `continuous_usage_stats`"),
        Field("user", "any", "users are not told apart", IGNORED),
    ]  # fmt: skip


OURS = [
    Field("top_k", "integer", "only the k likeliest tokens; 0 or -1 = all", low=-1, high=2**31),
    Field("min_p", "number", low=0, high=1),
    Field("repetition_penalty", "number", low=0.01, high=100),
    Field("min_tokens", "integer", "no end token before this many tokens", low=0, high=2**31),
    Field("stop_token_ids", "integers", "up to 64 tokens that end the answer"),
    Field("ignore_eos", "boolean", "the model's end token does not end the answer"),
    Field("timeout", "number", "seconds for the request, waiting included; at most what the server allows", low=0.001),
]
"""Fields that OpenAI does not have, with the names of vLLM where it has them."""

CHAT = [
    Field("messages", "list", "roles system, developer, user, assistant and tool; content is text or parts of text"),
    Field("model", "text", "the model or one of its adapters; left out = the model"),
    *_sampling(),
    Field("max_completion_tokens", "integer", "left out = as many as the model has room for", low=1, high=2**31),
    Field("max_tokens", "integer", "the older name of `max_completion_tokens`", low=1, high=2**31),
    Field("logprobs", "boolean", "those of the model, before penalties and temperature"),
    Field("top_logprobs", "integer", "needs `logprobs`", low=0, high=20),
    Field("tools", "list", "functions; written into the prompt by the chat template, else by a system message; calls are in `tool_calls`"),
    Field("tool_choice", "any", "`auto`, `none`, `required`, or a function by name; the last two constrain answers to valid calls, `auto` those that the model begins"),
    Field("parallel_tool_calls", "boolean", "whether an answer may have several calls, up to 16; default true"),
    Field("functions", "any", "the older form of `tools`; use that", REFUSED, harmless=([],)),
    Field("function_call", "any", "the older form of `tool_choice`; use that", REFUSED, harmless=("none", "auto")),
    Field("audio", "any", TEXT_ONLY, REFUSED),
    Field("modalities", "any", TEXT_ONLY, REFUSED, harmless=(["text"],)),
    Field("moderation", "any", "answers are not moderated", REFUSED),
    Field("prediction", "any", "answers do not change by it; drafts come from the prompt (`--speculate`)", IGNORED),
    Field("web_search_options", "any", "the server asks no other", REFUSED),
    Field("reasoning_effort", "text", "for chat templates that read it; `none` is also `enable_thinking: false`, if that is read; else refused"),
    Field("verbosity", "any", "models here do not know it; say so in the prompt", REFUSED, harmless=("medium",)),
    Field("store", "any", NO_STORE, REFUSED, harmless=(False,)),
    Field("metadata", "any", NO_STORE, IGNORED),
    Field("prompt_cache_key", "any", "equal beginnings of prompts share the cache without it", IGNORED),
    Field("prompt_cache_retention", "any", "the cache keeps what it has room for", IGNORED),
    Field("prompt_cache_options", "any", "the cache keeps what it has room for", IGNORED),
    Field("safety_identifier", "any", "users are not told apart", IGNORED),
    Field("service_tier", "any", "there is one tier", IGNORED),
    *OURS,
    Field("chat_template_kwargs", "object", "values for names that the chat template reads, such as `enable_thinking`"),
    Field("continue_final_message", "boolean", "the answer goes on within the last message, an assistant's; only what is new comes back"),
    Field("add_generation_prompt", "boolean", "false with `continue_final_message`, else true"),
]  # fmt: skip

COMPLETIONS = [
    Field("prompt", "prompt", "a text, token ids, or up to 64 of either; no chat template is applied"),
    Field("model", "text", "the model or one of its adapters; left out = the model"),
    *_sampling(),
    Field("max_tokens", "integer", "left out = 16; 0 with `echo`", low=0, high=2**31),
    Field("logprobs", "integer", "the likeliest tokens at each position, besides the chosen one", low=0, high=20),
    Field("echo", "boolean", "with `logprobs` those of the prompt's tokens too, as lm-eval asks"),
    Field("best_of", "integer", "answers are not compared; ask for `n` with `logprobs` and choose", REFUSED, harmless=(1,)),
    Field("suffix", "any", "the model continues text; it does not fill gaps", REFUSED, harmless=("",)),
    *OURS,
]  # fmt: skip

TOKENIZE = [
    Field("prompt", "text", "the text"),
    Field("content", "text", "the text, as llama.cpp calls it"),
    Field("messages", "list", "a conversation instead of a text, written by the chat template"),
    Field("model", "text", "the model; left out = the model"),
    Field(
        "add_special_tokens",
        "boolean",
        "whether tokens such as that of the beginning are added; default true, with `content` false",
    ),
    Field("add_special", "boolean", "another name of `add_special_tokens`"),
    Field(
        "with_pieces", "boolean", "tokens are objects with `id` and `piece`: a text, or bytes where it is none alone"
    ),
    Field("chat_template_kwargs", "object", "as for chat completions"),
    Field("tools", "list", "as for chat completions"),
]

DETOKENIZE = [
    Field("tokens", "integers", "token ids"),
    Field("model", "text", "the model; left out = the model"),
]

MESSAGES = [
    Field("model", "text", "the model or one of its adapters; left out = the model"),
    Field("messages", "list", "roles user and assistant; blocks of the types text, tool_use and tool_result; an assistant's last message goes on"),
    Field("max_tokens", "integer", "longest answer; needed", low=1, high=2**31),
    Field("system", "any", "text, or blocks of text"),
    Field("temperature", "number", "0 takes the likeliest token", low=0, high=1),
    Field("top_p", "number", low=0, high=1),
    Field("top_k", "integer", "only the k likeliest tokens", low=0, high=2**31),
    Field("stop_sequences", "texts", "up to 16 texts of up to 256 characters"),
    Field("stream", "boolean", "server-sent events"),
    Field("tools", "list", "functions with `name` and `input_schema`"),
    Field("tool_choice", "object", "types `auto`, `any`, `tool` and `none`; `disable_parallel_tool_use`"),
    Field("metadata", "any", NO_STORE, IGNORED),
    Field("service_tier", "any", "there is one tier", IGNORED),
    Field("thinking", "object", "types `enabled`, `adaptive` and `disabled` are the template's `enable_thinking`, if it reads that; "
          "no other limit of thoughts than `max_tokens`"),
    Field("output_config", "object", "its `format`: `json_schema` with `schema`"),
    Field("cache_control", "any", "equal beginnings of prompts share the cache without it", IGNORED),
    Field("inference_geo", "any", "the model is where the server is", IGNORED),
    Field("user_profile_id", "any", "users are not told apart", IGNORED),
    Field("workspace_id", "any", "there is one model", IGNORED),
    Field("speed", "text", "there is one speed", REFUSED, harmless=("standard",)),
    Field("diagnostics", "any", "what the cache lacks is not explained; `usage` says what it had", REFUSED),
    Field("container", "any", "the server has no tools of its own", REFUSED),
    Field("mcp_servers", "any", "the server asks no other", REFUSED, harmless=([],)),
    Field("timeout", "number", "seconds for the request, waiting included", low=0.001),
    Field("chat_template_kwargs", "object", "values for names that the chat template reads"),
]  # fmt: skip
"""Anthropic's fields."""

COUNT_TOKENS = [
    row
    for row in MESSAGES
    if row.name
    in (
        "model",
        "messages",
        "system",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "cache_control",
        "speed",
        "user_profile_id",
        "workspace_id",
    )
]

RESPONSES = [
    Field("model", "text", "the model or one of its adapters; left out = the model"),
    Field("input", "texts or objects", "a text, or messages, calls of functions and their outputs"),
    Field("instructions", "text", "a system message"),
    Field("max_output_tokens", "integer", "left out = as many as the model has room for", low=1, high=2**31),
    Field("temperature", "number", "0 takes the likeliest token", low=0, high=2),
    Field("top_p", "number", low=0, high=1),
    Field("text", "object", "its `format`: `text`, `json_object`, or `json_schema` with `schema`"),
    Field("tools", "list", "of type `function`"),
    Field("tool_choice", "any", "as for chat completions"),
    Field("parallel_tool_calls", "boolean", "as for chat completions"),
    Field("stream", "boolean", "server-sent events"),
    Field("stream_options", "any", "every stream ends with the usage", IGNORED),
    Field("metadata", "object", "comes back with the response"),
    Field("user", "text", "comes back with the response"),
    Field("store", "any", NO_STORE + ", whatever this says", IGNORED),
    Field("previous_response_id", "any", NO_STORE + "; send the conversation in `input`", REFUSED),
    Field("conversation", "any", NO_STORE + "; send the conversation in `input`", REFUSED),
    Field("prompt", "any", NO_STORE, REFUSED),
    Field("background", "boolean", NO_STORE, REFUSED, harmless=(False,)),
    Field("include", "list", "there is nothing more to include", REFUSED, harmless=([], ["reasoning.encrypted_content"])),
    Field("truncation", "text", "prompts are never cut", REFUSED, harmless=("disabled",)),
    Field("reasoning", "object", "its `effort` is the `reasoning_effort` of chat completions; thoughts are items whole, without a summary"),
    Field("background_options", "any", NO_STORE, REFUSED),
    Field("context_management", "any", "prompts are never cut", REFUSED, harmless=([],)),
    Field("image", "any", TEXT_ONLY, REFUSED),
    Field("moderation", "any", "answers are not moderated", REFUSED),
    Field("access_programs", "any", "the server asks no other", REFUSED),
    Field("max_tool_calls", "any", "the server has no tools of its own", IGNORED),
    Field("top_logprobs", "integer", "ask chat completions for log-probabilities", REFUSED, harmless=(0,)),
    Field("prompt_cache_key", "any", "equal beginnings of prompts share the cache without it", IGNORED),
    Field("prompt_cache_retention", "any", "the cache keeps what it has room for", IGNORED),
    Field("prompt_cache_options", "any", "the cache keeps what it has room for", IGNORED),
    Field("safety_identifier", "any", "users are not told apart", IGNORED),
    Field("service_tier", "any", "there is one tier", IGNORED),
    Field("seed", "integer", "the same answer again", low=-(2**63), high=2**63 - 1),
    *(row for row in OURS if row.name in ("top_k", "min_p", "timeout")),
    Field("stop", "texts", "up to 16 texts of up to 256 characters"),
    Field("chat_template_kwargs", "object", "values for names that the chat template reads"),
]  # fmt: skip
"""Those of OpenAI's responses, and some of ours."""

LOAD_ADAPTER = [
    Field("lora_name", "text", "by which requests will ask for it"),
    Field("lora_path", "text", "folder of the adapter, on the server"),
]
UNLOAD_ADAPTER = [Field("lora_name", "text", "the adapter")]

PADDLENLP = [
    Field("context", "text", "what the user says"),
    Field("history", "any", "texts by turns, or objects with `utterance`, or either as JSON text; an even number"),
    Field("top_k", "integer", "default 0", low=0, high=2**31),
    Field("top_p", "number", "default 0.7", low=0, high=1),
    Field("temperature", "number", "default 0.95; 0 takes the likeliest token", low=0, high=100),
    Field("repetition_penalty", "number", "default 1.0", low=0.01, high=100),
    Field("max_length", "integer", "longest answer in tokens; left out = what there is room for", low=1, high=2**31),
    Field("min_length", "integer", "default 0", low=0, high=2**31),
    Field("src_length", "integer", "longest prompt in tokens; a longer one is an error, never cut", low=1, high=2**31),
    Field("extra_info", "any", "PaddleNLP drops it too", IGNORED),
]

NAMES = {
    "max_length": "max_tokens", "max_new_tokens": "max_tokens", "num_predict": "max_tokens", "n_predict": "max_tokens",
    "max_output_tokens": "max_completion_tokens", "min_length": "min_tokens", "min_new_tokens": "min_tokens",
    "src_length": "max_tokens, and keep the prompt short: it is never cut", "repeat_penalty": "repetition_penalty",
    "guided_json": "structured_outputs, and there json", "guided_regex": "structured_outputs, and there regex",
    "guided_choice": "structured_outputs, and there choice", "guided_grammar": "structured_outputs, and there grammar",
    "grammar": "response_format with the type grammar", "json_schema": "response_format with the type json_schema",
    "input": "messages or prompt", "do_sample": "temperature",
}  # fmt: skip
"""Field of another program -> ours."""


def read(body: Any, fields: list[Field]) -> dict[str, Any]:
    """The values of a body's fields; those that are null or have no effect are left out.

    Args:
        body: The value of the JSON text.
        fields: The fields that it may have.

    Raises:
        Problem: A field is unknown, refused, of another type or out of range.
    """
    if not isinstance(body, dict):
        raise Problem(f"the body must be a JSON object, not {shown(body)}")
    known, values = {row.name: row for row in fields}, {}
    for name, value in body.items():
        row = known.get(name)
        if row is None:
            raise Problem(
                f"unknown field {shown(name)}; {_nearest(name, known)}", param=name[:80], code="unknown_field"
            )
        if value is None or row.effect == IGNORED:
            continue
        if row.effect == REFUSED and not any(type(value) is type(one) and value == one for one in row.harmless):
            raise Problem(f"{name}={shown(value)} is not supported: {row.note}", param=name, code="unsupported_field")
        values[name] = _checked(row, value)
    return values


def need(values: Mapping[str, Any], *names: str) -> None:
    """Passes when fields were given.

    Raises:
        Problem: One was not.
    """
    for name in names:
        if name not in values:
            raise Problem(f"{name} is missing", param=name, code="missing_field")


def _checked(row: Field, value: Any) -> Any:
    words, fits = KINDS[row.kind]
    if not fits(value):
        raise Problem(f"{row.name}={shown(value)}: expected {words}", param=row.name, code="invalid_type")
    if row.kind in ("integer", "number") and not row.low <= value <= row.high:
        low, high = (f"{bound:g}" if abs(bound) < 1e6 else str(bound) for bound in (row.low, row.high))
        limits = [f"at least {low}"] * (row.low > -math.inf) + [f"at most {high}"] * (row.high < math.inf)
        raise Problem(f"{row.name}={shown(value)} must be {' and '.join(limits)}", param=row.name, code="out_of_range")
    return int(value) if row.kind == "integer" else float(value) if row.kind == "number" else value


def _nearest(name: str, known: Mapping[str, Field]) -> str:
    alias = NAMES.get(name, "")
    if alias and (alias in known or " " in alias):
        return f"here it is called {alias}"
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def table(fields: list[Field]) -> str:
    """The fields as a table in Markdown."""
    lines = ["| field | | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{row.name}` | {row.effect} | {row.note} |" for row in fields)])
