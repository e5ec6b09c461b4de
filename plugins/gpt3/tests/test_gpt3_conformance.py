"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestGpt3(FamilyConformance):
    family = "gpt3"
    goldens = ("goldens/gpt2", "goldens/gpt2_scaled", "goldens/gpt2_untied")
