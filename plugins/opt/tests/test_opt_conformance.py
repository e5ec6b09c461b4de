"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestOpt(FamilyConformance):
    family = "opt"
    changes = {"embed": 24}  # noqa: RUF012
