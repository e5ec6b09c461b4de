"""A short name for all that decides what a model answers: its files, the engine with its data types, and versions."""

from __future__ import annotations

import hashlib
import json

from llmctl import plugins, runtime
from llmctl._version import __version__
from llmctl.errors import OPERATORS_DISTRIBUTION
from llmctl.infer.executors import native
from llmctl.infer.handle import EngineHandle
from llmctl.io.digest import sample_of_files
from llmctl.runtime.distributions import version_of

PADDLE = ("paddlepaddle", "paddlepaddle-gpu")


def fingerprint(handle: EngineHandle, engine: str) -> str:
    """The name of a model as it is run: 10 hexadecimal digits, the same after a restart and in a copy of the folder.

    Of the files only samples are read. Adapters that requests choose among do not count; see ``with_adapter``.

    Args:
        handle: The model.
        engine: ``dynamic``, ``static`` or ``fused``: what it was loaded as.
    """
    options = handle.options
    folders = (handle.model_folder or handle.tokenizer_folder, handle.tokenizer_folder, handle.adapter_folder)
    fused = engine == "fused"
    family = [str(found) for found in plugins.installed() if found.name == handle.wording.name]
    if fused and native.available() and runtime.device() == "cpu":
        computed = [native.level(), version_of(OPERATORS_DISTRIBUTION)]
    else:
        computed = [runtime.device(), *map(version_of, PADDLE)]
    return _short(
        files=[sample_of_files(folder) for folder in folders if folder is not None], versions=[__version__, *family],
        engine=engine, types=[options.weights, options.group, options.kv] if fused else [], computed=computed,
    )  # fmt: skip


def with_adapter(name: str, sample: str) -> str:
    """The name of a model with an adapter.

    Args:
        name: That of the model.
        sample: What identifies the adapter's files; empty = it is part of the model.
    """
    return _short(model=name, adapter=sample) if sample else name


def _short(**facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
