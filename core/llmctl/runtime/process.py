"""Settings of the process that decide how fast paddle computes: threads, matrix kernels, memory allocation, repeatability.

``configure`` belongs before the first import of paddle, which reads some of them only then. ``describe`` says what is
set, why, and which environment variable changes it. Nothing here imports paddle; where a setting does not apply (other
processors, other C libraries) it is off and says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import platform
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, require

MKL_AVX2 = "5"
"""Value of MKL_DEBUG_CPU_TYPE for the AVX2 kernels, which paddle's 2019 MKL avoids on processors that are not Intel's."""

MALLOPT = {-3: 1 << 30, -1: 2**31 - 1, -2: 256 << 20}
"""glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD, in bytes: large tensors are reused, not unmapped each time."""

OPERATORS = ("auto", "avx512vnni", "avx512", "avx2", "portable", "reference")
"""What LLMCTL_OPS may say; the distribution llmctl-ops reads it."""

DETERMINISTIC_FLAGS = ("FLAGS_cudnn_deterministic", "FLAGS_embedding_deterministic")


@dataclass(frozen=True)
class Setting:
    """One setting: its name, its value for people, where it came from, and what overrides it."""

    name: str
    value: str
    source: str
    override: str


_configured: list[Setting] = []


def configure(threads: int | None = None, deterministic: bool = False) -> None:
    """Applies all settings to this process; a second call changes nothing.

    Args:
        threads: Compute threads if the environment does not say; None = the physical cores this process may use.
        deterministic: Whether GPU kernels must give the same bits each time, at some cost in speed.

    Raises:
        ConfigError: An environment variable has a value that is not allowed.
    """
    if _configured:
        return
    settings = plan(os.environ, threads, deterministic)
    by_name = {setting.name: setting for setting in settings}
    _set_threads(int(by_name["threads"].value))
    if by_name["mkl kernels"].value.isdigit():
        os.environ["MKL_DEBUG_CPU_TYPE"] = by_name["mkl kernels"].value
    if by_name["malloc"].value == "keep":
        library = ctypes.CDLL(None)
        for parameter, value in MALLOPT.items():
            library.mallopt(parameter, value)
    if by_name["views"].value == "off":
        _set_flags({"FLAGS_use_stride_kernel": False})
    if by_name["deterministic"].value == "on":
        _set_flags(dict.fromkeys(DETERMINISTIC_FLAGS, True))
    _configured.extend(settings)


def release() -> None:
    """Gives free memory back to the system; with large blocks kept for reuse, holes between them would stay resident."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def import_paddle(purpose: str) -> Any:
    """paddle, imported after the process has been configured; its advice about threads and compilers is not shown.

    Args:
        purpose: What needs paddle, for the message.

    Raises:
        MissingDependencyError: It is not installed.
    """
    configure()
    # Its C++ part writes a line on standard error for every program that it runs.
    os.environ.setdefault("GLOG_minloglevel", "2")
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("paddle", "cpu", purpose)


def device() -> str:
    """``gpu`` where paddle is built for GPUs and finds one, else ``cpu``; imports paddle only if it is such a build."""
    try:
        metadata.version("paddlepaddle-gpu")
    except metadata.PackageNotFoundError:
        return "cpu"
    return "gpu" if import_paddle("a look for GPUs").device.cuda.device_count() else "cpu"


def describe() -> list[tuple[str, str, str, str]]:
    """Rows (name, value, source, how to override): what was set, or what ``configure()`` would set."""
    rows = _configured or plan(os.environ)
    return [(row.name, row.value, row.source, row.override) for row in rows]


def plan(environ: Mapping[str, str], threads: int | None = None, deterministic: bool = False) -> list[Setting]:
    """What ``configure`` sets under an environment.

    Raises:
        ConfigError: A variable has a value that is not allowed.
    """
    return [
        _threads(environ, threads),
        _mkl(environ),
        _malloc(environ),
        _views(environ),
        _operators(environ),
        _deterministic(environ, deterministic),
    ]


def seed(value: int) -> None:
    """Seeds the generators of Python, numpy and paddle."""
    import random

    import numpy as np
    import paddle

    random.seed(value)
    np.random.seed(value % 2**32)
    paddle.seed(value)


def available_cores() -> int:
    """Physical cores that this process may use: by affinity, hyper-threads counted once, at most the cgroup's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu")
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add((siblings / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(len(cores), _quota()))


def _quota() -> int:
    """Whole processors that the cgroup grants; a large number if it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return sys.maxsize if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return sys.maxsize


def processor() -> str:
    """Vendor string of the processor, such as ``AuthenticAMD``; empty where the system does not tell."""
    return _cpuinfo().get("vendor_id", "")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _threads(environ: Mapping[str, str], asked: int | None) -> Setting:
    override = "LLMCTL_THREADS=<number>"
    if environ.get("LLMCTL_THREADS"):
        return Setting("threads", str(_count("LLMCTL_THREADS", environ["LLMCTL_THREADS"])), "LLMCTL_THREADS", override)
    if asked is not None:
        return Setting("threads", str(asked), "configuration", override)
    given = environ.get("OMP_NUM_THREADS")
    # The import of paddle itself writes 1 where the user wrote nothing.
    if given and not (given == "1" and _imported_paddle()):
        return Setting("threads", str(_count("OMP_NUM_THREADS", given)), "OMP_NUM_THREADS", override)
    return Setting("threads", str(available_cores()), "physical cores available", override)


