"""Continuous batching: requests, scheduler, block tables of the KV cache, one step at a time.

``Engine`` is ``engine.Engine``, imported on first use. ``scheduler`` chooses the tokens of a step, ``block_manager`` and
``block_pool`` own the KV cache, ``positions`` and ``build_batch`` make the batch; ``generation``, ``beam_search`` and
``scoring`` are the states of requests; ``async_engine`` runs an engine in a thread. What computes a batch is in
``infer.executors``; sampling is in ``infer.sampling``.

Prompt tokens and answer tokens are the same to the scheduler: tokens of a sequence that are not computed yet. A running
answer lacks one, so it goes first; a preempted request lacks many again, and is a prompt once more. Blocks are found by a
hash of their tokens, of all tokens before them, of the adapter and of a bidirectional prefix (prefix-LM). A draft token is
accepted if the request's own sampling chooses it, so drafts change no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.infer.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llmctl.infer.engine.engine import Engine

    return Engine
