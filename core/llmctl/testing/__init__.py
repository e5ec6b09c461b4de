"""What a family must keep, as tests that its plugin inherits, and what else the tests of a plugin need of core.

A plugin's test file is four lines::

    from llmctl.testing import FamilyConformance

    class TestParrot(FamilyConformance):
        family = "parrot"

``pytest -p llmctl.testing.plugin --llmctl-evidence`` writes what passed into the plugin's ``evidence.json``, from which
the support matrix is made. ``python -m llmctl.testing.record`` records what the original code of a family computes.

Beside the suite there are ``Case`` (what to record), ``check_golden``, ``load_plugin``, ``plugin_for`` (by config.json),
``load_model``, ``tiny_dims``, ``write_model``, ``validate_card``, ``run_cli``, and for tokenizers and chat formats
``load_tokenizer``, ``Conversation``, ``prompt_ids``, ``Example``, ``Encoder`` and ``IGNORE_INDEX``. Names are imported on first
use.
"""

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.card.tiny import tiny_dims
    from llmctl.card.validate import validate as validate_card
    from llmctl.checkpoint.build import load_model
    from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder, prompt_ids
    from llmctl.data.sft.examples import Example
    from llmctl.plugins.registry import load as load_plugin
    from llmctl.plugins.registry import load_for as plugin_for
    from llmctl.testing.case import Case
    from llmctl.testing.command_line import run_cli
    from llmctl.testing.conformance import FamilyConformance
    from llmctl.testing.golden import check_golden
    from llmctl.testing.tiny import write_model
    from llmctl.tokenizers import load as load_tokenizer
    from llmctl.tokenizers.conversation import Conversation

__all__ = [
    "IGNORE_INDEX",
    "Case",
    "Conversation",
    "Encoder",
    "Example",
    "FamilyConformance",
    "check_golden",
    "load_model",
    "load_plugin",
    "load_tokenizer",
    "plugin_for",
    "prompt_ids",
    "run_cli",
    "tiny_dims",
    "validate_card",
    "write_model",
]

_PLACES = {
    "IGNORE_INDEX": "llmctl.data.sft.encoding:IGNORE_INDEX",
    "Case": "llmctl.testing.case:Case",
    "Conversation": "llmctl.tokenizers.conversation:Conversation",
    "Encoder": "llmctl.data.sft.encoding:Encoder",
    "Example": "llmctl.data.sft.examples:Example",
    "FamilyConformance": "llmctl.testing.conformance:FamilyConformance",
    "check_golden": "llmctl.testing.golden:check_golden",
    "load_model": "llmctl.checkpoint.build:load_model",
    "load_plugin": "llmctl.plugins.registry:load",
    "load_tokenizer": "llmctl.tokenizers:load",
    "plugin_for": "llmctl.plugins.registry:load_for",
    "prompt_ids": "llmctl.data.sft.encoding:prompt_ids",
    "run_cli": "llmctl.testing.command_line:run_cli",
    "tiny_dims": "llmctl.card.tiny:tiny_dims",
    "validate_card": "llmctl.card.validate:validate",
    "write_model": "llmctl.testing.tiny:write_model",
}
_ASSERTING = ("FamilyConformance", "check_golden")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _ASSERTING:
        _rewrite_assertions()
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _rewrite_assertions() -> None:
    """Makes pytest show the values of failed assertions; it must come before the modules are imported."""
    import pytest

    modules = {f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)}
    pytest.register_assert_rewrite(*(modules - sys.modules.keys()))
