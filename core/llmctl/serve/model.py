"""The model that is served: names, tokenizer, prompts from texts and conversations, sampling parameters from bodies."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from llmctl.card.answers import CallForm
from llmctl.card.decoder_spec import PrefixLM
from llmctl.data.sft.encoding import prompt_ids, text_ids
from llmctl.errors import LlmctlError, TokenizerError
from llmctl.infer.fingerprint import with_adapter
from llmctl.infer.sampling import SAMPLE_ONLY, SamplingParams
from llmctl.infer.sampling.constraint import Constraint
from llmctl.infer.sampling.defaults import SamplingDefaults
from llmctl.serve.adapters import Adapters
from llmctl.serve.answers.formats import Grammar, grammar_of
from llmctl.serve.answers.grammars import Grammars
from llmctl.serve.answers.lazy import LazyCalls
from llmctl.serve.answers.parts import PartsReader
from llmctl.serve.answers.tools import (
    CALLS,
    PLAIN,
    Tools,
    grammar_of_begun_call,
    grammar_of_calls,
    mark_of,
    told,
    tools_of,
)
from llmctl.serve.messages import continued, messages_of
from llmctl.serve.problems import Problem, shown
from llmctl.tokenizers import Tokenizer
from llmctl.tokenizers.conversation import RESERVED, Conversation, Message

T = TypeVar("T")
STOPS, STOP_TEXT, BIASES, STOP_IDS = 16, 256, 1024, 64
"""How many of each a body may have."""

UNBOUNDED = 1024
"""Tokens of an answer where neither the request nor the model has a limit."""

GREEDY = 1e-4
"""A temperature below this takes the likeliest token; dividing by it would overflow."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and what is needed to ask it.

    Attributes:
        name: Its name.
        adapters: Its adapters.
        tokenizer: Its tokenizer.
        vocab: Number of its tokens.
        max_positions: Tokens of prompt and answer together; 0 = any.
        defaults: What generation_config.json says.
        prefix_lm: Marks of prompts that are read in both directions; None = there are none.
        causal: Whether tokens depend only on those before them.
        fused: Whether the fused engine computes it.
        family: Name of its family.
        created: When the server started, in seconds since 1970.
        calls: How the family writes calls of functions; None = in no form of its own.
        thoughts: Text before and after thoughts; empty = there are no marks.
        grammars: Compiles forms of answers; None = there is no grammar engine.
        fingerprint: Identifies what decides its answers; empty = it has none.
    """

    name: str
    tokenizer: Tokenizer
    vocab: int
    max_positions: int
    defaults: SamplingDefaults
    adapters: Adapters = field(default_factory=Adapters)
    prefix_lm: PrefixLM | None = None
    causal: bool = True
    fused: bool = True
    family: str = ""
    created: int = 0
    calls: CallForm | None = None
    thoughts: tuple[str, ...] = ()
    grammars: Grammars | None = None
    fingerprint: str = ""

    @cached_property
    def marks(self) -> dict[int, str]:
        """Special tokens around calls and thoughts that decoding leaves out, with their names."""
        forms = (self.calls or PLAIN, PLAIN)
        texts = [*(text for form in forms for text in (form.begin, form.end)), *self.thoughts]
        ids = {
            self.tokenizer.special.ids[text.strip()]: text.strip()
            for text in texts
            if text.strip() in self.tokenizer.special.ids
        }
        return {token: name for token, name in ids.items() if not self.tokenizer.decode([token])}

    @property
    def reads_tools(self) -> bool:
        """Whether the chat template has a place for functions."""
        return self.reads("tools")

    def reads(self, name: str) -> bool:
        """Whether the chat template reads a name."""
        template = self.tokenizer.chat_template
        return template is not None and template.reads(name)

    @property
    def form(self) -> CallForm:
        """How calls of functions are written: as the family does where its template tells of them, else as the prompt says."""
        return self.calls or PLAIN if self.reads_tools else PLAIN

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a request may give."""
        return (self.name, *self.adapters.names)

    def adapter(self, name: str | None) -> str:
        """The adapter that a request names; empty = the model itself.

        Raises:
            Problem: There is no model of this name.
        """
        if name is None or name == self.name:
            return ""
        if self.adapters.place(name) is None:
            raise Problem(
                f"there is no model {shown(name)}; there are: {', '.join(self.names)}",
                404, param="model", code="model_not_found",
            )  # fmt: skip
        return name

    def system_fingerprint(self, adapter: str) -> str:
        """OpenAI's name for what decides the answers of an adapter; empty = of the model itself."""
        return f"fp_{with_adapter(self.fingerprint, self.adapters.sample(adapter))}"

    def text_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text or of ids.

        Raises:
            Problem: An id is not of the vocabulary, or the text has a token without a row.
        """
        if isinstance(prompt, str):
            return _good(lambda: text_ids(self.tokenizer, prompt), "prompt")
        return self.known(prompt, "prompt")

    def plain(self, text: str) -> list[int]:
        """Token ids of a text alone, without those that begin a prompt.

        Raises:
            Problem: It has a token without a row.
        """
        return _good(lambda: self.tokenizer.encode(text, add_special=False), "prompt")

    def piece(self, token: int) -> str | list[int]:
        """What a token writes: a text, or its bytes where they are none alone."""
        data = self.tokenizer.token_bytes(token) or self.tokenizer.decode([token], False).encode()
        try:
            return data.decode()
        except UnicodeDecodeError:
            return [*data]

    def known(self, ids: Sequence[int], field: str) -> list[int]:
        """The ids.

        Raises:
            Problem: One is not of the vocabulary.
        """
        strange = next((token for token in ids if not 0 <= token < self.vocab), None)
        if strange is not None:
            raise Problem(
                f"{field} has the token {strange}; the model knows those from 0 to {self.vocab - 1}", param=field
            )
        return [*ids]

    def conversation(self, values: Mapping[str, Any]) -> list[int]:
        """Token ids of a conversation whose answer is generated.

        Args:
            values: ``messages``, and maybe ``tools`` with their choice, and ``chat_template_kwargs``.

        Raises:
            Problem: Messages are not as they should be, or the chat template cannot write them.
        """
        found = messages_of(values["messages"])
        tools, given = tools_of(values), self._variables(values)
        more = continued(values, found)
        template = self.tokenizer.chat_template

        def written(messages: Sequence[Message]) -> list[int]:
            talk = Conversation(
                messages=messages, tools=tools.rows if tools and self.reads_tools else (), add_generation_prompt=not more,
                variables=given,
            )  # fmt: skip
            if more and template is not None:
                return template.prefill(talk)
            return prompt_ids(self.tokenizer, talk, "messages", "--chat-template")

        if self.reads_tools:
            return _good(lambda: written(found), "messages")
        if tools and template is not None and found[0].role != "system":
            with suppress(TokenizerError):  # some templates have no place for a system message
                return written(told(tools, found))
            return _good(lambda: written(told(tools, found, system=False)), "messages")
        return _good(lambda: written(told(tools, found)), "messages")

    def _variables(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a body says to the chat template.

        Raises:
            Problem: The template does not read it.
        """
        given: dict[str, Any] = dict(values.get("chat_template_kwargs") or {})
        for name in given:
            if name in RESERVED or name in self.tokenizer.special.named:
                raise Problem(f"chat_template_kwargs: {name} is set by the server", param="chat_template_kwargs")
            self._check_reads(name, "chat_template_kwargs")
        effort = values.get("reasoning_effort")
        if effort is None:
            return given
        if effort == "none" and not self.reads("reasoning_effort"):
            return {"enable_thinking": False, **given} if self.reads("enable_thinking") else given
        self._check_reads("reasoning_effort", "reasoning_effort")
        return {"reasoning_effort": effort, **given}

    def _check_reads(self, name: str, param: str) -> None:
        if not self.reads(name):
            raise Problem(
                f"{param}: the chat template of {self.name} does not read {shown(name)}; leave it out", param=param
            )

    def params(self, values: Mapping[str, Any], prompt: Sequence[int], longest: int | None) -> SamplingParams:
        """How tokens are chosen after a prompt.

        Args:
            values: Of the body.
            prompt: Token ids.
            longest: Tokens of the answer, at most; None = as many as there is room for.

        Raises:
            Problem: A value is out of range, or the answer does not fit.
        """
        names = ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos")
        given = {name: values[name] for name in names if name in values}
        given["temperature"] = values.get("temperature", self.defaults.values.get("temperature", 1.0))
        given["temperature"] = 0 if given["temperature"] < GREEDY else given["temperature"]
        if self.defaults.values.get("sample") is False and not any(name in values for name in SAMPLE_ONLY):
            given["temperature"] = 0
        if "top_p" in given:
            given["top_p"] = max(given["top_p"], 1e-9)
        if "top_k" in values:
            given["top_k"] = max(0, values["top_k"])
        given["seed"] = values["seed"] & (2**63 - 1) if "seed" in values else secrets.randbits(62)
        if "stop" in values:
            given["stop"] = _stops(values["stop"])
        given["stop_token_ids"] = self.known(values.get("stop_token_ids", ()), "stop_token_ids")
        if len(given["stop_token_ids"]) > STOP_IDS:
            raise Problem(f"stop_token_ids has more than {STOP_IDS} tokens", param="stop_token_ids")
        given["logit_bias"] = self._biases(values.get("logit_bias", {}))
        given["max_new_tokens"] = self._room(prompt, longest)
        least = values.get("min_tokens", 0)
        if least > given["max_new_tokens"]:
            raise Problem(
                f"min_tokens={least} is more than the {given['max_new_tokens']} tokens that the answer may have",
                param="min_tokens",
            )
        if "min_tokens" in values:
            given["min_new_tokens"] = least
        return _good(lambda: self.defaults.params(given), None)

    def _room(self, prompt: Sequence[int], longest: int | None) -> int:
        """Tokens that an answer may have.

        Raises:
            Problem: There is not so much room.
        """
        room = self.max_positions - len(prompt) if self.max_positions else longest or UNBOUNDED
        if room < (longest or 1):
            wanted = f"and {longest} for the answer " if longest else ""
            raise Problem(
                f"the prompt has {len(prompt)} tokens {wanted}and the model has room for {self.max_positions} of both; "
                f"shorten it{f', or set max_tokens to {room} or less' if room > 0 else ''}",
                code="context_length_exceeded", param="max_tokens" if room > 0 else None,
            )  # fmt: skip
        if longest is not None:
            return longest
        said = self.defaults.values.get("max_new_tokens")
        return min(room, said) if said else room

    def _biases(self, biases: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
        if len(biases) > BIASES:
            raise Problem(f"logit_bias has more than {BIASES} tokens", param="logit_bias")
        found = []
        for token, bias in biases.items():
            if not token.isascii() or not token.isdigit() or len(token) > 9:
                raise Problem(f"logit_bias has the key {shown(token)}; keys are token ids", param="logit_bias")
            if type(bias) not in (int, float) or not -100 <= bias <= 100:
                raise Problem(
                    f"logit_bias of {token} is {shown(bias)}; allowed are numbers from -100 to 100", param="logit_bias"
                )
            found.append((int(token), float(bias)))
        self.known([token for token, _ in found], "logit_bias")
        return tuple(found)

    def constraint(self, values: Mapping[str, Any]) -> Constraint | None:
        """The form of the answers that a body asks for; None = any. Compiles: not for the event loop.

        Raises:
            Problem: The form cannot be used, or there is no grammar engine.
        """
        found, tools = grammar_of(values), tools_of(values) if "messages" in values else None
        if tools is not None and tools.required:
            if found:
                raise Problem(
                    f"{found[1]} cannot be combined with a tool_choice that asks for calls; leave one out",
                    param=found[1],
                )
            source = grammar_of_calls(tools, self.form, mark_of(self.tokenizer.special.ids))
            found = ("lark", source), "tools"
        return None if found is None else self.compiled(*found)

    def calls_constraint(self, values: Mapping[str, Any], prompt: Sequence[int]) -> Constraint | None:
        """What binds the calls of an answer that is free otherwise; None = there are none, or no grammar engine. Compiles.

        Args:
            values: Of the body.
            prompt: Token ids.

        Raises:
            Problem: The schema of a function that is ``strict`` cannot be used.
        """
        tools = tools_of(values)
        if tools is None or self.grammars is None:
            return None
        return LazyCalls(
            form=self.form, call=self._begun_call(tools), most=CALLS if tools.many else 1, thoughts=self.thoughts,
            thinking=self._thinking(prompt), text_of=self._text_of, tokens_of=self.grammars.tokens_of,
        )  # fmt: skip

    def _begun_call(self, tools: Tools) -> Constraint:
        """The grammar of a call that has begun; where schemas cannot be used, that of names and objects."""
        mark = mark_of(self.tokenizer.special.ids)
        try:
            return self.compiled(("lark", grammar_of_begun_call(tools, self.form, mark)), "tools")
        except Problem:
            if any(row["function"].get("strict") for row in tools.rows):
                raise
            return self.compiled(("lark", grammar_of_begun_call(tools, self.form, mark, schemas=False)), "tools")

    def _text_of(self, token: int) -> bytes:
        assert self.grammars is not None
        mark = self.marks.get(token)
        return mark.encode() if mark else self.grammars.text_of(token)

    def _thinking(self, prompt: Sequence[int]) -> bool:
        """Whether an answer begins within thoughts."""
        return bool(self.thoughts) and self.tokenizer.decode(prompt[-8:], False).rstrip().endswith(self.thoughts[0])

    def reader(self, values: Mapping[str, Any], prompt: Sequence[int], bound: bool) -> Callable[[], PartsReader] | None:
        """Makes what finds thoughts and calls in an answer of a conversation; None = there are none.

        Args:
            values: Of the body.
            prompt: Token ids.
            bound: Whether the answer has a form, and so no thoughts.
        """
        tools = tools_of(values)
        marks = () if bound else self.thoughts
        if tools is None and not marks:
            return None
        form, names = (self.form, tools.names) if tools else (None, ())
        thinking = not bound and self._thinking(prompt)
        return lambda: PartsReader(form, names, marks, thinking)

    def compiled(self, grammar: Grammar, param: str) -> Constraint:
        """The constraint of a grammar that a field gives.

        Raises:
            Problem: It cannot be used, or there is no grammar engine.
        """
        if self.grammars is None:
            reason = "the server has no llguidance; install it there" if self.fused else "it needs the fused engine"
            raise Problem(f"{param} is not supported here: {reason}", param=param, code="unsupported_field")
        return self.grammars.compiled(*grammar, param)

    def echo(self, ids: Sequence[int], prompt: str | Sequence[int]) -> str:
        """The text of a prompt."""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)

    def why_no_prompt_scores(self) -> str:
        """Why tokens of a prompt have no log-probabilities; empty = they have."""
        if self.prefix_lm is not None or not self.causal:
            return "this model reads a prompt in both directions, so its tokens have no log-probabilities"
        return "" if self.fused else "log-probabilities of the prompt need the fused engine"


def _stops(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(texts) > STOPS or not all(0 < len(text) <= STOP_TEXT for text in texts):
        raise Problem(f"stop must be at most {STOPS} texts of 1 to {STOP_TEXT} characters", param="stop")
    return texts


def _good(make: Callable[[], T], param: str | None) -> T:
    """What is made, or the problem that it ends with."""
    try:
        return make()
    except LlmctlError as error:
        raise Problem(str(error), param=param) from None
