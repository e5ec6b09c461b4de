"""llmctl: an LLM toolkit for PaddlePaddle, a slim core with one plugin per model family.

This is the public API; importing it imports neither paddle nor numpy. What needs them is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from llmctl._version import __version__
from llmctl.card.capabilities import Experimental, Supported, Unsupported
from llmctl.card.config_fields import HF_DECODER, REQUIRED, ConfigField, Setting
from llmctl.card.dims import Dims
from llmctl.card.family import Family, Moe, Param, Size
from llmctl.card.presets import HF_DECODER_ROWS, linear_rows, norm_rows
from llmctl.card.sizes import sizes
from llmctl.card.tokens import TokenFacts, template
from llmctl.errors import LlmctlError
from llmctl.plugins.hookspecs import API, hookimpl

if TYPE_CHECKING:
    from llmctl.api.loading import load

__all__ = [
    "API",
    "HF_DECODER",
    "HF_DECODER_ROWS",
    "REQUIRED",
    "ConfigField",
    "Dims",
    "Experimental",
    "Family",
    "LlmctlError",
    "Moe",
    "Param",
    "Setting",
    "Size",
    "Supported",
    "TokenFacts",
    "Unsupported",
    "__version__",
    "hookimpl",
    "linear_rows",
    "load",
    "norm_rows",
    "sizes",
    "template",
]

_LAZY = {"load": "llmctl.api.loading"}
"""Name -> module that it is in, imported on first use."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
