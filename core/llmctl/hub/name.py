"""Names of models on a hub: ``owner/name``, ``hf:name``, ``modelscope:owner/name``, each with ``@revision`` or without.

Before the revision, ``:Q4_K_M`` or ``:file.gguf`` names one of several models in GGUF, as llama.cpp and Ollama write it. The
address of a model's page, with ``https://`` or without, is its name too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import ConfigError

HF, MODELSCOPE = "hf", "modelscope"
HUBS = (HF, MODELSCOPE)
"""Prefixes of names; without one it is the Hugging Face Hub."""

_PAGE = re.compile(r"(?:https?:/+)?(?:hf\.co|huggingface\.co)/")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<repo>(?:{_PART}/)?{_PART})(?::(?P<choice>{_PART}(?:/{_PART})*))?(?:@(?P<revision>[^@\s]+))?")


@dataclass(frozen=True)
class HubName:
    """A model on a hub.

    Attributes:
        hub: One of ``HUBS``.
        repo: ``owner/name``.
        revision: Branch, tag or commit; empty = the hub's default.
        choice: Which of its models in GGUF: a file, or the quantization that ends its name; empty = the only one.
    """

    hub: str
    repo: str
    revision: str = ""
    choice: str = ""

    def __str__(self) -> str:
        prefix = "" if self.hub == HF and "/" in self.repo else f"{self.hub}:"
        choice = f":{self.choice}" if self.choice else ""
        return f"{prefix}{self.repo}{choice}{'@' + self.revision if self.revision else ''}"


def parse(value: str | Path, revision: str = "") -> HubName | None:
    """The name on a hub that a value is; None = it is a path.

    What exists here is a path, and so is what would be in a folder that exists here; a prefix makes it a name.

    Args:
        value: A path or name.
        revision: The revision, if the value has none.

    Raises:
        ConfigError: The value has a prefix but is no name, or the revision is given twice.
    """
    text = str(value)
    if (page := _PAGE.match(text)) and not _is_local(text):
        text = f"{HF}:{text[page.end() :]}"
    prefix, colon, rest = text.partition(":")
    prefixed = bool(colon) and prefix in HUBS
    if not prefixed and _is_local(text):
        return None
    found = _NAME.fullmatch(rest if prefixed else text)
    hub = prefix if prefixed else HF
    if found and ("/" in found["repo"] or (prefixed and hub == HF)):
        if revision and found["revision"] and revision != found["revision"]:
            raise ConfigError(f"{text} has a revision of its own, and revision={revision} is another; leave out one")
        return HubName(hub, found["repo"], found["revision"] or revision, found["choice"] or "")
    if prefixed:
        raise ConfigError(
            f"{text} is not the name of a model; expected {prefix}:OWNER/NAME, {prefix}:OWNER/NAME@REVISION or {prefix}:OWNER/NAME:Q4_K_M"
        )
    return None


def _is_local(text: str) -> bool:
    path = Path(text).expanduser()
    return path.exists() or (len(path.parts) > 1 and path.parent.exists())
