"""The server: what every family must satisfy; ``FamilyConformance`` inherits it. No HTTP here: routes know no families."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmctl import plugins
from llmctl.card import capabilities, support
from llmctl.card.answers import CALL_FORMS
from llmctl.card.dims import Dims
from llmctl.card.family import Family
from llmctl.testing.batching import LENGTHS, _alone, _engine
from llmctl.testing.evidence import proves
from llmctl.testing.fused import single_layer
from llmctl.tokenizers.base import Tokenizer
from llmctl.tokenizers.special import Special

LETTERS = 0x4E00
"""Character of the first token."""

CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}


class Letters(Tokenizer):
    """A tokenizer with a character for each token.

    Args:
        vocab: Number of tokens.
    """

    def __init__(self, vocab: int) -> None:
        nothing: dict[str, int] = {}
        named = {
            f"{name}_token": letter for name, letter in zip(("bos", "eos", "user", "assistant"), "<>〈〉", strict=True)
        }
        super().__init__(Path(), Special(nothing, nothing, None, None, None, None, (), named, (), (), (), False))
        self._vocab = vocab

    @property
    def vocab_size(self) -> int:
        """As ``Tokenizer``."""
        return self._vocab

    def _encode(self, text: str, start: bool) -> list[int]:
        return [ord(letter) - LETTERS for letter in text]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """As ``Tokenizer``."""
        return "".join(chr(LETTERS + token) for token in ids)

    def token_bytes(self, token: int) -> bytes:
        """As ``Tokenizer``."""
        return chr(LETTERS + token).encode()


class ServingConformance:
    """Tests that use the fixtures of ``FusedConformance``."""

    def input_ids(self, dims: Dims, rows: int, length: int) -> Any:
        """As in ``FamilyConformance``."""
        raise NotImplementedError

    @proves("serving")
    def test_served_answers_are_those_of_the_engine_whole_and_streamed(
        self, plugin: plugins.Plugin, dims: Dims, request: pytest.FixtureRequest
    ) -> None:
        from llmctl.infer.backend import BatchBackend, EngineBackend
        from llmctl.infer.request import Request
        from llmctl.infer.sampling import SamplingParams
        from llmctl.serve.bridge import bridge_of

        prompts = [self.input_ids(dims, 1, length)[0].tolist() for length in LENGTHS]
        sampled = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}
        options = [sampled if index % 2 else {"temperature": 0} for index in range(len(prompts))]
        alone = [
            SamplingParams(max_new_tokens=20, sample=True, **given) if index % 2 else SamplingParams(max_new_tokens=20)
            for index, given in enumerate(options)
        ]
        requests = [Request(prompt=prompt, options=params) for prompt, params in zip(prompts, alone, strict=True)]
        if isinstance(support.state(plugin.card, "fused"), capabilities.Unsupported):
            layer = single_layer(plugin, dims)
            made, bridge = _alone(layer, requests), bridge_of(BatchBackend(layer, (), 0))
        else:
            fused = request.getfixturevalue("fused")
            made, bridge = (
                _engine(fused, blocks=40).generate(requests),
                bridge_of(EngineBackend(_engine(fused, blocks=7))),
            )
        letters = Letters(dims.vocab)
        bodies = [{"prompt": prompt, "max_tokens": 20, **given} for prompt, given in zip(prompts, options, strict=True)]
        whole, streamed = asyncio.run(_served(bridge, letters, bodies))
        assert whole == streamed == [letters.decode(one.ids) for one in made]

    @proves("serving")
    def test_what_the_card_says_of_calls_and_thoughts_is_what_the_server_reads(self, card: Family) -> None:
        from llmctl.serve.answers.parts import PartsReader, calls_of

        facts = card.tokens
        assert facts.calls in ("", *CALL_FORMS) and len(facts.thoughts) in (0, 2) and all(facts.thoughts)
        form = CALL_FORMS.get(facts.calls)
        thoughts = f"{facts.thoughts[0]}\nWhy?\n{facts.thoughts[1]}\n\n" if facts.thoughts else ""
        call = {form.name: "clock", form.arguments: {"zone": "a<b"}} if form else {}
        body = json.dumps([call] if form and form.listed else call)
        written = f"{form.begin}{body}{form.end}" if form else "Yes."
        for size in (1, 7, 1000):
            reader = PartsReader(form, ("clock",), facts.thoughts)
            text = thoughts + written
            found = [reader.add(text[at : at + size]) for at in range(0, len(text), size)] + [reader.finish()]
            parts = [part for row in found for part in row]
            said = {kind: "".join(part.text for part in parts if part.kind == kind) for kind in ("text", "thoughts")}
            assert said == {"text": "" if form else "Yes.", "thoughts": "Why?" if thoughts else ""}
            assert [json.loads(one.arguments) for one in calls_of(parts)] == ([{"zone": "a<b"}] if form else [])

    @proves("serving")
    def test_calls_that_are_bound_to_the_form_of_the_card_are_read_back(self, card: Family) -> None:
        from llmctl.serve.answers.grammars import matcher_of
        from llmctl.serve.answers.parts import PartsReader, calls_of
        from llmctl.serve.answers.tools import PLAIN, Tools, grammar_of_begun_call, grammar_of_calls, mark_of

        llguidance = pytest.importorskip("llguidance")
        form = CALL_FORMS.get(card.tokens.calls, PLAIN)
        grammar = grammar_of_calls(Tools((CLOCK,), required=True), form, mark_of({}))
        calls = [{form.name: "clock", form.arguments: {"zone": zone}} for zone in ("四", "五")][
            : 2 if form.begin else 1
        ]
        one = [form.begin + json.dumps(call, ensure_ascii=False) + form.end for call in calls]
        written = (
            form.begin + json.dumps(calls, ensure_ascii=False) + form.end if form.listed else form.between.join(one)
        )
        matcher = matcher_of("lark", grammar, llguidance.LLTokenizer("byte"), "tools")
        data = [*written.encode()]
        assert matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting(), written
        first, opening = form.listed and written or one[0], form.begin.strip() or f'{{"{form.name}": "'
        begun = grammar_of_begun_call(Tools((CLOCK,)), form, mark_of({}))
        matcher, data = (
            matcher_of("lark", begun, llguidance.LLTokenizer("byte"), "tools"),
            first[len(opening) :].encode(),
        )
        assert matcher.try_consume_tokens([*data]) == len(data) and matcher.is_stopped(), first
        reader = PartsReader(form, ("clock",), ())
        found = calls_of(reader.add(written) + reader.finish())
        assert [json.loads(call.arguments) for call in found] == [call[form.arguments] for call in calls]

    @proves("serving")
    def test_a_conversation_with_calls_is_written_by_the_chat_template_of_the_card(self, card: Family) -> None:
        from llmctl.serve.problems import Problem
        from llmctl.tokenizers.chat import JinjaTemplate

        letters = Letters(100)
        if card.chat_template:
            letters.chat_template = JinjaTemplate(card.chat_template, letters, "the card")
        call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "四"}'}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "三"}, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "五"}, {"role": "assistant", "content": "六"},
            {"role": "user", "content": "七"},
        ]  # fmt: skip
        asked: dict[str, Any] = {"messages": messages, "tools": [CLOCK]}
        if not card.chat_template:
            with pytest.raises(Problem, match="--chat-template"):
                _model(letters).conversation(asked)
            return
        text = letters.decode(_model(letters).conversation(asked))
        places = [text.index(letter) for letter in "三四五六七"]
        assert places == sorted(places) and "clock" in text[: places[0]] and "clock" in text[places[0] : places[1]]
        begun = {"messages": [*messages, {"role": "assistant", "content": "八"}], "continue_final_message": True}
        more = letters.decode(_model(letters).conversation({**asked, **begun}))
        assert more.startswith(text) and more.endswith("八")


def _model(letters: Letters) -> Any:
    """A served model that is asked for no answer."""
    from llmctl.infer.sampling.defaults import SamplingDefaults
    from llmctl.serve.model import ServedModel

    return ServedModel(
        name="tiny", tokenizer=letters, vocab=letters.vocab_size, max_positions=0, defaults=SamplingDefaults({})
    )


async def _served(bridge: Any, letters: Letters, bodies: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The texts of completions that are asked for at the same time, whole and put together from streams."""
    from llmctl.serve.admission import Admission
    from llmctl.serve.apis import openai
    from llmctl.serve.metrics import Metrics
    from llmctl.serve.service import Service

    service = Service(_model(letters), bridge, Admission(64, 1_000_000), Metrics())
    bridge.start()

    async def whole(body: dict[str, Any]) -> str:
        form = await openai.form_of(openai.parse_completion(body, service), service, False)
        return str((await openai.whole(form, service))["choices"][0]["text"])

    async def streamed(body: dict[str, Any]) -> str:
        form = await openai.form_of(openai.parse_completion(body, service), service, False)
        return "".join([json.loads(chunk)["choices"][0]["text"] async for chunk in openai.chunks(form, service)])

    try:
        found = await asyncio.gather(*map(whole, bodies), *map(streamed, bodies))
    finally:
        bridge.stop()
    return list(found[: len(bodies)]), list(found[len(bodies) :])
