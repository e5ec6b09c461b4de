"""Peak memory of this process, and free memory of the device."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

from llmctl import runtime
from llmctl.errors import ConfigError


def peaks() -> dict[str, int]:
    """Peak bytes so far: ``peak_memory`` of this process and, on a GPU, ``peak_gpu_memory`` of paddle's tensors."""
    import paddle

    found = {"peak_memory": _process()}
    if paddle.is_compiled_with_cuda() and paddle.device.get_device().startswith("gpu"):
        found["peak_gpu_memory"] = int(paddle.device.cuda.max_memory_allocated())
    return found


def _process() -> int:
    """Peak resident set size of this process, in bytes.

    VmHWM comes first, because ``ru_maxrss`` on Linux includes the peak of the process before ``exec``.
    """
    try:
        high_water = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        high_water = None
    if high_water:
        return int(high_water[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int:
    """Free bytes of the device: of the GPU if there is one, else what can be allocated without swapping.

    Raises:
        ConfigError: The system does not report it.
    """
    if runtime.device() == "gpu":
        cuda = runtime.import_paddle("reading free GPU memory").device.cuda
        return int(cuda.get_device_properties().total_memory - cuda.memory_allocated())
    free = host_memory()
    if free is None:
        raise ConfigError("this system does not report free memory; give the size of the cache in bytes")
    return free


def host_memory() -> int | None:
    """Bytes that can be allocated without swapping; None = the system does not report it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
