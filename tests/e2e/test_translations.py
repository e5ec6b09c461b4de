"""Chinese pages belong to the English pages as they are, and show and name all that these show and name."""

import importlib.util
import re

import pytest
from kit.readme import ROOT

spec = importlib.util.spec_from_file_location("translations", ROOT / "tools" / "translations.py")
translations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(translations)

PAIRS = translations.translations()


def blocks(text):
    """Language and lines of every fenced block; comments are prose."""
    return [
        (language, [re.sub(r"\s*(?<!\S)#.*", "", line) for line in body.splitlines()])
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if language != "text"
    ]


def names(text):
    """What stands in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def levels(text):
    return [
        len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    ]


@pytest.mark.parametrize("english", PAIRS)
def test_a_translation_is_that_of_the_page_as_it_is(english):
    chinese = PAIRS[english]
    if translations.written_for(chinese) != translations.state(translations.read(english)):
        pytest.fail(
            f"{english} has changed: see `python tools/translations.py diff {english}`, update {chinese}, "
            f"then run `python tools/translations.py renew {english}`",
            pytrace=False,
        )
    ours, theirs = translations.read(chinese), translations.read(english)
    assert blocks(ours) == blocks(theirs), "commands, configurations and data lines are those of the English page"
    assert levels(ours) == levels(theirs), "headings"
    parts = [[match[0] for match in translations.GENERATED.finditer(text)] for text in (ours, theirs)]
    assert parts[0] == parts[1], (
        f"generated parts differ; for the support matrix: llmctl models --update-matrix {chinese}"
    )
    missing = [name for name in names(theirs) if f"`{name}`" not in ours]
    assert not missing, f"{chinese} does not name {missing}"


NEEDED = "first-steps finetune lora prefix dpo pretraining distributed data inference serving python operators gpu hub coming-from migrating migrating-llama-factory"


def test_all_that_a_user_needs_first_is_translated():
    assert {"README.md", *(f"docs/{page}.md" for page in NEEDED.split())} <= set(PAIRS)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with an English page and its translation, both committed."""
    (tmp_path / "docs" / "zh").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# One\n\nOld words.\n")
    (tmp_path / "README.zh.md").write_text(
        f"<!-- translation of README.md, state {'0' * 12} -->\n\n# 一\n", encoding="utf-8"
    )
    monkeypatch.setattr(translations, "ROOT", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "pages"]):
        translations.subprocess.run([*git, *words], check=True)
    return tmp_path


def test_the_tool_names_what_is_behind_shows_what_changed_and_renews(clone, capsys):
    assert translations.main([]) == 0 and "README.md has changed" in capsys.readouterr().out
    assert translations.main(["renew", "README.md"]) == 0
    assert translations.main([]) == 0 and capsys.readouterr().out == "none is behind\n"
    (clone / "README.md").write_text("# One\n\nNew words.\n")
    assert translations.main(["diff", "README.md"]) == 0
    shown = capsys.readouterr().out
    assert "-Old words." in shown and "+New words." in shown and translations.behind() == ["README.md"]
    (clone / "README.zh.md").write_text("<!-- translation of README.md, state 123456789abc -->\n", encoding="utf-8")
    assert translations.main(["diff", "README.md"]) == 0 and "compare the whole pages" in capsys.readouterr().out
    assert (
        translations.main(["renew", "docs/none.md"]) == 2
        and "no translation of docs/none.md" in capsys.readouterr().out
    )


def test_changed_commands_are_copied_and_translated_comments_stay():
    old = "一\n\n```sh\na --b  # 说明\n```\n\n```yaml\nc: 1\n```\n\n```text\n二\n```\n"
    new = "One\n\n```sh\na --b  # note\n```\n\n```yaml\nc: 2\n```\n\n```text\nTwo\n```\n"
    assert translations.with_blocks(old, new) == old.replace("c: 1", "c: 2")
    with pytest.raises(ValueError, match="different numbers of blocks"):
        translations.with_blocks(old, new + "\n```sh\nd\n```\n")


def test_line_breaks_and_generated_parts_are_no_change():
    text = "a b\n<!-- matrix:begin -->\n1\n<!-- matrix:end -->\n"
    assert translations.state(text) == translations.state("a\nb <!-- matrix:begin -->2<!-- matrix:end -->")
    assert translations.state(text) != translations.state("a c")
