"""Runs the application until a signal: running answers may end, and then it is over with exit code 0."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from llmctl.card.answers import CALL_FORMS
from llmctl.config.serve import ServeConfig, ServerConfig
from llmctl.errors import ConfigError, FileError
from llmctl.infer.backend import EngineBackend
from llmctl.infer.fingerprint import fingerprint
from llmctl.infer.handle import EngineHandle
from llmctl.infer.options import EngineOptions
from llmctl.serve.access.guard import LOG
from llmctl.serve.access.keys import Keys
from llmctl.serve.adapters import Adapters
from llmctl.serve.admission import Admission
from llmctl.serve.answers.grammars import Grammars
from llmctl.serve.app import make_app
from llmctl.serve.bridge import Bridge, bridge_of
from llmctl.serve.metrics import Metrics
from llmctl.serve.model import ServedModel
from llmctl.serve.service import Service

HEAD_SECONDS = 20.0
"""Longest time in which the head of a request must have come."""

HEAD_BYTES = 32 << 10
PROMPT_TOKENS = 64
"""Tokens of prompts in a step besides those of running answers, which wait for it."""

WATCH_SECONDS = 1.0
SWITCH_SECONDS = 0.0005
"""How soon a thread gets the interpreter from another: the engine's thread needs it once per step."""


def load(handle: EngineHandle, config: ServeConfig) -> tuple[ServedModel, Bridge, tuple[str, ...]]:
    """The model in memory, its engine, and notes for the user.

    Args:
        handle: The model.
        config: The configuration.

    Raises:
        LlmctlError: It cannot be loaded.
    """
    options = handle.options
    rows = options.rows(handle.engine)
    if handle.engine == "fused" and options.step_tokens is None:
        handle = replace(handle, options=_with_steps(options, rows + PROMPT_TOKENS))
    tokenizer = handle.tokenizer(config.model.chat_template)
    loaded = handle.load(tokenizer, [None] * rows)
    default = loaded.backend.adapter if isinstance(loaded.backend, EngineBackend) else -1
    model = ServedModel(
        name=config.model.name or Path(config.model.path).resolve().name, tokenizer=tokenizer, vocab=handle.vocab,
        max_positions=loaded.max_positions, defaults=handle.sampling_defaults(), adapters=Adapters(handle.adapters, default, handle.pack_adapter if loaded.engine == "fused" else None, options.named_adapters),
        prefix_lm=handle.prefix_lm, causal=handle.causal, fused=loaded.engine == "fused", created=int(time.time()),
        family=handle.wording.name, calls=CALL_FORMS.get(handle.wording.tokens.calls), thoughts=handle.wording.tokens.thoughts,
        grammars=Grammars(tokenizer, handle.vocab) if loaded.engine == "fused" and find_spec("llguidance") else None,
        fingerprint=fingerprint(handle, loaded.engine),
    )  # fmt: skip
    if model.name in handle.adapters:
        raise ConfigError(
            f"the model and an adapter are both called {model.name}; give the model another name with --name"
        )
    return model, bridge_of(loaded.backend, options.speculate or 0), (*handle.notes, *loaded.notes)


def _with_steps(options: EngineOptions, step_tokens: int) -> EngineOptions:
    return replace(options, step_tokens=step_tokens)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: The address cannot be used, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose others with --host and --port"
        ) from None
    return bound


