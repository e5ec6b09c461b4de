"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestOpt(FamilyConformance):
    family = "opt"
    goldens = ("goldens/opt", "goldens/opt_350m", "goldens/opt_unbiased")
    changes = {"embed": 24}  # noqa: RUF012
