"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestQwen2Moe(FamilyConformance):
    family = "qwen2_moe"
    changes = {"dense_layers": [0], "top_k": 2, "expert_ffn": 24, "shared_ffn": 40}  # noqa: RUF012
    goldens = ("goldens/qwen2_moe", "goldens/qwen2_moe_aux")
