"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestBloom(FamilyConformance):
    family = "bloom"
    goldens = ("goldens/bloom", "goldens/bloom_six_heads")
