"""What a family must keep, as tests that its plugin inherits.

A plugin's test file is four lines::

    from llmctl.testing import FamilyConformance

    class TestParrot(FamilyConformance):
        family = "parrot"

``pytest -p llmctl.testing.plugin --llmctl-evidence`` writes what passed into the plugin's ``evidence.json``, from which
the support matrix is made. ``python -m llmctl.testing.record`` records what the original code of a family computes.
"""

import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.testing.conformance import FamilyConformance

__all__ = ["FamilyConformance"]


def __getattr__(name: str) -> Any:
    if name != "FamilyConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # Without it a failed assertion shows no values; it must come before the modules are imported.
    modules = {f"{__name__}.{found.name}" for found in pkgutil.iter_modules(__path__)}
    pytest.register_assert_rewrite(*(modules - sys.modules.keys()))
    from llmctl.testing.conformance import FamilyConformance

    return FamilyConformance