def _count(name: str, text: str) -> int:
    first = text.split(",")[0].strip()
    if not first.isdigit() or int(first) < 1:
        raise ConfigError(f"{name}={text!r} must be a whole number above 0")
    return int(first)


def _mkl(environ: Mapping[str, str]) -> Setting:
    override = "LLMCTL_MKL=auto|off|<MKL_DEBUG_CPU_TYPE>"
    choice = environ.get("LLMCTL_MKL", "auto") or "auto"
    if choice != "auto":
        if choice != "off" and not choice.isdigit():
            raise ConfigError(f"LLMCTL_MKL={choice!r} must be auto, off or a number")
        return Setting("mkl kernels", choice, "LLMCTL_MKL", override)
    if environ.get("MKL_DEBUG_CPU_TYPE"):
        return Setting("mkl kernels", environ["MKL_DEBUG_CPU_TYPE"], "MKL_DEBUG_CPU_TYPE", override)
    if processor() != "AuthenticAMD":
        return Setting("mkl kernels", "off", "only AMD processors need it", override)
    if "avx2" not in _cpuinfo().get("flags", "").split():
        return Setting("mkl kernels", "off", "the processor has no AVX2", override)
    return Setting("mkl kernels", MKL_AVX2, "AMD processor: AVX2 kernels", override)


def _malloc(environ: Mapping[str, str]) -> Setting:
    override = "LLMCTL_MALLOC=auto|off"
    choice = environ.get("LLMCTL_MALLOC", "auto") or "auto"
    if choice not in ("auto", "off"):
        raise ConfigError(f"LLMCTL_MALLOC={choice!r} must be auto or off")
    if choice == "off":
        return Setting("malloc", "off", "LLMCTL_MALLOC", override)
    if platform.libc_ver()[0] != "glibc":
        return Setting("malloc", "off", "the C library is not glibc", override)
    return Setting("malloc", "keep", "glibc: freed memory is kept for reuse", override)


def _views(environ: Mapping[str, str]) -> Setting:
    override = "LLMCTL_VIEWS=auto|on|off"
    choice = environ.get("LLMCTL_VIEWS", "auto") or "auto"
    if choice not in ("auto", "on", "off"):
        raise ConfigError(f"LLMCTL_VIEWS={choice!r} must be auto, on or off")
    if choice != "auto":
        return Setting("views", choice, "LLMCTL_VIEWS", override)
    if "FLAGS_use_stride_kernel" in environ:
        on = environ["FLAGS_use_stride_kernel"].lower() in ("1", "true")
        return Setting("views", "on" if on else "off", "FLAGS_use_stride_kernel", override)
    try:
        metadata.version("paddlepaddle-gpu")
    except metadata.PackageNotFoundError:
        return Setting("views", "off", "CPU: copying a view later is slow, so transposes are copied at once", override)
    return Setting("views", "on", "GPU build: paddle's default", override)


def _operators(environ: Mapping[str, str]) -> Setting:
    override = f"LLMCTL_OPS={'|'.join(OPERATORS)}"
    choice = environ.get("LLMCTL_OPS", "") or "auto"
    if choice not in OPERATORS:
        raise ConfigError(f"LLMCTL_OPS={choice!r} must be one of {', '.join(OPERATORS)}")
    if choice != "auto":
        return Setting("operators", choice, "LLMCTL_OPS", override)
    try:
        version = metadata.version("llmctl-ops")
    except metadata.PackageNotFoundError:
        return Setting("operators", "paddle's own", "llmctl-ops is not installed", override)
    return Setting("operators", "auto", f"llmctl-ops {version}; see llmctl ops doctor", override)


def _deterministic(environ: Mapping[str, str], asked: bool) -> Setting:
    override = "LLMCTL_DETERMINISTIC=on|off"
    choice = environ.get("LLMCTL_DETERMINISTIC", "")
    if choice not in ("", "on", "off"):
        raise ConfigError(f"LLMCTL_DETERMINISTIC={choice!r} must be on or off")
    if choice:
        return Setting("deterministic", choice, "LLMCTL_DETERMINISTIC", override)
    return Setting("deterministic", "on" if asked else "off", "configuration" if asked else "default", override)


def _set_threads(count: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    paddle = _imported_paddle()
    if paddle is not None:
        paddle.base.core.set_num_threads(count)


def _set_flags(flags: Mapping[str, bool]) -> None:
    for name, value in flags.items():
        os.environ[name] = str(int(value))
    paddle = _imported_paddle()
    if paddle is not None:
        known = {name: value for name, value in flags.items() if "cudnn" not in name or paddle.is_compiled_with_cuda()}
        paddle.set_flags(known)


def _imported_paddle() -> Any:
    """paddle if this process has imported it already; it must then be told, as it reads the environment no more."""
    return sys.modules.get("paddle")
