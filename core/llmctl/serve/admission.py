"""How many answers may run and wait. More are refused at once, with when to try again."""

from __future__ import annotations

import math

from llmctl.serve.problems import Problem


class Admission:
    """Counts answers and the tokens of prompts that wait.

    Args:
        answers: Most answers that run or wait.
        tokens: Most tokens of prompts that wait; a single request may have more.

    Attributes:
        held: Answers that run or wait.
        waiting: Tokens of prompts that have no first token yet.
    """

    def __init__(self, answers: int, tokens: int) -> None:
        self._answers, self._tokens = answers, tokens
        self.held = self.waiting = 0
        self._seconds = 1.0

    def enter(self, answers: int, tokens: int) -> None:
        """Lets a request in.

        Args:
            answers: How many it asks for.
            tokens: Tokens of their prompts.

        Raises:
            Problem: There are too many.
        """
        if answers > self._answers:
            raise Problem(f"the request asks for {answers} answers; the server answers {self._answers} at a time")
        full = self.held + answers > self._answers
        if full or (self.waiting and self.waiting + tokens > self._tokens):
            what = f"{self.held} answers" if full else f"{self.waiting} tokens of prompts"
            raise Problem(
                f"the server is busy: {what} are before this request; try again later",
                429, code="server_busy", headers={"retry-after": str(self.wait())},
            )  # fmt: skip
        self.held += answers
        self.waiting += tokens

    def begun(self, tokens: int) -> None:
        """A prompt of so many tokens has its first token."""
        self.waiting -= tokens

    def leave(self, answers: int, seconds: float) -> None:
        """Answers have ended, after so long."""
        self.held -= answers
        self._seconds += 0.1 * (seconds - self._seconds)

    def wait(self) -> int:
        """Seconds after which there may be room: half of what an answer takes, from 1 to 60."""
        return min(60, max(1, math.ceil(self._seconds / 2)))
