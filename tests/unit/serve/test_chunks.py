"""Chunks of streamed answers: a template that is filled in gives what is written otherwise."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmctl.infer.sampling import SamplingParams
from llmctl.serve.answers.answer import Piece
from llmctl.serve.answers.parts import Part
from llmctl.serve.apis.openai import Asked, ChatForm, CompletionForm, chunks
from llmctl.serve.service import Ask, Job


class Said:
    """Gives texts of an answer, one after the other."""

    def __init__(self, texts):
        self._texts = texts

    async def pieces(self, job):
        for text in self._texts:
            yield [(0, Piece([Part("text", text)]))]
        yield [(0, Piece(finish="length"))]


def streamed(kind, texts, name, **more):
    """The chunks of texts."""
    job = Job(asks=[Ask(prompt=[1], params=SamplingParams())])
    model = SimpleNamespace(system_fingerprint=lambda adapter: f"fp_{adapter}0")
    asked = Asked(model, job, name, stream=True, id="1", created=2, **more)

    async def run():
        return [json.loads(chunk) async for chunk in chunks(kind(asked), Said(texts))]

    return asyncio.run(run())


@pytest.mark.parametrize("kind", [ChatForm, CompletionForm])
@given(texts=st.lists(st.text(min_size=1), min_size=1, max_size=4), name=st.text())
@example(texts=["\0", '"\\\n', "é😀"], name='\0"\0"')
def test_a_template_is_filled_in_with_any_text(kind, texts, name):
    found = streamed(kind, texts, name, usage=True)
    written = streamed(kind, texts, name, usage=True, usage_always=True)  # no template: every chunk has another usage
    assert [{**chunk, "usage": None} for chunk in found] == [{**chunk, "usage": None} for chunk in written]
    contents = [
        choice.get("text", choice.get("delta", {}).get("content")) for chunk in found for choice in chunk["choices"]
    ]
    assert "".join(filter(None, contents)) == "".join(texts) and {chunk["model"] for chunk in found} == {name}
