"""Process settings that affect the speed of paddle: threads, MKL kernels, malloc, strided views, determinism.

Call ``configure`` before the first import of paddle, which reads some of them at import. ``describe`` lists each setting
with its value, where the value comes from, and the environment variable that overrides it. Where a setting does not apply
(other CPUs, other C libraries) it is off and says why. Nothing here imports paddle, but for ``import_paddle``.
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

from llmctl.errors import OPERATORS_DISTRIBUTION, ConfigError, require
from llmctl.runtime.signals import postponed

MKL_AVX2 = "5"
"""Value of MKL_DEBUG_CPU_TYPE that selects AVX2 kernels; the MKL of 2019 in paddle does not use them on AMD CPUs."""

MALLOPT = {-3: 1 << 30, -1: 2**31 - 1, -2: 256 << 20}
"""glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD, in bytes: memory of large tensors is reused, not unmapped."""

OPERATORS = ("auto", "avx512vnni", "avx512", "avx2", "portable", "reference")
"""Values of LLMCTL_OPS, which the distribution paddle-llmctl-ops reads."""

DETERMINISTIC_FLAGS = ("FLAGS_cudnn_deterministic", "FLAGS_embedding_deterministic")


@dataclass(frozen=True)
class ProcessSetting:
    """A setting: name, value, where the value comes from, and the environment variable that overrides it."""

    name: str
    value: str
    source: str
    override: str


_configured: list[ProcessSetting] = []


def configure(threads: int | None = None, deterministic: bool = False) -> None:
    """Applies all settings to this process; later calls do nothing.

    Args:
        threads: Compute threads, unless the environment sets them; None = the physical cores available to this process.
        deterministic: Whether to use deterministic GPU kernels, which are slower.

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
    keep_memory()
    if by_name["views"].value == "off":
        _set_flags({"FLAGS_use_stride_kernel": False})
    if by_name["deterministic"].value == "on":
        _set_flags(dict.fromkeys(DETERMINISTIC_FLAGS, True))
    _configured.extend(settings)


def limit_numpy() -> None:
    """Gives numpy's products the threads of ``configure``, where no variable of OpenBLAS does; before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", _threads(os.environ, None).value)


def keep_memory() -> None:
    """Keeps freed memory for reuse, unless ``LLMCTL_MALLOC`` or the C library say otherwise; ``configure`` does it too.

    Raises:
        ConfigError: ``LLMCTL_MALLOC`` has a value that is not allowed.
    """
    if _malloc(os.environ).value == "keep":
        library = ctypes.CDLL(None)
        for parameter, value in MALLOPT.items():
            library.mallopt(parameter, value)


def limit_kernels() -> None:
    """Gives kernels that run without paddle the threads of ``LLMCTL_THREADS``, if it is set; before they are loaded.

    Raises:
        ConfigError: It has a value that is not allowed.
    """
    if os.environ.get("LLMCTL_THREADS"):
        os.environ["OMP_NUM_THREADS"] = _threads(os.environ, None).value


def release_memory() -> None:
    """Returns freed memory to the OS (``malloc_trim``); with trimming off (``MALLOPT``) it would stay resident."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def import_paddle(purpose: str) -> Any:
    """Configures the process, then imports paddle without its warnings about threads and compilers.

    Args:
        purpose: What needs paddle, for the message.

    Raises:
        MissingDependencyError: paddle is not installed.
    """
    configure()
    # Without it, paddle's C++ side logs a line to stderr for every program that it runs.
    os.environ.setdefault("GLOG_minloglevel", "2")
    with contextlib.ExitStack() as stack:
        if not _imported_paddle():
            # A library whose start Ctrl-C interrupts calls that an error; and paddle would answer a later SIGTERM with a report.
            stack.enter_context(postponed())
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        return require("paddle", "cpu", purpose)


def device() -> str:
    """``gpu`` if paddle is a GPU build and finds a GPU, else ``cpu``. Imports paddle only if it is a GPU build."""
    try:
        metadata.version("paddlepaddle-gpu")
    except metadata.PackageNotFoundError:
        return "cpu"
    return "gpu" if import_paddle("looking for GPUs").device.cuda.device_count() else "cpu"


def describe() -> list[tuple[str, str, str, str]]:
    """(name, value, source, how to override) of every setting, as set or as ``configure()`` would set it."""
    rows = _configured or plan(os.environ)
    return [(row.name, row.value, row.source, row.override) for row in rows]


