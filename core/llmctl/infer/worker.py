"""The former place of ``Worker``, which is now ``llmctl.infer.engine.async_engine.AsyncEngine``."""

from llmctl.infer.engine.async_engine import AsyncEngine as Worker

__all__ = ["Worker"]
