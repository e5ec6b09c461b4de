"""The compiled kernels: finding and loading them, and the instruction set they run with.

``LLMCTL_OPS`` chooses: ``auto`` (the default: the best this processor has), ``avx512vnni``, ``avx512``, ``avx2``, ``portable``, or
``reference`` for none. A library that is absent, broken or of another version is no error: ``load`` says why there is none.
Nothing here imports paddle: its OpenMP runtime is found as a file, and gives the same threads whether paddle is imported or not.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("libllmctl_ops.so")
INTERFACE = 5
"""Version of the kernels and their signatures; the library has the same number in library.cpp."""

LEVELS = ("portable", "avx2", "avx512", "avx512vnni")
CHOICES = ("auto", *reversed(LEVELS), "reference")
OPENMP = ("GOMP_parallel", "omp_get_max_threads", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Library:
    """What was found.

    Args:
        handle: The loaded library; None = none, the reference path is taken.
        level: Instruction set of the kernels.
        why: For people: why this level, or why there is no library.
        threads: For people: where the threads come from.
    """

    handle: ctypes.CDLL | None
    level: str
    why: str
    threads: str = "none"

    def kernel(self, name: str, *types: type) -> Callable[..., int] | None:
        """The function of this name; None where there is no library. The first call that names types of arguments sets them."""
        if self.handle is None:
            return None
        function = getattr(self.handle, f"llmctl_ops_{name}_{self.level}")
        if types and function.argtypes is None:
            function.argtypes = types
        return function


@functools.cache
def load() -> Library:
    """The library of this process, loaded on the first call.

    Raises:
        ValueError: ``LLMCTL_OPS`` has a value that is not allowed.
    """
    return open_library(FILE, os.environ.get("LLMCTL_OPS", ""))


def open_library(file: Path, choice: str) -> Library:
    """The library in a file, for a value of ``LLMCTL_OPS``.

    Raises:
        ValueError: The value is not allowed.
    """
    choice = choice or "auto"
    if choice not in CHOICES:
        raise ValueError(f"LLMCTL_OPS={choice!r} must be one of {', '.join(CHOICES)}")
    if choice == "reference":
        return Library(None, "reference", "LLMCTL_OPS=reference")
    if not file.exists():
        return Library(None, "reference", "not compiled: there was no C++ compiler when llmctl-ops was installed")
    try:
        handle = ctypes.CDLL(str(file))
        found = handle.llmctl_ops_interface()
        best = handle.llmctl_ops_level()
    except (OSError, AttributeError) as error:
        return Library(None, "reference", f"{file.name} cannot be loaded ({error}); reinstall llmctl-ops")
    if found != INTERFACE:
        return Library(
            None, "reference", f"{file.name} has interface {found}, {INTERFACE} is needed; reinstall llmctl-ops"
        )
    threads = _share_threads(handle)
    level = LEVELS[best] if choice == "auto" else choice
    if LEVELS.index(level) > best:
        return Library(None, "reference", f"LLMCTL_OPS={choice}, which this processor does not have")
    return Library(handle, level, "best of this processor" if choice == "auto" else f"LLMCTL_OPS={choice}", threads)


def set_threads(count: int) -> int:
    """Sets how many threads the kernels use that this thread calls; at first the runtime follows ``OMP_NUM_THREADS``.

    Returns:
        How many they used before.

    Raises:
        ValueError: Not at least one.
    """
    if count < 1:
        raise ValueError(f"threads={count} must be at least 1")
    runtime = _openmp_of_paddle()
    if runtime is None:
        return 1
    before = int(runtime.omp_get_max_threads())
    runtime.omp_set_num_threads(count)
    return before


def _share_threads(handle: ctypes.CDLL) -> str:
    """Gives the library the threads of paddle's OpenMP runtime; a second runtime would compete with them."""
    runtime = _openmp_of_paddle()
    if runtime is None:
        return "none: paddle's OpenMP runtime was not found, one thread computes"
    pointers = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in OPENMP]
    handle.llmctl_ops_use_threads.argtypes = [ctypes.c_void_p] * len(OPENMP)
    handle.llmctl_ops_use_threads.restype = None
    handle.llmctl_ops_use_threads(*pointers)
    return Path(runtime._name).name


@functools.cache
def _openmp_of_paddle() -> ctypes.CDLL | None:
    paddle = importlib.util.find_spec("paddle")
    if paddle is None or paddle.origin is None:
        return None
    try:
        runtime = ctypes.CDLL(str(Path(paddle.origin).parent / "libs" / "libiomp5.so"))
    except OSError:
        return None
    return runtime if all(hasattr(runtime, name) for name in OPENMP) else None
