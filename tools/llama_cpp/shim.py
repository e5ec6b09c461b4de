"""A plugin of pytest that points the HTTP tests of llama.cpp at ``llmctl serve``: their flags, paths and names in ours.

What it changes of a request: paths without ``/v1`` get it, names of models that the tests make up are left out, and so are fields
for the slots of llama-server. Expectations of what its sampler makes of the model pass with any text.
"""

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ASKED = yaml.safe_load((HERE / "asked.yaml").read_text())
PATHS = {
    "/health": "/healthz",
    "/models": "/v1/models",
    "/completions": "/v1/completions",
    "/chat/completions": "/v1/chat/completions",
}
SLOTS = ("id_slot", "cache_prompt")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
running = {}
"""Options -> a server, which tests share."""


def pytest_configure(config):
    """Changes what the tests use, before they are imported."""
    sys.path.insert(0, os.getcwd())
    import openai
    import utils

    utils.ServerPreset.load_all = lambda: None  # it downloads models
    utils.ServerProcess.start, utils.ServerProcess.stop = start, lambda self: None
    request, stream, matches = (
        utils.ServerProcess.make_request,
        utils.ServerProcess.make_stream_request,
        utils.match_regex,
    )

    def mapped(method):
        def asked(self, verb, path, data=None, *more, **options):
            return method(self, verb, PATHS.get(path, path), ours(data), *more, **options)

        return asked

    utils.ServerProcess.make_request, utils.ServerProcess.make_stream_request = mapped(request), mapped(stream)
    utils.match_regex = lambda regex, text: bool(text) if regex in ASKED["words"] else matches(regex, text)

    class Client(openai.OpenAI):
        def __init__(self, *args, base_url, **options):
            super().__init__(*args, base_url=base_url if base_url.endswith("/v1") else f"{base_url}/v1", **options)

        def _prepare_options(self, options):
            options.json_data = ours(options.json_data)
            return super()._prepare_options(options)

    openai.OpenAI = Client


def ours(data):
    """A body without what only llama-server knows."""
    if not isinstance(data, dict):
        return data
    return {name: value for name, value in data.items() if name != "model" and name not in SLOTS}


def start(self, timeout_seconds=60):
    """Starts a server with the options of a test, or finds one."""
    template = self.chat_template_file and Path(self.chat_template_file).read_text()
    options = (self.n_ctx, self.n_predict, self.temperature, self.model_alias, self.api_key, template)
    if options not in running:
        running[options] = started(*options)
    self.process, self.server_port = running[options]


def started(positions, longest, temperature, name, key, template):
    """A server and its port."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(os.environ["LLMCTL_MODEL"], folder, dirs_exist_ok=True)
    change(folder / "config.json", max_position_embeddings=positions)
    change(folder / "tokenizer_config.json", chat_template=template or CHATML)
    change(folder / "generation_config.json", max_new_tokens=longest, temperature=temperature)
    words = json.loads(os.environ["LLMCTL_COMMAND"])
    process = subprocess.Popen(
        [*words, "serve", str(folder), "--port", "0", "--name", name], stderr=subprocess.PIPE, text=True,
        env={**os.environ, **({"LLMCTL_API_KEY": key} if key else {})},
    )  # fmt: skip
    atexit.register(process.send_signal, signal.SIGTERM)
    for line in process.stderr:
        if found := re.search(r"serving.*127\.0\.0\.1:(\d+)", line):
            # What nobody reads would stop the server.
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            return process, int(found[1])
    raise RuntimeError(f"exit code {process.wait()}")


def change(path, **values):
    """Sets keys of a JSON file."""
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **values}))


def pytest_collection_modifyitems(config, items):
    """Keeps the tests that are asked; those that nobody has looked at are an error."""

    def names(item):
        file = item.path.name
        return {file, item.name, item.originalname, f"{file}::{item.originalname}"}

    asked = set(ASKED["asked"])
    left_out = {name for rows in ASKED["left out"].values() for name in rows}
    kept = [item for item in items if names(item) & asked]
    new = sorted({item.nodeid for item in items if not names(item) & (asked | left_out)})
    if new:
        raise pytest.UsageError("asked.yaml does not know " + ", ".join(new))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
