"""This process: threads, allocator, device, memory use, and whether ``paddle-llmctl-ops`` is installed.

``process`` applies settings before paddle is imported, ``memory`` measures, ``operators`` looks for ``paddle-llmctl-ops``.
"""

from llmctl.runtime.process import (
    ProcessSetting,
    available_cores,
    configure,
    cpu_vendor,
    describe,
    device,
    import_paddle,
    plan,
    release_memory,
    seed,
)

__all__ = [
    "ProcessSetting",
    "available_cores",
    "configure",
    "cpu_vendor",
    "describe",
    "device",
    "import_paddle",
    "plan",
    "release_memory",
    "seed",
]
