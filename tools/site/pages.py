"""What the pages of the documentation are, without mkdocs: addresses on the site, headings, anchors, links."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages from outside docs/ -> their sources on the site."""

LINK = re.compile(r"\]\((?P<path>[^()\s:#]+)(?P<anchor>#[^()\s]+)?\)")
"""A link to another page of the repository."""

SWITCH = re.compile(
    r"^(?:\[English\]\(README\.md\) \| 简体中文|English \| \[简体中文\]\(README\.zh\.md\))\n\n", re.MULTILINE
)
"""The line that leads to README in the other language; the site has a menu for that."""

NOTES = re.compile(r'^<!-- translation of .*?-->\n\n?|^<a id="[^"]+"></a>\n\n', re.MULTILINE)
"""What a translation has for its readers on GitHub and for tools: its original, and the anchors of the original."""


def address(name: str) -> str:
    """The source that a page has on the site, from its path in the repository; translations have that of the original."""
    name = name.replace("README.zh.md", "README.md").removeprefix("docs/")
    return OUTSIDE.get(name, name.removeprefix("zh/"))


def translated(name: str) -> str:
    """The path that the translation of a page has, if there is one."""
    return name.replace("docs/", "docs/zh/") if name.startswith("docs/") else name.replace(".md", ".zh.md")


def slug(title: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it of its text."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", separator)


def anchor(title: str) -> str:
    """The anchor of a heading as it is written, with Markdown."""
    return slug(re.sub(r"[`*]|\]\([^)]*\)|\[", "", title))


def fenced(text: str) -> Iterator[tuple[str | None, str]]:
    """The fence of the block that a line belongs to, if it does, and the line."""
    fence = None
    for line in text.splitlines():
        marks = re.match(r" *(```)", line)
        yield fence or (marks[1] if marks else None), line
        if marks:
            fence = None if fence else marks[1]


def prose(text: str) -> str:
    """A page without its fenced blocks and comments."""
    lines = "\n".join(line for fence, line in fenced(text) if fence is None)
    return re.sub(r"<!--.*?-->", "", lines, flags=re.DOTALL)


def headings(text: str) -> list[tuple[int, str]]:
    """Level and title of every heading, in order."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#{1,6}) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """Where links into a page can lead."""
    return {anchor(title) for _, title in headings(text)} | set(re.findall(r'<a id="([^"]+)"></a>', text))
