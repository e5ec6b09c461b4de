"""The starter model behind the server's application, in this process."""

import contextlib
import json

from kit.paths import STARTER
from starlette.testclient import TestClient

from llmctl.config.serve import ServeConfig
from llmctl.infer.executors.native import NativeExecutor
from llmctl.infer.options import EngineOptions
from llmctl.infer.select import open_backend
from llmctl.serve.access.keys import Keys
from llmctl.serve.admission import Admission
from llmctl.serve.app import make_app
from llmctl.serve.metrics import Metrics
from llmctl.serve.server import load
from llmctl.serve.service import Service

QUESTION = "Deny this: Tom has a red kite."


@contextlib.contextmanager
def served(
    keys=(),
    requests=256,
    tokens=1_000_000,
    seconds=0.0,
    body_bytes=1 << 20,
    folder=STARTER / "model",
    gradio=None,
    **options,
):
    """A client of the application, with its service as ``service``."""
    config = ServeConfig()
    config.model.path, config.model.name = str(folder), "starter"
    model, bridge, _ = load(open_backend(folder, "auto", EngineOptions(**options)), config)
    service = Service(model, bridge, Admission(requests, tokens), Metrics(), seconds)
    app = make_app(service, Keys(keys), body_bytes=body_bytes, gradio=gradio)
    with TestClient(app, base_url="http://localhost") as client:
        client.service = service
        yield client


def chat(client, text=QUESTION, **more):
    """The response to a user's text."""
    body = {"messages": [{"role": "user", "content": text}], **more}
    return client.post("/v1/chat/completions", json=body)


def wanting(patch, client, body, wanted):
    """Makes the model want tokens: each has by far the highest logit at its place of the answer to a body, then the end."""
    begin, real = len(client.service.model.conversation(body)), NativeExecutor.run
    wanted = [*wanted, client.service.model.tokenizer.eos_id]

    def run(self, batch):
        logits_LV = real(self, batch).copy()
        for row, place in enumerate(batch.kv_position_T[batch.logits_indices_L] + 1 - begin):
            logits_LV[row, wanted[min(place, len(wanted) - 1)]] += 1000
        return logits_LV

    patch.setattr(NativeExecutor, "run", run)


def chunks(response):
    """The chunks of a stream, whose last line is [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1]]


def refused(response, status, part, param=None):
    """Passes when a response refuses in OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert part in error["message"] and error["param"] == param and set(error) == {"message", "type", "param", "code"}
