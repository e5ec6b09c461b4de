"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestQwen(FamilyConformance):
    family = "qwen"
    goldens = ("goldens/qwen_short", "goldens/qwen_long")
    changes = {"double_ffn": 96}  # noqa: RUF012


class TestQwen2(FamilyConformance):
    family = "qwen2"
    goldens = ("goldens/qwen2", "goldens/qwen2_tied")


class TestQwen3(FamilyConformance):
    family = "qwen3"
    goldens = ("goldens/qwen3", "goldens/qwen3_bias")
