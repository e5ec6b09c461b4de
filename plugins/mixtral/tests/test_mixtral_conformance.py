"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestMixtral(FamilyConformance):
    family = "mixtral"
    goldens = ("goldens/mixtral_aux", "goldens/mixtral_window")


class TestMistral(FamilyConformance):
    family = "mistral"
    goldens = ("goldens/mistral_window", "goldens/mistral_whole")


class TestMistralBehindAShortWindow(FamilyConformance):
    """Rows of every test are longer than the window, as texts are than that of the first release."""

    family = "mistral"
    changes = {"window": 5}  # noqa: RUF012
    goldens = ("goldens/mistral_window",)
