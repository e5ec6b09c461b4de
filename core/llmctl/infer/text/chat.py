"""Conversations with a user at a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from llmctl.data.sft.encoding import prompt_ids
from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.defaults import shortened
from llmctl.infer.text.generator import TextGenerator, TextOutput, TextRequest
from llmctl.tokenizers.conversation import Conversation

HELP = """\
/reset          forget the conversation
/system TEXT    set the system prompt; without TEXT remove it
/save FILE      write the conversation as JSON lines, as finetune reads them
/exit           end the chat, as Ctrl-D does
Ctrl-C stops an answer.
A message of several lines stands between two \"\"\", or has \\ at line ends."""

ROOM = 256
"""Tokens that are left for an answer before the oldest turns are dropped, where answers may be longer."""


class Chat:
    """A conversation. When it grows too long for the model, its oldest turns are dropped.

    Args:
        generator: Answers; its tokenizer's chat template writes the turns.
        params: How tokens are chosen; answers end where the model's positions end.
        system: System text, if any.
        ask: Returns the next message, or None at the end of input.
        show: Called with every piece of an answer, and a line break after it.
        notice: Called with what is no part of an answer; None = shown as a line.
        stopped: Whether the user has stopped the answer, which is kept as far as it is.
        speed: Called with the number of tokens of an answer, their speed, and whether it was cut at ``max_new_tokens``.
    """

    def __init__(
        self,
        generator: TextGenerator,
        params: SamplingParams,
        system: str | None,
        ask: Callable[[], str | None],
        show: Callable[[str], None],
        notice: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] | None = None,
        speed: Callable[[int, float, bool], None] | None = None,
    ) -> None:
        self.generator, self.params, self.system, self.ask, self.show = generator, params, system, ask, show
        self.notice = notice or (lambda text: show(f"{text}\n"))
        self.stopped, self.speed = stopped or (lambda: False), speed or (lambda tokens, rate, cut: None)
        self.turns: list[tuple[str, str | None]] = []

    def run(self) -> None:
        """Answers until the user leaves."""
        while (line := self.ask()) is not None:
            name, _, rest = line.rstrip().partition(" ")
            if name in ("/quit", "/exit"):
                return
            if name.startswith("/") and "/" not in name[1:]:
                self._command(name, rest.strip())
            elif text := line.strip():
                self._turn(text)

    def _command(self, name: str, rest: str) -> None:
        if name == "/help":
            self.notice(HELP)
        elif name == "/reset":
            self.turns = []
            self.notice("the conversation is forgotten")
        elif name == "/system":
            self._set_system(rest or None)
        elif name == "/save":
            self._save(rest)
        else:
            self.notice(f"there is no command {name}; /help lists them. A message may begin with a space")

    def _set_system(self, text: str | None) -> None:
        if text is not None and self.generator.tokenizer.chat_template is None:
            self.notice("a system prompt needs a chat template, and the model has none")
            return
        self.system = text
        self.notice("the system prompt is removed" if text is None else "the system prompt is set")

    def _save(self, name: str) -> None:
        """Writes the conversation into a new file."""
        if not name or not self.turns:
            self.notice("there is nothing to save yet" if name else "name a file: /save FILE")
            return
        system = [] if self.system is None else [("system", self.system)]
        rows = [*system, *(row for turn in self.turns for row in zip(("user", "assistant"), turn, strict=True))]
        content = json.dumps({"messages": [{"role": role, "content": text} for role, text in rows]}, ensure_ascii=False)
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                file.write(content + "\n")
        except FileExistsError:
            self.notice(f"{name} exists; name another file")
        except OSError as error:
            self.notice(f"{name} cannot be written: {error.strerror}")
        else:
            self.notice(f"{len(self.turns)} turns in {name}")

    def _turn(self, text: str) -> None:
        if self.generator.tokenizer.chat_template is None:
            self.turns = []
        try:
            request = self._request(text)
        except LlmctlError as error:  # too long, or a token without an embedding row
            self.notice(str(error))
            return
        output = self._answer(request)
        if output.finish_reason == "error":
            self.notice(output.error)
        elif output.text or not self.stopped():
            self.turns.append((text, output.text))

    def _answer(self, request: TextRequest) -> TextOutput:
        """Shows an answer as it grows."""
        times: list[float] = []

        def show(_: int, piece: str) -> None:
            times.append(time.perf_counter())
            self.show(piece)

        began = time.perf_counter()
        output = self.generator.generate([request], show, self.stopped)[0]
        if output.finish_reason != "error":
            self.show("\n")
            tokens = len(output.token_ids)
            seconds = time.perf_counter() - (times[0] if times and tokens > 1 else began)
            rate = (tokens - 1 if times and tokens > 1 else tokens) / max(seconds, 1e-9)
            self.speed(tokens, rate, output.finish_reason == "length")
        return output

    def _request(self, text: str) -> TextRequest:
        """The conversation as a request; its oldest turns are dropped while there is no room for an answer."""
        index, limit = len(self.turns), self.generator.max_positions
        least = shortened(self.params, 0, ROOM)
        while True:
            asked = Conversation((*self.turns, (text, None)), self.system)
            ids = prompt_ids(self.generator.tokenizer, asked)
            try:
                self.generator.check(TextRequest(ids, least, index), "the message")
                return TextRequest(ids, shortened(self.params, len(ids), limit), index)
            except ConfigError:
                if not self.turns:
                    raise
                del self.turns[0]
