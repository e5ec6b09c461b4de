"""Takes the pictures of the server's two pages to chat that docs/serving.md shows.

Run with: python tools/page_pictures.py MODEL; MODEL answers the question, as the one of the demo does (make demo).
It needs Chromium and the extra browser.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
QUESTION = "Deny this: Tom lives in Rome."
SIZE = {"width": 960, "height": 640}


def picture(page: Page, url: str, path: Path) -> None:
    """Asks the question on the page at an address, and keeps what it looks like then."""
    page.goto(url)
    page.get_by_role("button", name="Send").wait_for()
    page.get_by_label("Temperature").first.fill("0")
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Send").click()
    page.get_by_text(re.compile("[0-9] a second")).wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    # The pages have few colors: a palette makes the file a third as large.
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


def main(model: str) -> None:
    """Takes both pictures of a server with the model in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(model, f"{folder}/starter")
        command = [sys.executable, "-m", "llmctl", "serve", f"{folder}/starter", "--gradio", "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr
            url = next(found[0] for line in server.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
            while True:
                try:
                    urllib.request.urlopen(f"{url}/gradio/").close()
                    break
                except urllib.error.HTTPError:
                    time.sleep(0.2)
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                for name, path in (("page", "/"), ("gradio", "/gradio/")):
                    picture(browser.new_page(viewport=SIZE), url + path, IMAGES / f"{name}.png")
                browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
