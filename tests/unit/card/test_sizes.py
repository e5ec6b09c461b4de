"""``sizes.csv``: the published checkpoints of a plugin as data."""

import pytest

from llmctl import ConfigField, Param, Size, sizes
from llmctl.card.family import Family
from llmctl.card.validate import validate
from llmctl.errors import ConfigError

HEAD = "family,name,source,parameters,hidden,eps,tied,kind\n"
ROWS = "parrot,small,https://a/b,24,4,1e-06,true,base\nheron,small,,6,2,,,\nparrot,large,,80,8,0.5,false,\n"


def read(folder, text, family="parrot"):
    (folder / "sizes.csv").write_text(text, encoding="utf-8")
    return sizes(str(folder / "__init__.py"), family)


def test_cells_have_their_kinds_and_empty_ones_are_left_out(tmp_path):
    found = read(tmp_path, HEAD + ROWS)
    assert list(found) == ["small", "large"]
    assert found["small"] == Size("https://a/b", 24, {"hidden": 4, "eps": 1e-6, "tied": True, "kind": "base"})
    assert found["large"] == Size("", 80, {"hidden": 8, "eps": 0.5, "tied": False})
    assert [type(value) for value in found["small"].values.values()] == [int, float, bool, str]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family,name,parameters,hidden\n", "the header is family,name,parameters,hidden; it must be"),
        (HEAD.replace("eps", "hidden") + ROWS, "each once"),
        (HEAD.replace("eps", "") + ROWS, "each once"),
        (HEAD + "parrot,small,,24,4\n", "line 2: the row is not as long as the header, 8 cells"),
        (HEAD + ROWS + "parrot,x,,1,1,,,,,\n", "line 5: the row is not as long"),
        (HEAD + ROWS + "parrot,large,,80,8,,,\n", "line 5: parrot has the size 'large' twice"),
        (HEAD + "parrot,small,,2.4e1,4,,,\n", r"line 2: parameters='2.4e1' must be a whole number"),
        (HEAD + "heron,small,,6,2,,,\n", "no row of the family 'parrot'"),
        ("", "the header is ; it must be"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_column_that_no_setting_has_is_a_problem_of_the_card(tmp_path):
    found = read(tmp_path, HEAD.replace("eps", "epps") + ROWS)
    settings = tuple(ConfigField(name, name) for name in ("hidden", "eps", "tied", "kind"))
    card = Family("parrot", ("Parrot",), (Param("a", "hidden"),), settings, found, "parrot:Parrot")
    problems = validate(card)
    assert problems == [f"size {name}: 'epps' is not a field of the card" for name in ("small", "large")]
