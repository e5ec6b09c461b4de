"""The configuration of ``llmctl serve``: the file ``serve.yaml``, whose keys options of the command override."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.config.schema import option, section

ENGINES = ("auto", "dynamic", "static", "fused")


@dataclass(kw_only=True)
class ServedModelConfig:
    """The model and its engine."""

    path: str = option("", "Folder of the model, or its name on a hub.")
    family: str = option("auto", "Family of the model; `auto` = the one that the folder names.")
    name: str = option("", "Name by which clients ask for it; empty = that of its folder.")
    adapters: list[str] = option(
        [], "An adapter for every answer, or `NAME=FOLDER` of several that clients ask for by name."
    )
    chat_template: str = option("auto", "`auto` (the model's own), `family`, `none`, or a file or folder.")
    engine: str = option("auto", "As for `llmctl generate`.", choices=ENGINES)
    weights: str = option("", "Data type of the weights (fused); empty = that of the checkpoint.")
    group: int = option(-1, "Quantization group size (fused); -1 = the default.", minimum=-1)
    kv: str = option("", "Data type of the KV cache (fused); empty = float16, float32 for very small models.")
    cache_memory: str = option("", "Limit of the KV cache, such as 2GB or 0.5; empty = what is needed, up to 0.5 of what is free.")  # fmt: skip
    batch_size: int = option(
        0, "Answers that are computed together; 0 = 64, with other engines than fused 8.", minimum=0
    )
    step_tokens: int = option(0, "Tokens of a step (fused); 0 = batch_size + 64, so that prompts hold up running answers little.", minimum=0)  # fmt: skip
    speculate: int = option(0, "Draft tokens of speculative decoding (fused); 0 = none.", minimum=0)
    threads: int = option(0, "Threads of the kernels; 0 = one fewer than there are cores.", minimum=0)


@dataclass(kw_only=True)
class ServerConfig:
    """Where it listens and who may ask."""

    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port; 0 = a free one.", minimum=0, maximum=65535)
    allowed_hosts: list[str] = option([], "Names in the header `Host`, besides localhost and addresses in numbers.")
    unix_socket: str = option("", "Socket in the file system to listen on instead of an address.")
    tls_certificate: str = option("", "Certificate for HTTPS, with those between it and the root, as PEM.")
    tls_key: str = option("", "Its private key, as PEM.")
    api_key_file: str = option("", "File of API keys, one a line, as they are or as `sha256:` and their hash; then maybe `admin`, `name=` and limits.")  # fmt: skip
    gradio: bool = option(False, "Whether there is a Gradio page too, at /gradio (extra `page`).")
    log: str = option("text", "Form of the log on standard error.", choices=("text", "json"))
    metrics: str = option("llmctl", "Names of metrics; `vllm` adds those of vLLM, which its dashboards show.", choices=("llmctl", "vllm"))  # fmt: skip
    grace_seconds: float = option(30.0, "How long running answers may go on after SIGTERM.", minimum=0.0)


@dataclass(kw_only=True)
class LimitsConfig:
    """What is refused instead of waiting for ever."""

    requests: int = option(256, "Answers that run or wait; more are refused with 429.", minimum=1)
    waiting_tokens: int = option(1_000_000, "Tokens of prompts that wait; more are refused with 429.", minimum=1)
    seconds: float = option(600.0, "Longest time of a request, waiting included; 0 = any.", minimum=0.0)
    key_requests: int = option(0, "Requests per minute of an API key that has no `requests=` of its own; 0 = any.", minimum=0)  # fmt: skip
    key_tokens: int = option(0, "Tokens of prompts and answers per minute of a key, likewise `tokens=`; 0 = any.", minimum=0)  # fmt: skip
    key_parallel: int = option(0, "Answers at a time of a key, likewise `parallel=`; 0 = any.", minimum=0)
    body_bytes: int = option(8 << 20, "Largest body of a request.", minimum=1024)


@dataclass(kw_only=True)
class ServeConfig:
    """The whole configuration."""

    model: ServedModelConfig = section(ServedModelConfig)
    server: ServerConfig = section(ServerConfig)
    limits: LimitsConfig = section(LimitsConfig)
