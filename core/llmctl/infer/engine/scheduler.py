"""Which tokens are computed in the next step.

First come, first served. Each step first goes on with every answer, by a token; then with prompts that are under way, as
far as the step's budget goes; then with new ones, while there are blocks for all of their prompt; what is left of the
budget is for guesses. When blocks run out, whoever came last gives up all of its blocks and waits: its tokens are
computed again later. The budget is larger than the number of rows, so prompts always go on too, and whoever came first
can take blocks from all others, so it always comes to its end.
"""

from __future__ import annotations

from collections import deque

from llmctl.infer.engine.block_manager import Row, Tables
from llmctl.infer.engine.sequence import Job, Part
from llmctl.infer.executors.base import BLOCK


class Scheduler:
    """Jobs that wait and jobs that run, both in the order of their arrival.

    Args:
        tables: Blocks of the rows.
        budget: Most tokens of a step; above ``most_rows``.
        most_rows: Most rows that run.
    """

    def __init__(self, tables: Tables, budget: int, most_rows: int) -> None:
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preempted = 0
        self._tables, self._budget, self._most_rows = tables, budget, most_rows
        self._parts: dict[Row, Part] = {}
        self._left = 0

    @property
    def jobs(self) -> list[Job]:
        """All, in the order of their arrival."""
        return [*self.running, *self.waiting]

    def remove(self, job: Job) -> None:
        """Forgets a job and releases its blocks."""
        if job in self.running:
            self.running.remove(job)
        else:
            self.waiting.remove(job)
        for row in job.rows:
            self._tables.close(row)

    def plan(self) -> list[Part]:
        """The tokens of the next step; their blocks are reserved."""
        self._parts, self._left = {}, self._budget
        for job in [*self.running]:
            for row in job.rows:
                if row.pending == 1 and row.blocks and job in self.running:
                    self._plan(job, row, 1)
        for job in [*self.running]:
            self._prompt(job)
        while self.waiting and self._left > 0 and self._admit(self.waiting[0]):
            admitted = self.running[-1]
            self._prompt(admitted)
            if admitted not in self.running:
                break  # its other rows found no blocks: it waits for a later step, not for this one
        self._guess()
        return list(self._parts.values())

    def _plan(self, job: Job, row: Row, count: int) -> bool:
        """Plans tokens, taking blocks from the latest if need be; False = the job itself was the latest."""
        while not self._tables.reserve(row, count):
            latest = self.running[-1]
            if latest is job and len(self.running) == 1:
                raise RuntimeError(f"request {job.id} has the whole cache to itself and does not fit")
            self._preempt(latest)
            if latest is job:
                return False
        self._parts[row] = Part(job, row, count, [])
        self._left -= count
        return True

    def _prompt(self, job: Job) -> None:
        """Plans the next tokens of the first row that has many to compute; the others may then share its blocks."""
        for row in job.rows:
            if job not in self.running or self._left <= 0:
                return
            if row in self._parts or not row.pending:
                continue
            if not row.blocks:
                self._tables.open(row)
            count = min(row.pending, self._left)
            # A context sees itself as a whole, so it waits for a step that has room.
            if row.context and row.context.length - row.computed > count:
                return
            if not self._plan(job, row, count) or row.pending > 1:
                return

    def _admit(self, job: Job) -> bool:
        """Lets a job run if there are blocks for its first row, for what others still need for theirs, and one more for
        each of these."""
        rows = sum(other.width for other in self.running)
        if rows + job.width > self._most_rows:
            return False
        self._tables.open(job.rows[0])
        promised = sum(self._tables.missing(row) + 1 for other in self.running for row in other.rows)
        if self.running and self._tables.missing(job.rows[0]) + promised > self._tables.blocks.available:
            self._tables.close(job.rows[0])
            return False
        self.running.append(self.waiting.popleft())
        return True

    def _preempt(self, job: Job) -> None:
        self.preempted += 1
        self.running.remove(job)
        self.waiting.appendleft(job)
        for row in job.rows:
            part = self._parts.pop(row, None)
            self._left += part.count if part else 0
            self._tables.close(row)

    def _guess(self) -> None:
        """Adds guesses of what follows to parts that end a row, as far as budget and blocks go."""
        for row, part in self._parts.items():
            if self._left <= 0 or not part.finishes or not part.job.drafting:
                continue
            room = (-(row.computed + part.count + self._tables.virtual)) % BLOCK + BLOCK * self._tables.blocks.available
            drafts = part.job.guess(min(self._left, room))
            if drafts and self._tables.reserve(row, part.count + len(drafts)):
                self._parts[row] = Part(part.job, row, part.count, drafts)
                self._left -= len(drafts)
