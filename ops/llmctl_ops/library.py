"""Finds and loads the compiled kernels, and selects their instruction set.

``LLMCTL_OPS`` selects: ``auto`` (the default: the best that this processor has), ``avx512vnni``, ``avx512``, ``avx2``,
``portable``, or ``reference`` for no kernels. A missing, broken or mismatched library is not an error: ``load`` says why there
are no kernels. Nothing here imports paddle: its OpenMP runtime is loaded by path, so the threads are the same whether paddle is
imported or not.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmctl_ops.structs import STRUCTS

FILE = Path(__file__).with_name("libllmctl_ops.so")
INTERFACE = 9
"""Version of the exported functions and their signatures; library.cpp has the same number."""

LEVELS = ("portable", "avx2", "avx512", "avx512vnni")
CHOICES = ("auto", *reversed(LEVELS), "reference")
OPENMP = ("GOMP_parallel", "omp_get_max_threads", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Library:
    """The result of loading.

    Args:
        handle: The loaded library; None = no kernels, operators take the reference path.
        level: Instruction set of the kernels, or ``reference``.
        why: For people: why this level, or why there is no library.
        threads: For people: where the threads come from.
    """

    handle: ctypes.CDLL | None
    level: str
    why: str
    threads: str = "none"

    def kernel(self, name: str, *types: type) -> Callable[..., int] | None:
        """The kernel of this name; None if there is no library. The first call that passes argument types sets them."""
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
    """Loads the library in a file for a value of ``LLMCTL_OPS``.

    Raises:
        ValueError: The value is not allowed.
    """
    choice = choice or "auto"
    if choice not in CHOICES:
        raise ValueError(f"LLMCTL_OPS={choice!r} must be one of {', '.join(CHOICES)}")
    if choice == "reference":
        return _none("LLMCTL_OPS=reference")
    if not file.exists():
        return _none("not compiled: there was no C++ compiler when paddle-llmctl-ops was installed")
    try:
        handle = ctypes.CDLL(str(file))
        found, best = handle.llmctl_ops_interface(), handle.llmctl_ops_level()
        mismatch = "" if found != INTERFACE else _mismatch(handle)
    except (OSError, AttributeError) as error:
        return _none(f"{file.name} cannot be loaded ({error}); reinstall paddle-llmctl-ops")
    if found != INTERFACE:
        return _none(f"{file.name} has interface {found}, {INTERFACE} is needed; reinstall paddle-llmctl-ops")
    if mismatch:
        return _none(f"{file.name} has {mismatch}; reinstall paddle-llmctl-ops")
    threads = _share_threads(handle)
    level = LEVELS[best] if choice == "auto" else choice
    if LEVELS.index(level) > best:
        return _none(f"LLMCTL_OPS={choice}, which this processor does not support")
    return Library(handle, level, "best of this processor" if choice == "auto" else f"LLMCTL_OPS={choice}", threads)


def set_threads(count: int) -> int:
    """Sets the number of threads for kernels called from this thread; initially the runtime follows ``OMP_NUM_THREADS``.

    Returns:
        The previous number.

    Raises:
        ValueError: The count is not at least 1.
    """
    if count < 1:
        raise ValueError(f"threads={count} must be at least 1")
    runtime = _openmp()
    if runtime is None:
        return 1
    before = int(runtime.omp_get_max_threads())
    runtime.omp_set_num_threads(count)
    return before


def _none(why: str) -> Library:
    return Library(None, "reference", why)


def _mismatch(handle: ctypes.CDLL) -> str:
    """The first struct whose size differs from its ctypes mirror; empty if all agree."""
    size_of = handle.llmctl_ops_struct_size
    size_of.argtypes, size_of.restype = [ctypes.c_char_p], ctypes.c_int64
    for struct in STRUCTS:
        name, ours, theirs = struct.__name__, ctypes.sizeof(struct), size_of(struct.__name__.encode())
        if ours != theirs:
            return f"struct {name} of {theirs} bytes, {ours} are needed"
    return ""


def _share_threads(handle: ctypes.CDLL) -> str:
    """Gives the library the threads of the process's OpenMP runtime; a second runtime would compete with it."""
    runtime = _openmp()
    if runtime is None:
        return "none: no OpenMP runtime was found (libgomp.so.1), kernels run on one thread"
    pointers = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in OPENMP]
    handle.llmctl_ops_use_threads.argtypes = [ctypes.c_void_p] * len(OPENMP)
    handle.llmctl_ops_use_threads.restype = None
    handle.llmctl_ops_use_threads(*pointers)
    return Path(runtime._name).name


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """Paddle's OpenMP runtime, which a process that trains has loaded; without paddle that of the system."""
    paddle = importlib.util.find_spec("paddle")
    files = ["libgomp.so.1"]
    if paddle is not None and paddle.origin is not None:
        files.insert(0, str(Path(paddle.origin).parent / "libs" / "libiomp5.so"))
    for file in files:
        try:
            runtime = ctypes.CDLL(file)
        except OSError:
            continue
        if all(hasattr(runtime, name) for name in OPENMP):
            return runtime
    return None
