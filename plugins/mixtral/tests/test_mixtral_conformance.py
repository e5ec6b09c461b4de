"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestMixtral(FamilyConformance):
    family = "mixtral"
    goldens = ("goldens/mixtral_aux", "goldens/mixtral_window")


class TestMistral(FamilyConformance):
    family = "mistral"
    goldens = ("goldens/mistral_window", "goldens/mistral_whole")
