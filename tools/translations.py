"""Chinese pages and the state of the English pages that they were written for.

The first line of a Chinese page names its English page and that page's state, a hash of its text without generated parts
and line breaks. A test compares it with the English page as it is.

    python tools/translations.py                 the pages that are behind
    python tools/translations.py diff PAGE       what has changed in an English page since its translation
    python tools/translations.py blocks PAGE...  copy changed commands and configurations into the translation
    python tools/translations.py renew PAGE...   after updating a translation: write the state of the English page into it

PAGE is the English page, such as docs/data.md.
"""

import difflib
import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MARK = re.compile(r"<!-- translation of (\S+), state ([0-9a-f]{12}) -->\n")

GENERATED = re.compile(r"<!-- (generated: \w+|matrix:begin) -->.*?<!-- (end|matrix:end) -->", re.DOTALL)

BLOCK = re.compile(r"^```(?!text\b)(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A fenced block whose text is the same in all languages but for comments."""


def read(page: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def state(text: str) -> str:
    """What changes when a person changes a page: line breaks and generated parts do not count."""
    return hashlib.sha256(" ".join(GENERATED.sub("", text).split()).encode()).hexdigest()[:12]


def translations() -> dict[str, str]:
    """English page -> its Chinese page.

    Raises:
        ValueError: A Chinese page does not begin with the line that names its English page.
    """
    found = {}
    for path in (ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))):
        page = path.relative_to(ROOT).as_posix()
        mark = MARK.match(read(page))
        if not mark:
            raise ValueError(f"{page}: the first line must be <!-- translation of PAGE, state {'0' * 12} -->")
        found[mark[1]] = page
    return found


def written_for(page: str) -> str:
    """The state of the English page that a Chinese page was written for."""
    mark = MARK.match(read(page))
    return mark[2] if mark else ""


def behind() -> list[str]:
    """English pages that have changed since their translation."""
    return [english for english, chinese in translations().items() if written_for(chinese) != state(read(english))]


def earlier(page: str, wanted: str) -> str | None:
    """The text of a page in the newest commit where it had a state; None = in no commit of this clone."""
    git = ["git", "-C", str(ROOT)]
    log = subprocess.run([*git, "log", "--format=%H", "--", page], capture_output=True, text=True)
    for commit in log.stdout.split():
        done = subprocess.run([*git, "show", f"{commit}:{page}"], capture_output=True, text=True, encoding="utf-8")
        if done.returncode == 0 and state(done.stdout) == wanted:
            return done.stdout
    return None


def difference(english: str, chinese: str) -> str:
    """What has changed in an English page since its translation, as a unified diff."""
    before = earlier(english, written_for(chinese))
    if before is None:
        return f"the state that {chinese} was written for is in no commit of this clone: compare the whole pages\n"
    texts = (GENERATED.sub("", text).splitlines(keepends=True) for text in (before, read(english)))
    return "".join(difflib.unified_diff(*texts, f"{english} (translated)", english))


def with_blocks(chinese: str, english: str) -> str:
    """A Chinese page with the blocks of the English one; a block that differs only in comments stays.

    Raises:
        ValueError: The pages have different numbers of blocks.
    """
    theirs = list(BLOCK.finditer(english))
    if len(theirs) != len(BLOCK.findall(chinese)):
        raise ValueError("the pages have different numbers of blocks: add or remove one in the Chinese page first")
    new = iter(theirs)

    def replace(match: re.Match) -> str:
        other = next(new)
        bare = [re.sub(r"\s*(?<!\S)#.*", "", body) for body in (match[2], other[2])]
        return match[0] if bare[0] == bare[1] else other[0]

    return BLOCK.sub(replace, chinese)


def main(arguments: list[str]) -> int:
    """Runs a command line; returns its exit code."""
    pairs = translations()
    unknown = [page for page in arguments[1:] if page not in pairs]
    if unknown or arguments[:1] not in ([], ["diff"], ["blocks"], ["renew"]) or len(arguments) == 1:
        print(f"no translation of {unknown[0]}; there are {', '.join(pairs)}" if unknown else __doc__)
        return 2
    for page in arguments[1:]:
        if arguments[0] == "diff":
            print(difference(page, pairs[page]), end="")
        elif arguments[0] == "blocks":
            (ROOT / pairs[page]).write_text(with_blocks(read(pairs[page]), read(page)), encoding="utf-8")
        else:
            line = f"<!-- translation of {page}, state {state(read(page))} -->\n"
            (ROOT / pairs[page]).write_text(MARK.sub(line, read(pairs[page]), count=1), encoding="utf-8")
    if not arguments:
        print("\n".join(f"{page} has changed since {pairs[page]} was written" for page in behind()) or "none is behind")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
