"""Chromium, driven by Playwright, which reaches nothing but this machine; and servers whose pages it opens."""

import contextlib
import re
import shutil
import subprocess
import sys
import threading

import pytest

WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 375, "height": 720}

SERVE = """
import sys, time
from llmctl.serve.bridge import EngineBridge
after = EngineBridge._after_step
EngineBridge._after_step = lambda self: (time.sleep(float(sys.argv[1])), after(self))[1]
from llmctl.cli import main
main(["serve", *sys.argv[2:]])
"""
"""A server whose engine waits after each step, so that a person could stop it."""


@contextlib.contextmanager
def server(*words, wait=0.0, **options):
    """A server on a free port; its process, with its address as ``url``."""
    command = [sys.executable, "-c", SERVE, str(wait), *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"serving .* (https?://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError(said)
        process.url = found[1]
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def chromium(asked=True):
    """The browser. Without it tests fail if they were asked for, else they are skipped; both say what to install."""
    missing = pytest.fail if asked else pytest.skip
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        import axe_playwright_python  # noqa: F401
        import gradio  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        missing(f"these tests need {error.name}: pip install -e '.[browser]'")
    if path is None:
        missing("these tests need Chromium: apt-get install chromium")
    with sync_playwright() as play:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", rules])
        yield browser
        browser.close()


class Page:
    """A page in the browser, and what went wrong in it.

    Args:
        browser: The browser.
        url: Address of the page.
        size: Of the window.
        scheme: light or dark.
        language: Of the browser.

    Attributes:
        tab: Playwright's page.
        foreign: Addresses elsewhere that were asked.
        faults: What failed.
    """

    def __init__(self, browser, url, size=WIDE, scheme="light", language="en-US"):
        self.context = browser.new_context(viewport=size, color_scheme=scheme, locale=language, bypass_csp=False)
        self._send, self._message = ("发送", "消息") if language.startswith("zh") else ("Send", "Message")
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(60_000)
        self.foreign, self.faults = [], []
        origin = "/".join(url.split("/")[:3])
        self.tab.on(
            "request", lambda one: one.url.startswith((origin, "data:", "blob:")) or self.foreign.append(one.url)
        )
        self.tab.on("requestfailed", lambda one: "ABORTED" in one.failure or self.faults.append((one.url, one.failure)))
        self.tab.on("response", lambda one: one.status < 400 or self.faults.append((one.url, one.status)))
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on(
            "console",
            lambda said: said.type == "error" and "status of" not in said.text and self.faults.append(said.text),
        )
        self.tab.goto(url)
        self.button(self._send).wait_for()

    def button(self, name):
        """The button of that name; Gradio has icons of some names too, which stand before it."""
        return self.tab.get_by_role("button", name=name, exact=True).last

    def text(self):
        return self.tab.get_by_label(self._message, exact=True)

    def send(self, text):
        self.text().fill(text)
        self.button(self._send).click()

    def set(self, label, value):
        by = self.tab.get_by_label
        field = by(label, exact=True).or_(by(f"number input for {label}", exact=True)).first
        field.fill(value)
        field.press("Tab")

    def said(self, pattern=r"\d+ tokens in [\d.]+ s, \d+ a second"):
        """The line of the status, once it fits."""
        line = self.tab.get_by_role("status").filter(has_text=re.compile(pattern))
        line.wait_for()
        return line.inner_text()

    def answers(self):
        """The texts of the model's answers."""
        return [one.inner_text() for one in self.tab.locator("article.assistant div:last-child, .bot .prose").all()]

    def questions(self):
        """The texts of the user."""
        return [one.inner_text() for one in self.tab.locator("article.user div:last-child, .user .prose").all()]

    def until(self, check):
        """Waits until something is so."""
        for _ in range(600):
            if check():
                return
            self.tab.wait_for_timeout(100)
        raise AssertionError((self.questions(), self.answers()))

    def overflow(self):
        """Pixels by which the page is wider than the window."""
        return self.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def focused(self):
        """What the keyboard goes to: the label of a field or the text of a button."""
        return self.tab.evaluate(
            "(e => e.ariaLabel || e.labels?.[0]?.innerText.trim() || e.innerText?.trim() || e.tagName)(document.activeElement)"
        )

    def tab_to(self, name):
        """Presses Tab until the keyboard goes there."""
        for _ in range(60):
            if self.focused() == name:
                return
            self.tab.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {name}")

    def findings(self):
        """What axe-core calls serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.tab).response["violations"]
        return [
            (row["id"], [node["target"] for node in row["nodes"]])
            for row in found
            if row["impact"] in ("serious", "critical")
        ]
