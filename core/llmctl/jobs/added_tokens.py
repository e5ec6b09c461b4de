"""Tokens that a run adds to its model: ``model.add_tokens`` and ``model.add_special_tokens``.

They are checked with the job. Before training, the model with its new tokens is written to ``base`` in the output folder;
training starts from it, and an adapter keeps it as its base.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmctl import tokenizers
from llmctl.adapters import targets
from llmctl.checkpoint import convert, resize
from llmctl.checkpoint.build import CheckedModel, open_model
from llmctl.checkpoint.hf_config import read_config
from llmctl.checkpoint.resize import Growth
from llmctl.io.atomic import atomic_folder
from llmctl.io.sizes import parse_bytes
from llmctl.jobs.job import CheckedJob
from llmctl.jobs.paths import template_of
from llmctl.tokenizers import Tokenizer

BASE = "base"
"""Folder of the model with its new tokens, in the output folder."""


def wanted(config: Any) -> tuple[list[str], list[str]]:
    """The ordinary and the special tokens that a configuration adds."""
    return list(getattr(config.model, "add_tokens", ())), list(getattr(config.model, "add_special_tokens", ()))


def plan(config: Any, model: CheckedModel, tokenizer: Tokenizer) -> Growth | None:
    """How the model of a job grows; None = it has no new tokens.

    Raises:
        LlmctlError: A token cannot be added.
    """
    ordinary, special = wanted(config)
    if not ordinary and not special:
        return None
    return resize.plan(model.plugin.card, model.dims, tokenizer, [*ordinary, *special], special)


def check(config: Any, model: CheckedModel, tokenizer: Tokenizer) -> None:
    """Checks that the tokens of a configuration can be added; raises as ``plan``."""
    if not plan(config, model, tokenizer) or config.method.name == "full":
        return
    rows = [tensor for tensor in model.plugin.card.expand(model.dims) if resize.vocab_axes(tensor)]
    trained = targets.modules_to_save(model.plugin, model.dims, config.method.modules_to_save)
    if absent := [tensor.name for tensor in rows if tensor not in trained]:
        beside = "method.modules_to_save=[embed_tokens, lm_head] trains them beside the adapter, "
        warnings.warn(
            f"model.add_tokens with method.name={config.method.name}: the rows of new tokens are the mean of the others and are "
            f"not trained in {' and '.join(absent)}; {beside if config.method.name == 'lora' else ''}method.name=full trains them",
            UserWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def grown(
    job: CheckedJob[Any], writes: bool = True, wait: Callable[[], None] = lambda: None
) -> Iterator[CheckedJob[Any]]:
    """The job on its model with the new tokens, if it has any.

    The folder is removed if the block raises before a run began, and at the end where every parameter was trained; a resumed
    run writes it again.

    Args:
        job: The checked job.
        writes: Whether this process writes the folder; another one that trains with it does otherwise.
        wait: Returns when the folder is written.

    Raises:
        LlmctlError: The model cannot be written.
    """
    growth, folder = plan(job.config, job.model, job.tokenizer), job.output / BASE
    if growth is None:
        yield job
        return
    made = writes and not (job.config.output.resume and folder.is_dir())
    if made:
        _write(job, growth, folder)
    wait()
    try:
        yield _on(job, growth, folder)
    except BaseException:
        if made and not (job.output / "config.yaml").is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if writes and job.config.method.name == "full":
        shutil.rmtree(folder, ignore_errors=True)


def _write(job: CheckedJob[Any], growth: Growth, folder: Path) -> None:
    model = job.model
    assert model.folder, "a new model has the rows that its tokenizer needs"
    source = convert.open_source(model.folder, model.plugin, model.dims)
    with atomic_folder(folder, overwrite=True) as work:
        shard_bytes = parse_bytes(job.config.output.max_shard_bytes)
        resize.write(source, growth, work, shard_bytes, job.config.model.ignore_config_keys)


def _on(job: CheckedJob[Any], growth: Growth, folder: Path) -> CheckedJob[Any]:
    plugin = job.model.plugin
    model = open_model(folder, plugin, resize.grown_dims(job.model.dims, growth), read_config(folder))
    tokenizer = tokenizers.load(folder, template_of(job.config.data.chat_template, plugin), plugin.card)
    return replace(job, model=model, tokenizer=tokenizer)
