"""The former place of ``Worker``, which is now in ``llmctl.infer.engine.async_engine``."""

from llmctl.infer.engine.async_engine import Worker

__all__ = ["Worker"]
