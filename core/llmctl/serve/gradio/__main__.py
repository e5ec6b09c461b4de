"""The process of the page: reads what to show from its input, and ends when its input does."""

import os
import shutil
import sys
import threading
from pathlib import Path

import gradio
import uvicorn
from starlette.applications import Starlette

from llmctl.io.json_object import parse_json
from llmctl.serve.gradio import PATH
from llmctl.serve.gradio.blocks import LOOK, STYLE, blocks, words
from llmctl.serve.gradio.child import Shown
from llmctl.serve.gradio.talk import Api


def end_with_the_server(folder: Path) -> None:
    """Waits until the input ends, then ends the process, however busy it is."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main(folder: Path, scheme: str) -> None:
    """Serves the page on the socket ``page`` in a folder; the server listens on the socket ``server`` there."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    threading.Thread(target=end_with_the_server, args=(folder,), daemon=True).start()
    page = blocks(Shown(**parse_json(line)), Api(folder / "server", scheme))
    app = gradio.mount_gradio_app(
        Starlette(), page, PATH, footer_links=[], run_history=False, max_file_size=0, ssr_mode=False,
        theme=LOOK, css=STYLE, mcp_server=False, i18n=words,
    )  # fmt: skip
    uvicorn.run(app, uds=str(folder / "page"), log_level="warning", ws="none", access_log=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