def listen_unix(path: str) -> socket.socket:
    """A socket in the file system that listens; only its owner and group may connect.

    Raises:
        ConfigError: It cannot be made, or another server listens there.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            try:
                other.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # left by a server that was killed
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        bound.bind(path)
        os.chmod(path, 0o660)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}; choose another with --unix-socket"
        ) from None
    return bound


def check_tls(config: ServerConfig) -> None:
    """Passes when certificate and key are there and belong together, or neither is asked for.

    Raises:
        ConfigError: They are not.
    """
    if bool(config.tls_certificate) != bool(config.tls_key):
        raise ConfigError("HTTPS needs both a certificate and its key: server.tls_certificate and server.tls_key")
    if config.tls_key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_certificate, config.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{config.tls_certificate} and {config.tls_key} cannot be used for HTTPS: {error}"
            ) from None


def address_of(bound: socket.socket, config: ServerConfig) -> str:
    """Where clients reach the server, for people."""
    if config.unix_socket:
        return config.unix_socket
    host, port = bound.getsockname()[:2]
    return f"http{'s' if config.tls_key else ''}://{f'[{host}]' if ':' in host else host}:{port}/v1"


def notify(state: str) -> None:
    """Tells systemd a state such as ``READY=1``, if it has started the server (Type=notify)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect("\0" + path[1:] if path.startswith("@") else path)
            link.sendall(state.encode())


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(
    model: ServedModel,
    bridge: Bridge,
    config: ServeConfig,
    keys: Keys,
    bound: Sequence[socket.socket],
    ready: Callable[[], None],
    gradio: Callable[[Request], Any] | None = None,
) -> int:
    """Serves until SIGTERM or Ctrl-C; a second one ends it at once.

    Args:
        model: The model.
        bridge: Its engine.
        config: The configuration.
        keys: Who may ask.
        bound: Where it listens.
        ready: Called when requests are answered.
        gradio: What answers for the Gradio page; None = there is none.

    Returns:
        The exit code: 1 = the engine has failed.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    limits = config.limits
    service = Service(
        model, bridge, Admission(limits.requests, limits.waiting_tokens), Metrics(config.server.metrics, model.name), limits.seconds
    )  # fmt: skip
    hosts = (*config.server.allowed_hosts, config.server.host)
    app = make_app(service, keys, hosts, limits.body_bytes, gradio)
    grace = config.server.grace_seconds
    server = _Server(
        uvicorn.Config(
            app, http=HeadInTime, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=75, h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_graceful_shutdown=int(grace) + 2, ssl_certfile=config.server.tls_certificate or None,
            ssl_keyfile=config.server.tls_key or None,
        ),
        service, grace, ready, keys)  # fmt: skip

    server.run([*bound])
    return server.code


class _Server(uvicorn.Server):
    """Uvicorn's server, with signals of our own.

    Args:
        config: Uvicorn's.
        service: Told that the server is stopping.
        grace: Seconds that running answers have left then.
        ready: Called when requests are answered.
        keys: Read again on SIGHUP.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        grace: float,
        ready: Callable[[], None],
        keys: Keys | None = None,
    ) -> None:
        super().__init__(config)
        self._service, self._grace, self._ready, self._keys = service, grace, ready, keys
        self.code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        self._ready()
        notify("READY=1")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Watches signals and the engine while the server runs; uvicorn itself would end by a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        watch = loop.create_task(self._watch())
        yield
        watch.cancel()

    def _reload(self) -> None:
        """Reads the keys again; after an error the old ones stay."""
        try:
            if self._keys is not None:
                self._keys.reload()
            LOG.info("the keys were read again")
        except FileError as error:
            LOG.error("the keys stay as they were: %s", error)

    async def _watch(self) -> None:
        """Ends the server with exit code 1 when its engine has failed, so that whatever runs it starts it again."""
        while not self._service.bridge.dead:
            await asyncio.sleep(WATCH_SECONDS)
        if not self._service.stopping:
            LOG.error("the engine has failed; the server ends")
            self.code = 1
            self.end()

    def end(self) -> None:
        """Ends the server: first when answers have ended, the second time at once."""
        if self._service.stopping:
            self._service.abandon()
            self.force_exit = True
            return
        notify("STOPPING=1")
        self._service.stopping = self.should_exit = True
        asyncio.get_running_loop().call_later(self._grace, self._service.abandon)


class HeadInTime(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's protocol, which ends connections on which a request was begun and does not go on."""

    _cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Takes a part of a request; what begins one has to go on."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._cut is None:
            self._cut = self.loop.call_later(HEAD_SECONDS, self._late)

    def _unwatch(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _late(self) -> None:
        self._cut = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
