"""Admission control: how many answers may run or wait. Further requests are refused at once, with a time to retry after."""

from __future__ import annotations

import math

from llmctl.serve.problems import Problem


class Admission:
    """Counts answers that run or wait, and the tokens of waiting prompts.

    Args:
        answers: Maximum number of answers that run or wait.
        tokens: Maximum number of tokens of waiting prompts; a request may have more if no other waits.

    Attributes:
        admitted: Answers that run or wait.
        waiting: Tokens of prompts whose answers have no first token yet.
    """

    def __init__(self, answers: int, tokens: int) -> None:
        self._answers, self._tokens = answers, tokens
        self.admitted = self.waiting = 0
        self._average_seconds = 1.0

    def enter(self, answers: int, tokens: int) -> None:
        """Lets a request in.

        Args:
            answers: Number of answers that it asks for.
            tokens: Tokens of their prompts.

        Raises:
            Problem: There are too many answers, or tokens of waiting prompts.
        """
        if answers > self._answers:
            raise Problem(f"the request asks for {answers} answers; the server answers {self._answers} at a time")
        full = self.admitted + answers > self._answers
        if full or (self.waiting and self.waiting + tokens > self._tokens):
            answers_full = f"{self.admitted} of at most {self._answers} answers run or wait"
            prompts_full = f"{self.waiting} prompt tokens wait, and at most {self._tokens} may"
            raise Problem(
                f"the server is busy: {answers_full if full else prompts_full}; try again later",
                429, code="server_busy", headers={"retry-after": str(self.wait())},
            )  # fmt: skip
        self.admitted += answers
        self.waiting += tokens

    def prompts_done(self, tokens: int) -> None:
        """Prompts of this many tokens wait no longer: their answers have a first token."""
        self.waiting -= tokens

    def leave(self, answers: int, seconds: float) -> None:
        """Answers have ended, after this many seconds."""
        self.admitted -= answers
        self._average_seconds += 0.1 * (seconds - self._average_seconds)

    def wait(self) -> int:
        """Seconds after which there may be room: half the average time of an answer, from 1 to 60."""
        return min(60, max(1, math.ceil(self._average_seconds / 2)))