def plan(environ: Mapping[str, str], threads: int | None = None, deterministic: bool = False) -> list[ProcessSetting]:
    """The settings that ``configure`` applies with these environment variables.

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
    """Physical cores available to this process, by its affinity and its cgroup's CPU quota; hyper-threads count once."""
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
    """CPUs of the cgroup's quota, rounded down; ``sys.maxsize`` if it sets none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return sys.maxsize if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return sys.maxsize


def cpu_vendor() -> str:
    """Vendor of the CPU, such as ``AuthenticAMD``; empty if unknown."""
    return _cpuinfo().get("vendor_id", "")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _threads(environ: Mapping[str, str], asked: int | None) -> ProcessSetting:
    override = "LLMCTL_THREADS=<number>"
    if environ.get("LLMCTL_THREADS"):
        return ProcessSetting(
            "threads", str(_count("LLMCTL_THREADS", environ["LLMCTL_THREADS"])), "LLMCTL_THREADS", override
        )
    if asked is not None:
        return ProcessSetting("threads", str(asked), "configuration", override)
    given = environ.get("OMP_NUM_THREADS")
    # Importing paddle sets OMP_NUM_THREADS=1 if it was not set.
    if given and not (given == "1" and _imported_paddle()):
        return ProcessSetting("threads", str(_count("OMP_NUM_THREADS", given)), "OMP_NUM_THREADS", override)
    return ProcessSetting("threads", str(available_cores()), "physical cores available", override)


def _count(name: str, text: str) -> int:
    first = text.split(",")[0].strip()
    if not (first.isascii() and first.isdigit()) or int(first) < 1:
        raise ConfigError(f"{name}={text!r} must be an integer above 0")
    return int(first)


def _mkl(environ: Mapping[str, str]) -> ProcessSetting:
    override = "LLMCTL_MKL=auto|off|<MKL_DEBUG_CPU_TYPE>"
    choice = environ.get("LLMCTL_MKL", "auto") or "auto"
    if choice != "auto":
        if choice != "off" and not (choice.isascii() and choice.isdigit()):
            raise ConfigError(f"LLMCTL_MKL={choice!r} must be auto, off or a number")
        return ProcessSetting("mkl kernels", choice, "LLMCTL_MKL", override)
    if environ.get("MKL_DEBUG_CPU_TYPE"):
        return ProcessSetting("mkl kernels", environ["MKL_DEBUG_CPU_TYPE"], "MKL_DEBUG_CPU_TYPE", override)
    if cpu_vendor() != "AuthenticAMD":
        return ProcessSetting("mkl kernels", "off", "only needed on AMD CPUs", override)
    if "avx2" not in _cpuinfo().get("flags", "").split():
        return ProcessSetting("mkl kernels", "off", "the CPU has no AVX2", override)
    return ProcessSetting("mkl kernels", MKL_AVX2, "AMD CPU: AVX2 kernels", override)


def _malloc(environ: Mapping[str, str]) -> ProcessSetting:
    override = "LLMCTL_MALLOC=auto|off"
    choice = environ.get("LLMCTL_MALLOC", "auto") or "auto"
    if choice not in ("auto", "off"):
        raise ConfigError(f"LLMCTL_MALLOC={choice!r} must be auto or off")
    if choice == "off":
        return ProcessSetting("malloc", "off", "LLMCTL_MALLOC", override)
    if platform.libc_ver()[0] != "glibc":
        return ProcessSetting("malloc", "off", "the C library is not glibc", override)
    return ProcessSetting("malloc", "keep", "glibc: freed memory is kept for reuse", override)


def _views(environ: Mapping[str, str]) -> ProcessSetting:
    override = "LLMCTL_VIEWS=auto|on|off"
    choice = environ.get("LLMCTL_VIEWS", "auto") or "auto"
    if choice not in ("auto", "on", "off"):
        raise ConfigError(f"LLMCTL_VIEWS={choice!r} must be auto, on or off")
    if choice != "auto":
        return ProcessSetting("views", choice, "LLMCTL_VIEWS", override)
    if "FLAGS_use_stride_kernel" in environ:
        on = environ["FLAGS_use_stride_kernel"].lower() in ("1", "true")
        return ProcessSetting("views", "on" if on else "off", "FLAGS_use_stride_kernel", override)
    try:
        metadata.version("paddlepaddle-gpu")
    except metadata.PackageNotFoundError:
        return ProcessSetting(
            "views", "off", "CPU: a transpose copies at once, since copying a strided view later is slow", override
        )
    return ProcessSetting("views", "on", "GPU build: paddle's default", override)


def _operators(environ: Mapping[str, str]) -> ProcessSetting:
    override = f"LLMCTL_OPS={'|'.join(OPERATORS)}"
    choice = environ.get("LLMCTL_OPS", "") or "auto"
    if choice not in OPERATORS:
        raise ConfigError(f"LLMCTL_OPS={choice!r} must be one of {', '.join(OPERATORS)}")
    if choice != "auto":
        return ProcessSetting("operators", choice, "LLMCTL_OPS", override)
    try:
        version = metadata.version(OPERATORS_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ProcessSetting("operators", "paddle's own", f"{OPERATORS_DISTRIBUTION} is not installed", override)
    return ProcessSetting("operators", "auto", f"{OPERATORS_DISTRIBUTION} {version}; see llmctl ops doctor", override)


def _deterministic(environ: Mapping[str, str], asked: bool) -> ProcessSetting:
    override = "LLMCTL_DETERMINISTIC=on|off"
    choice = environ.get("LLMCTL_DETERMINISTIC", "")
    if choice not in ("", "on", "off"):
        raise ConfigError(f"LLMCTL_DETERMINISTIC={choice!r} must be on or off")
    if choice:
        return ProcessSetting("deterministic", choice, "LLMCTL_DETERMINISTIC", override)
    return ProcessSetting("deterministic", "on" if asked else "off", "configuration" if asked else "default", override)


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
    """paddle if already imported: it no longer reads the environment, so settings go through its API."""
    return sys.modules.get("paddle")
