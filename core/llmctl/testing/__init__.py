"""What a family must keep, as tests that its plugin inherits.

A plugin's test file is four lines::

    from llmctl.testing import FamilyConformance

    class TestParrot(FamilyConformance):
        family = "parrot"

``pytest -p llmctl.testing.plugin --llmctl-evidence`` writes what passed into the plugin's ``evidence.json``, from which
the support matrix is made.
"""

from llmctl.testing.conformance import FamilyConformance

__all__ = ["FamilyConformance"]
