"""A model's step as a saved program: tokens, mask and past keys and values in; logits, keys and values out.

The layer is run once on tensors whose batch, length and past are left open; nothing of its code is needed afterwards.
Letters as in ``llmctl.nn``; P counts past positions, virtual tokens included, L layers.

Inputs, in order: ``ids`` [B, T] and ``mask`` [B, P+T] int64, ``wanted`` [1] int32, how many of the last columns' logits are
wanted; the rows that a model keeps for itself [B, 1] int64, -1 at first; then ``key_0, value_0, key_1, ...`` [B, P, K, H].
Outputs: logits [B, wanted, V], then rows, keys and values as they came in, with the new positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from llmctl.errors import UnsupportedError
from llmctl.nn.cache import KVCache
from llmctl.nn.symbolic import size

NAME = "program"
OPEN = None


@dataclass(frozen=True)
class Signature:
    """What a program takes beside ids, mask and wanted.

    Attributes:
        rows: Names of the rows that the model keeps for itself.
        heads: Key-value heads and their width, of each layer.
        dtype: Of keys and values.
    """

    rows: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    dtype: str


def signature_of(layer: Any, prompt: Sequence[int]) -> Signature:
    """What the cache holds after a prompt.

    Args:
        layer: The model, in evaluation.
        prompt: Tokens that it can take.
    """
    cache = KVCache(len(prompt))
    with paddle.no_grad():
        layer.hidden_states(paddle.to_tensor([list(prompt)]), None, None, cache)
    pairs = [cache.pair(index)[0] for index in range(cache.layers)]
    dtype = str(pairs[0].dtype).rpartition(".")[2]
    return Signature(tuple(cache.rows), tuple((key.shape[2], key.shape[3]) for key in pairs), dtype)


class Step(paddle.nn.Layer):
    """One step of a model as a function of tensors alone.

    Args:
        layer: The model, without virtual tokens: they are past positions of the program.
        signature: What its cache holds.
    """

    def __init__(self, layer: Any, signature: Signature) -> None:
        super().__init__()
        self.layer, self.signature = layer, signature

    def forward(self, ids: paddle.Tensor, mask: paddle.Tensor, wanted: paddle.Tensor, held: list[paddle.Tensor]) -> Any:
        """Logits, rows, keys and values."""
        return _step(self.layer, self.signature, ids, mask, wanted, held)

    def specs(self) -> list[Any]:
        """Types and shapes of the inputs; open sizes are those of a program's runs."""
        spec, found = paddle.static.InputSpec, self.signature
        held = [spec([OPEN, 1], "int64", f"row_{name}") for name in found.rows]
        for index, (heads, width) in enumerate(found.heads):
            held += [spec([OPEN, OPEN, heads, width], found.dtype, f"{kind}_{index}") for kind in ("key", "value")]
        first = [spec([OPEN, OPEN], "int64", "ids"), spec([OPEN, OPEN], "int64", "mask"), spec([1], "int32", "wanted")]
        return [*first, held]


@paddle.jit.not_to_static
def _step(layer: Any, signature: Signature, ids: Any, mask: Any, wanted: Any, held: Sequence[Any]) -> Any:
    """The layer on tensors of a program; its code runs as it is written, paddle does not rewrite it."""
    cache = TracedCache(dict(zip(signature.rows, held, strict=False)), held[len(signature.rows) :])
    hidden_BTD = layer.hidden_states(ids, mask, None, cache)
    logits_BTV = layer.logits(hidden_BTD[:, size(ids, 1) - wanted :])
    return logits_BTV, *(cache.rows[name] for name in signature.rows), *cache.held


class TracedCache:
    """The cache of one step of a program: past keys and values come in, and go out with the new ones behind them.

    Args:
        rows: What the model keeps for itself.
        held: Keys and values of each layer [B, P, K, H].
    """

    def __init__(self, rows: dict[str, Any], held: Sequence[Any]) -> None:
        self.rows, self.held = rows, list(held)
        self.length = size(held[0], 1)

    def update(self, layer: int, k_BTKH: Any, v_BTKH: Any) -> tuple[Any, Any]:
        """k_BSKH and v_BSKH: past and new."""
        for place, new in ((2 * layer, k_BTKH), (2 * layer + 1, v_BTKH)):
            self.held[place] = paddle.concat([self.held[place], new], axis=1)
        return self.held[2 * layer], self.held[2 * layer + 1]

    def advance(self, new: Any) -> None:
        """Nothing: the cache ends with the step."""


def save(layer: Any, signature: Signature, folder: Path) -> None:
    """Writes the program and its weights into a folder.

    Raises:
        UnsupportedError: The layer does what a program cannot hold.
    """
    step = Step(layer, signature)
    step.eval()
    try:
        with paddle.no_grad(), warnings.catch_warnings():
            # paddle asks traced tensors for a place, and warns that they have none.
            warnings.simplefilter("ignore")
            program = paddle.jit.to_static(step, input_spec=step.specs(), full_graph=True)
            paddle.jit.save(program, str(folder / NAME))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedError(
            f"{type(layer).__name__} cannot be a program, as its code does what is possible only while it runs, such as "
            f"reading a tensor's values: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        ) from error


def first_rows(signature: Signature, batch: int) -> list[np.ndarray]:
    """The rows of a model before its first step."""
    return [np.full((batch, 1), -1, np.int64) for _ in signature.rows]
