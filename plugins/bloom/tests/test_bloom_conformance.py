"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestBloom(FamilyConformance):
    family = "bloom"
