"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestQwen(FamilyConformance):
    family = "qwen"
    changes = {"double_ffn": 96}  # noqa: RUF012


class TestQwen2(FamilyConformance):
    family = "qwen2"


class TestQwen3(FamilyConformance):
    family = "qwen3"
