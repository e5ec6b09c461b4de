"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestLlama(FamilyConformance):
    family = "llama"


class TestBaichuan(FamilyConformance):
    family = "baichuan"
