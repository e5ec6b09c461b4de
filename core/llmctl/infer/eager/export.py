"""Exports a model as a static program, which is compared with the model before it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import paddle

from llmctl import plugins
from llmctl.card.dims import Dims
from llmctl.card.tokens import Wording
from llmctl.errors import CheckpointError
from llmctl.infer.eager import exported, trace
from llmctl.infer.eager.exported import Exported
from llmctl.infer.eager.layer import DynamicModel, max_positions
from llmctl.infer.eager.program import PREFIX, StaticModel
from llmctl.io.atomic import atomic_folder
from llmctl.io.copying import copy_into
from llmctl.io.json_object import read_json, write_json

TOLERANCE = 1e-4
"""Largest allowed difference of logits, relative to the largest logit or to 1."""

STEPS = 3
"""Tokens after the prompt that are compared."""

COPIED = ("config.json", "generation_config.json")


def export(
    layer: Any,
    plugin: plugins.Plugin,
    dims: Dims,
    prompts: Sequence[Sequence[int]],
    target: Path,
    source: Path | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    config_changes: Mapping[str, Any] = MappingProxyType({}),
) -> Exported:
    """Writes the folder of a program; returns the content of its ``export.json``.

    Args:
        layer: The model with its adapter merged; it may have virtual tokens.
        plugin: Its family.
        dims: Its dims.
        prompts: Token ids on which program and layer are compared, of different lengths.
        target: The folder to make.
        source: Where ``config.json`` and generation defaults are copied from; None = they are written from the dims.
        tokenizer: Saved into the folder; None = there is none.
        overwrite: Whether an existing folder is replaced.
        config_changes: Keys of ``config.json`` with other values than in ``source``.

    Raises:
        LlmctlError: The target exists, the model cannot be traced, or the program's logits differ from the model's.
    """
    layer.eval()
    with atomic_folder(target, overwrite) as work:
        signature, values = _save(layer, prompts[0], work)
        about = Exported(
            family=plugin.card.name, vocab=dims.vocab, max_positions=program_positions(layer, dims),
            virtual_tokens=0 if values is None else values.shape[2], rows=signature.rows, heads=signature.heads,
            dtype=signature.dtype, wording=wording(plugin), difference=0.0,
            versions={**plugins.versions(plugin), "paddle": paddle.__version__},
        )  # fmt: skip
        room = about.max_positions - STEPS if about.max_positions else max(map(len, prompts))
        difference = compare(layer, StaticModel(work, about), [prompt[-max(1, room) :] for prompt in prompts])
        about = replace(about, difference=difference, files=exported.listed(work))
        exported.write(work, about)
        _rest(work, plugin, dims, source, tokenizer)
        if config_changes:
            write_json(work / COPIED[0], {**read_json(work / COPIED[0]), **config_changes})
    return about


def program_positions(layer: Any, dims: Dims) -> int:
    """Maximum length of prompt and answer: the model's, or the longest at which RoPE does not depend on it; 0 = no limit."""
    if getattr(layer, "position_depends_on_length", False):
        return max(1, int(layer.max_stable_length))
    return max_positions(layer, dims)


def wording(plugin: plugins.Plugin) -> Wording:
    """What tokenizers need to know of a family."""
    card = plugin.card
    return Wording(name=card.name, tokens=card.tokens, chat_template=card.chat_template)


def compare(layer: Any, static: StaticModel, prompts: Sequence[Sequence[int]]) -> float:
    """The largest difference of logits between model and program, relative to the largest or to 1.

    Prompts are computed one by one and as a batch padded on the left, first whole and then token by token with the cache.

    Raises:
        CheckpointError: It is more than ``TOLERANCE``.
    """
    dynamic = DynamicModel(layer)
    worst = 0.0
    for group in [*([prompt] for prompt in prompts), list(prompts)]:
        ids_BT, mask_BT = padded(group)
        with paddle.no_grad():
            logits_BTV = layer(paddle.to_tensor(ids_BT), paddle.to_tensor(mask_BT)).numpy()
        worst = max(worst, _difference(static.logits(ids_BT, mask_BT), logits_BTV, mask_BT))
        worst = max(worst, _answers(dynamic, static, ids_BT, mask_BT))
    if not np.isfinite(worst):
        raise CheckpointError(
            "logits of the model or of the program are not finite, so that they cannot be compared; nothing was written. Look for "
            "NaN or infinity in the weights"
        )
    if worst > TOLERANCE:
        raise CheckpointError(
            f"the program does not compute what the model does: logits differ by {worst:.2g} of the largest, allowed is "
            f"{TOLERANCE:g}; nothing was written. The family's modeling code depends on values while it runs"
        )
    return worst


def padded(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [B, T] of prompts, padded on the left."""
    longest = max(map(len, prompts))
    ids_BT, mask_BT = np.full((len(prompts), longest), pad, np.int64), np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :], mask_BT[row, longest - len(prompt) :] = prompt, 1
    return ids_BT, mask_BT


def _answers(dynamic: Any, static: Any, ids_BT: np.ndarray, mask_BT: np.ndarray) -> float:
    """The difference over an answer; both are given the model's likeliest tokens."""
    both = [model.begin(ids_BT.shape[1] + STEPS) for model in (static, dynamic)]
    worst = 0.0
    for _ in range(STEPS):
        found_BV, expected_BV = (steps.step(ids_BT, mask_BT) for steps in both)
        worst = max(worst, _difference(found_BV, expected_BV, np.ones(len(found_BV))))
        ids_BT = expected_BV.argmax(-1)[:, None]
        mask_BT = np.pad(mask_BT, ((0, 0), (0, 1)), constant_values=1)
    return worst


def _difference(found: np.ndarray, expected: np.ndarray, real: np.ndarray) -> float:
    found, expected = found[real > 0], expected[real > 0]
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _save(layer: Any, prompt: Sequence[int], work: Path) -> tuple[trace.Signature, np.ndarray | None]:
    """Writes program and virtual tokens; returns the signature, and the keys and values of the virtual tokens."""
    prefix = getattr(layer, "prefix", None)
    if prefix is None:
        signature = trace.signature_of(layer, prompt)
        trace.save(layer, signature, work)
        return signature, None
    values = np.asarray(prefix.values())
    np.save(work / PREFIX, values)
    layer.prefix = None
    try:
        signature = trace.signature_of(layer, prompt)
        trace.save(layer, signature, work)
    finally:
        layer.prefix = prefix
    return signature, values


def _rest(work: Path, plugin: plugins.Plugin, dims: Dims, source: Path | None, tokenizer: Any) -> None:
    """Writes configuration, generation defaults, tokenizer and chat template."""
    for name in COPIED:
        if source is not None and (source / name).is_file():
            copy_into(source / name, work)
    if source is None:
        config = json.dumps(plugin.card.config_from_dims(dims), indent=1)
        (work / "config.json").write_text(config + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(work)
