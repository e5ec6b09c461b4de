"""Hooks of mkdocs for the two builds of the site, one for each language.

A page has the same address in both languages: the Chinese build has the pages of ``docs/zh`` in the place of the English
ones, and the English ones where there is no translation. Pages from outside ``docs`` (README, the guide for contributors)
are added to both.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

from pages import LINK, NOTES, OUTSIDE, ROOT, SWITCH, address, anchor, fenced, headings, slug, translated

EXTERNAL = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^>]*>|<link\b[^>]*href="(?:https?:)?//[^>]*>'
)


def on_config(config):
    """Anchors as on GitHub, for headings in any script."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files, config):
    """The pages of the build's language under their common addresses."""
    chinese = config.theme["language"] == "zh"
    for file in list(files):
        if file.src_uri.startswith("zh/"):
            files.remove(file)
    for name in (*OUTSIDE, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))):
        translation = ROOT / translated(name)
        path = translation if chinese and translation.exists() else ROOT / name
        uri = address(name)
        if known := files.get_file_from_path(uri):
            files.remove(known)
        files.append(File.generated(config, uri, content=text_of(path, ROOT / name)))
    return files


def text_of(path, original):
    """A page with the links of the site; the headings of a translation have the anchors of the original."""
    text = path.read_text(encoding="utf-8")
    if path != original:
        titles = iter(headings(original.read_text(encoding="utf-8")))
        text = "".join(
            f"{line} {{#{anchor(next(titles)[1])}}}\n" if fence is None and re.match("#+ ", line) else f"{line}\n"
            for fence, line in fenced(NOTES.sub("", text))
        )
    folder = path.parent.relative_to(ROOT).as_posix()

    def rewritten(match):
        target = posixpath.normpath(posixpath.join(folder, match["path"]))
        return f"]({address(target)}{match['anchor'] or ''})"

    return LINK.sub(rewritten, SWITCH.sub("", text))


def on_post_page(output, page, config):
    """The menu of languages leads to the same page; a page that would load something from elsewhere is an error."""
    if found := EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    in_chinese = config.theme["language"] == "zh"
    root = "../" * (page.url.count("/") + in_chinese)
    return switched(output, f"{root}{page.url}" or "./", f"{root}zh/{page.url}")


def on_post_template(output_content, template_name, config):
    """The page for wrong addresses may be shown at any address."""
    return switched(output_content, "/", "/zh/")


def switched(output, english, chinese):
    """A page whose menu of languages has these addresses."""
    for language, address_there in (("en", english), ("zh", chinese)):
        output = output.replace(f'href="#language-{language}"', f'href="{address_there}"')
    return output
