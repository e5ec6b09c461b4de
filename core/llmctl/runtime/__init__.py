"""This process: threads, memory allocation, device, memory in use.

``process`` sets what decides how fast paddle computes, ``memory`` measures.
"""

from llmctl.runtime.process import (
    Setting,
    available_cores,
    configure,
    describe,
    device,
    import_paddle,
    plan,
    processor,
    release,
    seed,
)

__all__ = [
    "Setting",
    "available_cores",
    "configure",
    "describe",
    "device",
    "import_paddle",
    "plan",
    "processor",
    "release",
    "seed",
]
