"""Conversations with a user at a terminal."""

from __future__ import annotations

from collections.abc import Callable

from llmctl.data.sft.encoding import prompt_ids
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.text.generator import TextGenerator, TextRequest
from llmctl.tokenizers.conversation import Conversation


class Chat:
    """A conversation: ``/reset`` forgets it, ``/quit`` ends it. When it grows too long for the model, its oldest turns are dropped.

    Args:
        generator: Answers; its tokenizer's chat template writes the turns.
        params: How tokens are chosen.
        system: System text, if any.
        ask: Returns the next line, or None at the end of input.
        show: Called with every piece of an answer, and a line break after it.
    """

    def __init__(
        self,
        generator: TextGenerator,
        params: SamplingParams,
        system: str | None,
        ask: Callable[[], str | None],
        show: Callable[[str], None],
    ) -> None:
        self.generator, self.params, self.system, self.ask, self.show = generator, params, system, ask, show
        self.turns: list[tuple[str, str | None]] = []

    def run(self) -> None:
        """Answers until the user leaves."""
        while (line := self.ask()) is not None:
            text = line.strip()
            if text in ("/quit", "/exit"):
                return
            if text == "/reset":
                self.turns = []
            elif text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        if self.generator.tokenizer.chat_template is None:
            self.turns = []
        try:
            request = self._request(text)
        except LlmctlError as error:  # too long, or a token without an embedding row
            self.show(f"{error}\n")
            return
        output = self.generator.generate([request], lambda _, piece: self.show(piece))[0]
        self.show("\n" if output.finish_reason != "error" else f"{output.error}\n")
        if output.finish_reason != "error":
            self.turns.append((text, output.text))

    def _request(self, text: str) -> TextRequest:
        """The conversation as a request; its oldest turns are dropped while there is no room for an answer."""
        index = len(self.turns)
        while True:
            asked = Conversation((*self.turns, (text, None)), self.system)
            request = TextRequest(prompt_ids(self.generator.tokenizer, asked), self.params, index)
            try:
                self.generator.check(request, "the message")
                return request
            except ConfigError:
                if not self.turns:
                    raise
                del self.turns[0]
