"""The words of the pages to chat: each has a translation, with the same values in it."""

import ast
import re

import pytest
from kit.served import served

from llmctl.serve import page
from llmctl.serve.words import CHINESE, translated

GRADIO = page.FILE.parent / "gradio"


def texts_of_the_page():
    """What page.html shows: texts and labels of its elements, and what its script says."""
    html, script = page.FILE.read_text(encoding="utf-8").split("<header>", 1)[1].split("<script>")
    texts = re.findall(r">([^<>]*\w[^<>]*)<", html) + re.findall(r'(?:aria-label|placeholder)="(.*?)"', html)
    return {text.strip() for text in texts} - {"llmctl"} | {
        *re.findall(r'"([^"]*)"', " ".join(re.findall(r"said\(([^()]*)", script)))
    }


def texts_of_gradio():
    """What the modules of the other page say."""
    found = set()
    for file in ("blocks.py", "talk.py"):
        for node in ast.walk(ast.parse((GRADIO / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("words", "translated", "Refused"):
                found |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return found


def test_each_text_of_the_pages_is_in_the_table_and_no_other():
    said = texts_of_the_page() - {"user"} | texts_of_gradio()
    assert said - {*CHINESE} == set()
    reasons = {text for text in CHINESE if f'"{text}"' in (GRADIO / "talk.py").read_text(encoding="utf-8")}
    assert {*CHINESE} - said - reasons == set()


@pytest.mark.parametrize("text", CHINESE)
def test_a_translation_has_the_same_values(text):
    assert CHINESE[text].count("{}") == text.count("{}") and re.search("[\u4e00-\u9fff]", CHINESE[text])


def test_the_language_is_the_first_that_the_browser_names():
    assert [translated(one, "Send") for one in ("zh-CN,zh;q=0.9,en;q=0.8", "ZH", "en-US,zh;q=0.9", "")] == [
        "发送",
        "发送",
        "Send",
        "Send",
    ]
    assert translated("zh", "{} tokens", 3) == "3 个 token" and translated("zh", 'no {"such": 1}') == 'no {"such": 1}'


def test_the_page_has_the_table():
    with served() as client:
        text = client.get("/").text
    assert "const CHINESE = {};" not in text and "重新生成" in text and len(text.encode()) < 15_000
