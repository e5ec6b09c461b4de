"""How much memory a run has needed at most so far."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

from llmctl import runtime
from llmctl.errors import ConfigError


def peaks() -> dict[str, int]:
    """Bytes: ``peak_memory`` of this process and, where paddle computes on a GPU, ``peak_gpu_memory`` of its tensors."""
    import paddle

    found = {"peak_memory": _process()}
    if paddle.is_compiled_with_cuda() and paddle.device.get_device().startswith("gpu"):
        found["peak_gpu_memory"] = int(paddle.device.cuda.max_memory_allocated())
    return found


def _process() -> int:
    """Largest resident set of this process.

    Linux's ``ru_maxrss`` also counts the program that started this one in its place, so its own account comes first.
    """
    try:
        stated = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        stated = None
    if stated:
        return int(stated[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Bytes that are free where the cache will lie: on the GPU if there is one, else what may be taken without swapping.

    Raises:
        ConfigError: The system does not say.
    """
    if runtime.device() == "gpu":
        cuda = runtime.import_paddle("a look for free memory").device.cuda
        return int(cuda.get_device_properties().total_memory - cuda.memory_allocated())
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        raise ConfigError("this system does not say how much memory is free; give the cache's size in bytes") from None
