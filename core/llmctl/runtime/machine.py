"""The machine as its system describes it: processor, memory, GPUs with their drivers. Imports no package."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from llmctl.runtime.memory import host_memory
from llmctl.runtime.process import available_cores

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Flags of processors that decide which kernels run."""
GPU_FIELDS = ("name", "memory.total", "driver_version", "compute_cap")
PATIENCE = 20
"""Seconds to wait for nvidia-smi, which is slow where the driver is not loaded."""


def processor() -> dict[str, str]:
    """Model, cores and instruction sets of the processor."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = [name for name in INSTRUCTIONS if flags and name in flags[1].split()]
    return {
        "model": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": f"{available_cores()} for this process, {os.cpu_count()} threads in all",
        "instructions": " ".join(known) or "unknown",
    }


def memory() -> dict[str, int | None]:
    """Bytes of memory: in all, and free; None = the system does not say."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {"total": int(total[1]) * 1024 if total else None, "free": host_memory()}


def gpus() -> tuple[list[dict[str, str]], str]:
    """The GPUs that nvidia-smi lists, by ``GPU_FIELDS``, and why there are none; empty = there are some."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "none: there is no nvidia-smi, so no driver of NVIDIA"
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"unknown: nvidia-smi does not answer ({type(error).__name__})"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [], f"unknown: nvidia-smi fails: {said[0] if said else done.returncode}"
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    found = [dict(zip(GPU_FIELDS, row, strict=False)) for row in rows]
    return found, "" if found else "none: nvidia-smi lists none"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
