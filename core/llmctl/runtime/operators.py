"""Whether the optional distribution ``llmctl-ops`` is here, and the one line that says that it is not.

It is looked for, not imported: nothing here needs paddle, numpy or the compiled library.
"""

from __future__ import annotations

import importlib.util
import os

from llmctl import runtime

MISSING = (
    "llmctl-ops is not installed, so paddle's own operations compute, which is slower; to install it: "
    "pip install llmctl-ops"
)

_told = False


def installed() -> bool:
    """Whether ``llmctl_ops`` can be found."""
    try:
        return importlib.util.find_spec("llmctl_ops") is not None
    except ImportError:
        return False


def turned_off() -> bool:
    """Whether ``LLMCTL_OPS=reference`` asks for paddle's own operations."""
    return os.environ.get("LLMCTL_OPS") == "reference"


def note() -> str:
    """What to tell where ``llmctl-ops`` is missing, once in a process; empty = nothing, or nothing more.

    On a GPU it is not missed: paddle's own kernels compute there.
    """
    global _told
    if _told or installed() or turned_off() or runtime.device() == "gpu":
        return ""
    _told = True
    return MISSING
