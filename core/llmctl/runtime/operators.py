"""Whether the optional distribution ``paddle-llmctl-ops`` is installed, and the notice when it is not.

It is looked up, not imported: nothing here needs paddle, numpy or the compiled library.
"""

from __future__ import annotations

import importlib.util
import os

from llmctl import runtime
from llmctl.errors import OPERATORS_DISTRIBUTION

MISSING = (
    f"{OPERATORS_DISTRIBUTION} is not installed, so paddle's own operators are used, which are slower; to install it: "
    f"pip install {OPERATORS_DISTRIBUTION}"
)

_noted = False


def installed() -> bool:
    """Whether ``llmctl_ops`` is installed."""
    try:
        return importlib.util.find_spec("llmctl_ops") is not None
    except ImportError:
        return False


def turned_off() -> bool:
    """Whether ``LLMCTL_OPS=reference`` selects paddle's own operators."""
    return os.environ.get("LLMCTL_OPS") == "reference"


def note() -> str:
    """The notice that ``paddle-llmctl-ops`` is missing, once per process; empty afterwards, or where it would not be used.

    On a GPU it is not used: paddle has kernels of its own there.
    """
    global _noted
    if _noted or installed() or turned_off() or runtime.device() == "gpu":
        return ""
    _noted = True
    return MISSING
