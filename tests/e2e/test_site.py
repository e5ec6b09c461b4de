"""The documentation as a site: all pages are in the menus of both languages, links lead somewhere, and it builds strictly."""

import json
import os
import posixpath
import re
import subprocess
import sys

import pytest
import yaml
from kit.readme import ROOT

sys.path.insert(0, str(ROOT / "tools" / "site"))

from pages import LINK, OUTSIDE, address, anchors, prose

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (
    *OUTSIDE, "README.zh.md", *(f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in sorted((ROOT / "docs").rglob("*.md")))
)}  # fmt: skip
"""Path in the repository -> text."""

TRANSLATIONS = {name.replace("docs/zh/", "docs/").replace(".zh.", "."): name for name in PAGES if "zh" in name}
"""English page -> Chinese page."""


def links(name):
    """Path in the repository and anchor of every link of a page to another, or to itself."""
    for match in re.finditer(LINK.pattern + r"|\]\((?P<own>#[^()\s]+)\)", prose(PAGES[name])):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match["path"])) if match["path"] else name
        yield target, (match["anchor"] or match["own"] or "#")[1:]


@pytest.mark.parametrize("config", ["mkdocs.yml", "mkdocs.zh.yml"])
def test_every_page_is_in_the_menu_once(config):
    sections = yaml.safe_load((ROOT / config).read_text(encoding="utf-8"))["nav"]
    entries = [entry for section in sections for rows in section.values() for entry in rows]
    shown = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in entries]
    assert sorted(shown) == sorted({address(name) for name in PAGES})


def test_the_chinese_menu_says_which_pages_are_in_english():
    sections = yaml.safe_load((ROOT / "mkdocs.zh.yml").read_text(encoding="utf-8"))["nav"]
    titles = {
        page: title for section in sections for rows in section.values() for row in rows for title, page in row.items()
    }
    for name in PAGES:
        assert name in TRANSLATIONS.values() or (name in TRANSLATIONS) != titles[address(name)].endswith("（英文）"), (
            name
        )


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target, anchor in links(name):
        assert (ROOT / target).exists(), f"{name}: {target}"
        if target.endswith(".md"):
            assert target in PAGES, f"{name}: {target} is not a page of the site; see OUTSIDE in tools/site/pages.py"
            assert not anchor or anchor in anchors(PAGES[target]), f"{name}: {target} has no #{anchor}"


def test_links_between_translations_lead_to_the_anchors_of_the_originals():
    # These are the anchors of headings on the Chinese site; on GitHub <a id="..."></a> before the heading makes one.
    for original, name in TRANSLATIONS.items():
        for target, anchor in links(name):
            page = next((page for page, there in TRANSLATIONS.items() if there == target), target)
            assert not anchor or anchor in anchors(PAGES[page]), f"{name}: {page} has no #{anchor}"
            on_github = not anchor or anchor in anchors(PAGES[target])
            assert on_github, f"{name}: {target} has no <a id> for #{anchor}"
        assert set(re.findall(r'<a id="([^"]+)">', PAGES[name])) <= anchors(PAGES[original]), name


def test_the_lists_of_readme_name_every_page():
    english = {
        name for name in PAGES if name not in TRANSLATIONS.values() and name not in ("README.md", "CHANGELOG.md")
    }
    assert english == {target for target, _ in links("README.md") if target.endswith(".md")} - {"README.zh.md"}
    best = {TRANSLATIONS.get(name, name) for name in english}
    assert best == {target for target, _ in links("README.zh.md") if target.endswith(".md")} - {"README.md"}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_written_so_that_every_markdown_reads_them(name):
    # Markdown on the site needs four spaces for blocks inside of an item, and a blank line before a list.
    lines = prose(PAGES[name]).splitlines()
    for before, line in zip(lines, lines[1:], strict=False):
        assert not re.match(r" {1,3}(- |\d+\. )" if before else r" {1,3}\S", line), f"{name}: indent by four: {line}"
        html = re.search(r"<(?!a id=|/a>|https?://)[a-z/]\S*", re.sub(r"`[^`]*`", "", line))
        assert not html, f"{name}: {html[0]} is taken for HTML: {line}"
        starts = re.match(r"(- |\d+\. )", line) and not re.match(r"(- |\d+\. |  )", before)
        assert not (starts and before), f"{name}: blank line before {line}"


def test_the_chinese_site_builds_and_is_searched_by_words(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", "mkdocs.zh.yml", "-d", str(tmp_path / "zh")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "zh" / "finetune" / "index.html").read_text(encoding="utf-8")
    assert '<html lang="zh"' in page and 'href="../../finetune/" hreflang="en"' in page and "<h1" in page
    assert 'href="../data/#checking-fine-tuning-data"' in page and "translation of" not in page
    index = json.loads((tmp_path / "zh" / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = {word for row in index["docs"] for word in row["title"].split("\u200b")}
    assert {"微调", "量化", "检查点"} <= words
