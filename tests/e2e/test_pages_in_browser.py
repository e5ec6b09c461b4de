"""The server's two pages to chat, its own and that of Gradio, as a person uses them in Chromium.

apt-get install chromium && pip install -e '.[browser]' && pytest -m browser
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from kit.browser import PHONE, WIDE, Page, chromium, server
from kit.paths import STARTER

from llmctl.serve.words import CHINESE

pytestmark = pytest.mark.browser

QUESTION, OTHER = "Deny this: Tom has a red kite.", "Ask about this: Mia likes tea."
PAGES = ("/", "/gradio/")


@pytest.fixture(scope="module")
def browser(request):
    with chromium("browser" in request.config.option.markexpr) as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The starter model with answers that are long and the same each time."""
    folder = tmp_path_factory.mktemp("page") / "model"
    folder.mkdir()
    for file in (STARTER / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**defaults, "min_new_tokens": 60}))
    return folder


def up(url):
    """Waits until the process of Gradio answers."""
    while httpx.get(f"{url}/gradio/").status_code == 503:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def quick(model, browser):
    with server(model, "--gradio") as process:
        up(process.url)
        yield process


@pytest.fixture(scope="module")
def slow(model, browser):
    with server(model, "--gradio", wait=0.04) as process:
        up(process.url)
        yield process


@pytest.fixture
def opened(browser):
    """Opens pages that ask no other server, and in which nothing fails."""
    with contextlib.ExitStack() as stack:

        def opening(url, **options):
            page = Page(browser, url, **options)
            stack.callback(page.context.close)
            pages.append(page)
            return page

        pages = []
        yield opening
        for page in pages:
            assert not page.foreign and not page.faults


def greedy(url, *texts):
    """What the API answers to the last of the texts."""
    messages = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        body = {"messages": messages, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]
        messages.append(answer)
    return [row["content"].split() for row in messages[1::2]]


@pytest.mark.parametrize("path", PAGES)
def test_a_conversation_has_the_answers_of_the_api_and_their_speed(quick, opened, path):
    page = opened(quick.url + path)
    page.set("Temperature", "0")
    for count, text in enumerate((QUESTION, OTHER), start=1):
        page.send(text)
        page.tab.wait_for_function(COUNTED, arg=count)
        page.said()
    page.until(lambda: [one.split() for one in page.answers()] == greedy(quick.url, QUESTION, OTHER))
    assert page.questions() == [QUESTION, OTHER]
    page.button("Clear").click()
    page.tab.wait_for_function(COUNTED, arg=0)


COUNTED = "count => document.querySelectorAll('article.assistant, .bot .prose').length === count"


@pytest.mark.parametrize("path", PAGES)
def test_an_answer_streams_stops_and_is_made_again(slow, opened, path):
    page = opened(slow.url + path)
    page.send(QUESTION)
    grown = set()
    while len(grown) < 3:
        grown.update(map(len, page.answers()))
    page.button("Stop").click()
    page.said("Stopped")
    while "llmctl_engine_running 0" not in httpx.get(f"{slow.url}/metrics").text:
        pass
    (cut,) = page.answers()
    assert len(cut) >= max(grown)
    page.button("Regenerate").click()
    page.said()
    page.until(lambda: len(page.answers()) == 1 and page.questions() == [QUESTION])


@pytest.mark.parametrize("path", PAGES)
def test_a_text_can_be_changed_and_is_answered_anew(quick, opened, path):
    page = opened(quick.url + path)
    page.set("Temperature", "0")
    page.send(QUESTION)
    page.said()
    page.button("Edit").first.click()
    if path == "/":
        assert page.text().input_value() == QUESTION and not page.questions()
        page.send(OTHER)
    else:
        box = page.tab.locator("#talk textarea")
        box.fill(OTHER)
        page.button("Submit").click()
    page.until(
        lambda: page.questions() == [OTHER] and [one.split() for one in page.answers()] == greedy(quick.url, OTHER)
    )


