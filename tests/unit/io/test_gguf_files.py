"""Which GGUF files are one model, and which model a name means."""

import pytest

from llmctl.errors import CheckpointError
from llmctl.io.gguf_files import chosen, models_of, parts_of

HUB = {
    "README.md": 1,
    "a-model-Q8_0.gguf": 800,
    "a-model-Q4_K_M.gguf": 400,
    "a-model-UD-Q4_K_XL.gguf": 410,
    "a-model-IQ2_XXS.gguf": 200,
    "BF16/a-model-BF16-00002-of-00002.gguf": 700,
    "BF16/a-model-BF16-00001-of-00002.gguf": 900,
    "mmproj-F16.gguf": 50,
    "a-model.imatrix.gguf": 5,
}


def meant(wanted, sizes=HUB):
    return chosen(models_of(sizes), wanted, "the folder", lambda name, choice: f"Name {name} or {choice}")


def test_parts_are_told_by_their_names():
    assert parts_of("x/m-00002-of-00003.gguf") == tuple(f"x/m-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    for name in (
        "m.gguf",
        "m-2-of-3.gguf",
        "m-00004-of-00003.gguf",
        "m-00000-of-00003.gguf",
        "m-00001-of-00003.safetensors",
    ):
        assert parts_of(name) == (name,)


def test_models_are_listed_by_size_without_what_goes_with_them():
    assert [(model.type, model.nbytes) for model in models_of(HUB)] == [
        ("IQ2_XXS", 200), ("Q4_K_M", 400), ("UD-Q4_K_XL", 410), ("Q8_0", 800), ("BF16", 1600),
    ]  # fmt: skip
    assert models_of(HUB)[-1].files == tuple(f"BF16/a-model-BF16-0000{n}-of-00002.gguf" for n in (1, 2))


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("Q4_K_M", "a-model-Q4_K_M.gguf"),
        ("q8_0", "a-model-Q8_0.gguf"),
        ("Q4_K_XL", "a-model-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "a-model-UD-Q4_K_XL.gguf"),
        ("BF16", "BF16/a-model-BF16-00001-of-00002.gguf"),
        ("BF16/a-model-BF16-00002-of-00002.gguf", "BF16/a-model-BF16-00001-of-00002.gguf"),
        ("a-model-IQ2_XXS.gguf", "a-model-IQ2_XXS.gguf"),
        ("a-model-Q8_0", "a-model-Q8_0.gguf"),
    ],
)
def test_a_model_is_named_by_its_quantization_or_its_file(wanted, name):
    assert meant(wanted).name == name


def test_the_only_model_needs_no_name():
    assert meant("", {"m.gguf": 1, "mmproj-m.gguf": 1}).name == "m.gguf"


def test_a_quantization_of_its_own_goes_before_one_that_ends_a_longer_name():
    sizes = {"m-Q4_K_XL.gguf": 1, "m-UD-Q4_K_XL.gguf": 2}
    assert meant("Q4_K_XL", sizes).name == "m-Q4_K_XL.gguf"


@pytest.mark.parametrize(
    ("wanted", "sizes", "message"),
    [
        ("", HUB, "the folder holds 5 models in GGUF:\n  a-model-IQ2_XXS.gguf (200 B)\n  a-model-Q4_K_M.gguf (400 B)\n"),
        ("", HUB, "BF16/a-model-BF16-00001-of-00002.gguf (2 kB, 2 parts)\nName a-model-IQ2_XXS.gguf or IQ2_XXS"),
        ("Q5_0", HUB, "the folder holds no model Q5_0 in GGUF, but:\n  a-model-IQ2_XXS.gguf (200 B)\n"),
        ("K_M", HUB, "the folder holds no model K_M in GGUF, but"),
        ("Q8_0", {"a-Q8_0.gguf": 1, "b-Q8_0.gguf": 2, "b.gguf": 3}, "Q8_0 means 2 models in GGUF of the folder:\n  a-Q8_0.gguf (1 B)\n  b-Q8_0.gguf (2 B)\nName a-Q8_0.gguf or a-Q8_0.gguf"),
    ],
)  # fmt: skip
def test_what_is_not_one_model_is_listed(wanted, sizes, message):
    with pytest.raises(CheckpointError) as raised:
        meant(wanted, sizes)
    assert message in str(raised.value)
