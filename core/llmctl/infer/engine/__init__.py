"""Continuous batching: requests, scheduler, block tables of the KV cache, one step at a time.

``Engine`` is ``engine.Engine``, found on first use.
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
