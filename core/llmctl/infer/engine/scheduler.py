"""Which tokens are computed in the next step.

First come, first served. Each step continues every answer by one token; then prompts in progress, as far as the step's
token budget goes; then new prompts, while there are blocks for all of their tokens; the rest of the budget is for draft
tokens. When blocks run out, the latest request is preempted: it gives up all of its blocks and waits, and its tokens are
recomputed later. The budget is larger than the number of sequences, so prompts always progress, and the earliest request
can take blocks from all others, so it always finishes.
"""

from __future__ import annotations

from collections import deque

from llmctl.infer.engine.block_manager import BlockManager
from llmctl.infer.engine.request_state import RequestState, ScheduledChunk
from llmctl.infer.engine.sequence import Sequence
from llmctl.infer.executors.base import BLOCK


class Scheduler:
    """Waiting and running requests, both in the order of arrival.

    Args:
        manager: Blocks of the sequences.
        budget: Maximum number of tokens of a step; above ``max_sequences``.
        max_sequences: Maximum number of sequences that run together.

    Attributes:
        waiting: Requests without blocks.
        running: Requests with blocks.
        preemptions: How often a request gave up its blocks.
    """

    def __init__(self, manager: BlockManager, budget: int, max_sequences: int) -> None:
        self.waiting: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self.preemptions = 0
        self._manager, self._budget, self._max_sequences = manager, budget, max_sequences
        self._chunks: dict[Sequence, ScheduledChunk] = {}
        self._left = 0

    def remove(self, state: RequestState) -> None:
        """Drops a request and releases its blocks."""
        if state in self.running:
            self.running.remove(state)
        else:
            self.waiting.remove(state)
        for sequence in state.sequences:
            self._manager.free(sequence)

    def drop_running(self) -> list[RequestState]:
        """Drops the requests that have blocks, without releasing these; returns them."""
        dropped, self.running = self.running, []
        return dropped

    def preempt_all(self) -> None:
        """Takes the blocks of all requests, which wait again in the order of their arrival."""
        self._chunks = {}
        for state in reversed([*self.running]):
            self._preempt(state)

    def schedule(self) -> list[ScheduledChunk]:
        """The tokens of the next step; their blocks are reserved."""
        self._chunks, self._left = {}, self._budget
        for state in [*self.running]:
            for sequence in state.sequences:
                if sequence.pending == 1 and sequence.block_table and state in self.running:
                    self._schedule(state, sequence, 1)
        for state in [*self.running]:
            self._schedule_prompt(state)
        while self.waiting and self._left > 0 and self._admit(self.waiting[0]):
            admitted = self.running[-1]
            self._schedule_prompt(admitted)
            if admitted not in self.running:
                break  # its other sequences found no blocks: it waits for a later step, not for this one
        self._schedule_drafts()
        return list(self._chunks.values())

    def _schedule(self, state: RequestState, sequence: Sequence, count: int) -> bool:
        """Schedules tokens, preempting the latest requests if need be; False = the request itself was preempted."""
        while not self._manager.reserve(sequence, count):
            latest = self.running[-1]
            if latest is state and len(self.running) == 1:
                raise RuntimeError(f"request {state.id} has the whole cache to itself and does not fit")
            self._preempt(latest)
            if latest is state:
                return False
        self._chunks[sequence] = ScheduledChunk(state, sequence, count, [])
        self._left -= count
        return True

    def _schedule_prompt(self, state: RequestState) -> None:
        """Schedules the next tokens of the first sequence that has many to compute; the others may then share its blocks."""
        for sequence in state.sequences:
            if state not in self.running or self._left <= 0:
                return
            if sequence in self._chunks or not sequence.pending:
                continue
            if not sequence.block_table:
                self._manager.start(sequence)
            count = min(sequence.pending, self._left)
            # A bidirectional prefix is computed as a whole, so it waits for a step that has room.
            if sequence.prefix and sequence.prefix.length - sequence.computed > count:
                return
            if not self._schedule(state, sequence, count) or sequence.pending > 1:
                return

    def _admit(self, state: RequestState) -> bool:
        """Lets a request run if there are blocks for its first sequence, for the tokens that running sequences still have to compute,
        and one more for each of these sequences."""
        running_sequences = sum(other.max_sequences for other in self.running)
        if running_sequences + state.max_sequences > self._max_sequences:
            return False
        first = state.sequences[0]
        self._manager.start(first)
        needed = sum(self._manager.missing_blocks(one) + 1 for other in self.running for one in other.sequences)
        if self.running and self._manager.missing_blocks(first) + needed > self._manager.pool.num_free:
            self._manager.free(first)
            return False
        if state.cached_tokens is None:
            state.cached_tokens = first.computed
        self.running.append(self.waiting.popleft())
        return True

    def _preempt(self, state: RequestState) -> None:
        self.preemptions += 1
        self.running.remove(state)
        self.waiting.appendleft(state)
        for sequence in state.sequences:
            chunk = self._chunks.pop(sequence, None)
            self._left += chunk.count if chunk else 0
            self._manager.free(sequence)

    def _schedule_drafts(self) -> None:
        """Adds draft tokens to chunks that complete a sequence, as far as budget and blocks go."""
        virtual, pool = self._manager.virtual_tokens, self._manager.pool
        for sequence, chunk in self._chunks.items():
            if self._left <= 0 or not chunk.needs_logits or not chunk.state.may_draft:
                continue
            free_positions = (-(sequence.computed + chunk.count + virtual)) % BLOCK + BLOCK * pool.num_free
            draft = chunk.state.draft(min(self._left, free_positions))
            if draft and self._manager.reserve(sequence, chunk.count + len(draft)):
                self._chunks[sequence] = ScheduledChunk(chunk.state, sequence, chunk.count, draft)
                self._left -= len(draft)
