"""The tests that every family passes."""

from llmctl.testing import FamilyConformance


class TestLlama(FamilyConformance):
    family = "llama"
    goldens = (
        "goldens/llama_tied",
        "goldens/llama_bias",
        "goldens/llama_rope_linear",
        "goldens/llama_rope_dynamic",
        "goldens/llama_rope_llama3",
    )


class TestBaichuan(FamilyConformance):
    family = "baichuan"
    goldens = ("goldens/baichuan_7b", "goldens/baichuan_13b", "goldens/baichuan2_13b")
