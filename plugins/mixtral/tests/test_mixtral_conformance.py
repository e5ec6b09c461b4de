"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestMixtral(FamilyConformance):
    family = "mixtral"


class TestMistral(FamilyConformance):
    family = "mistral"