@pytest.mark.parametrize("path", PAGES)
def test_the_keyboard_is_enough(slow, opened, path):
    page = opened(slow.url + path)
    press = page.tab.keyboard.press
    page.tab_to("Message")
    page.tab.keyboard.type(QUESTION)
    press("Enter")
    page.tab.wait_for_function(COUNTED, arg=1)
    page.tab_to("Stop")
    press("Space")
    page.said("Stopped")
    page.tab_to("Regenerate")
    press("Enter")
    page.said()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_nothing_hinders_people_on_any_screen(quick, opened, path, scheme, size):
    page = opened(quick.url + path, size=size, scheme=scheme)
    assert page.overflow() <= 0 and not page.findings()
    page.send("x" * 200)
    page.said()
    assert page.overflow() <= 0 and not page.findings()


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_in_chinese_gets_the_page_in_chinese(slow, opened, path):
    page = opened(slow.url + path, language="zh-CN")
    page.send(QUESTION)
    page.said(r"\d+ 个 token" if path == "/gradio/" else "等待模型回答")
    page.button("停止").click()
    page.said("已停止")
    page.button("重新生成").click()
    page.said(r"\d+ 个 token，用时 [\d.]+ 秒，每秒 \d+ 个")
    names = page.tab.evaluate(
        "[...document.querySelectorAll('[aria-label], [placeholder]')].map(e => e.ariaLabel + e.placeholder)"
    )
    shown = page.tab.locator("body").inner_text() + " ".join(names)
    assert not [text for text in CHINESE if text in shown] and "温度" in shown and not page.findings()
    assert path != "/" or page.tab.locator("html").get_attribute("lang") == "zh-CN"


@pytest.mark.parametrize("path", PAGES)
def test_a_key_is_asked_for(model, opened, path):
    with server(model, "--gradio", "--api-key", "secret") as process:
        up(process.url)
        page = opened(process.url + path)
        page.said("API key is missing or wrong")
        page.faults.clear()  # the browser notes each refusal
        page.set("API key", "secret")
        page.send(QUESTION)
        page.said()


def test_gradio_takes_back_and_shows_what_was_asked(quick, opened):
    page = opened(quick.url + "/gradio/")
    page.set("Max new tokens", "60")
    page.set("System message", "Be brief.")
    page.send(QUESTION)
    assert page.said().startswith("60 tokens")
    page.tab.get_by_role("button", name="Raw context").click()
    page.tab.get_by_text("repetition_penalty").wait_for()
    raw = page.tab.locator(".json-holder").inner_text()
    assert "Be brief." in raw and "max_tokens" in raw and QUESTION in raw
    page.button("Undo").click()
    page.tab.wait_for_function(COUNTED, arg=0)
    assert page.text().input_value() == QUESTION and not page.questions()


def test_two_people_are_answered_at_once(slow, opened):
    pages = [opened(slow.url + "/gradio/") for _ in range(2)]
    for page in pages:
        page.send(QUESTION)
    for page in pages:
        page.tab.wait_for_function(COUNTED, arg=1)
    assert "llmctl_engine_running 2" in httpx.get(f"{slow.url}/metrics").text
    for page in pages:
        page.button("Stop").click()
        page.said("Stopped")


def children(process):
    return [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def uses(pid, library):
    return library in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_gradio_is_in_a_process_of_its_own_that_ends_with_the_server(model, opened, tmp_path, number):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with server(model, "--gradio", wait=0.04, env=environment) as process:
        up(process.url)
        (child,) = children(process)
        assert uses(child, "pandas") and not uses(process.pid, "pandas") and [*tmp_path.glob("llmctl-*/page")]
        page = opened(process.url + "/gradio/")
        page.set("Max new tokens", "60")
        page.send(QUESTION)
        page.tab.wait_for_function(COUNTED, arg=1)
        begun = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        while Path(f"/proc/{child}").exists() and time.monotonic() < begun + 20:
            pass
        assert not Path(f"/proc/{child}").exists() and not [*tmp_path.glob("llmctl-*")]
        page.faults.clear()


def test_gradio_stores_nothing_that_is_sent(quick):
    answer = httpx.post(f"{quick.url}/gradio/gradio_api/upload", files={"files": b"x"})
    assert answer.status_code == 415
    assert httpx.get(f"{quick.url}/gradio/", headers={"host": "evil.example"}).status_code == 403
