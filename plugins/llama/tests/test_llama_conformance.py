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
        "goldens/llama_rope_yarn",
        "goldens/llama_rope_longrope",
    )


class TestLlamaGrouped(FamilyConformance):
    """Fewer key-value heads than query heads, as in the larger models and from the third generation on."""

    family = "llama"
    changes = {"kv_heads": 2}  # noqa: RUF012
    goldens = ("goldens/llama_rope_llama3",)


class TestBaichuan(FamilyConformance):
    family = "baichuan"
    goldens = ("goldens/baichuan_7b", "goldens/baichuan_13b", "goldens/baichuan2_13b")


class TestBaichuanAlibi(FamilyConformance):
    """The 13B models: penalties that grow with the distance; heads whose columns count at length 1."""

    family = "baichuan"
    changes = {"position": "alibi", "norm_head": True}  # noqa: RUF012
    goldens = ("goldens/baichuan_13b",)
