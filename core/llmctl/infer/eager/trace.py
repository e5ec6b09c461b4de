"""A model's step as a saved program: tokens, mask and past keys and values in; logits, keys and values out.

The layer is traced once with symbolic batch, length and past; its code is not needed afterwards. Letters as in
``llmctl.nn``; P past positions, virtual tokens included, L layers.

Inputs, in order: ``ids`` [B, T] and ``mask`` [B, P+T] int64; ``wanted`` [1] int32, the number of last positions whose logits are
computed; the model's own rows [B, 1] int64, -1 at first; then ``key_0, value_0, key_1, ...`` [B, P, K, H].
Outputs: logits [B, wanted, V], then rows, keys and values with the new positions.
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
    """Inputs of a program besides ids, mask and the number of logits.

    Attributes:
        rows: Names of the tensors that the model keeps per sequence (``KVCache.rows``).
        heads: Key-value heads and their width, of each layer.
        dtype: Data type of keys and values.
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


class StepLayer(paddle.nn.Layer):
    """One step of a model as a function of tensors alone.

    Args:
        layer: The model without virtual tokens, which are past positions of the program.
        signature: What its cache holds.
    """

    def __init__(self, layer: Any, signature: Signature) -> None:
        super().__init__()
        self.layer, self.signature = layer, signature

    def forward(self, ids: paddle.Tensor, mask: paddle.Tensor, count: paddle.Tensor, state: list[paddle.Tensor]) -> Any:
        """Logits, rows, keys and values."""
        return _step(self.layer, self.signature, ids, mask, count, state)

    def specs(self) -> list[Any]:
        """Types and shapes of the inputs; open sizes are set by each run."""
        spec, found = paddle.static.InputSpec, self.signature
        state = [spec([OPEN, 1], "int64", f"row_{name}") for name in found.rows]
        for index, (kv_heads, head_dim) in enumerate(found.heads):
            state += [
                spec([OPEN, OPEN, kv_heads, head_dim], found.dtype, f"{kind}_{index}") for kind in ("key", "value")
            ]
        first = [spec([OPEN, OPEN], "int64", "ids"), spec([OPEN, OPEN], "int64", "mask"), spec([1], "int32", "wanted")]
        return [*first, state]


@paddle.jit.not_to_static
def _step(layer: Any, signature: Signature, ids: Any, mask: Any, count: Any, state: Sequence[Any]) -> Any:
    """The layer on symbolic tensors; its code runs as written, paddle does not transform it."""
    cache = TracedCache(dict(zip(signature.rows, state, strict=False)), state[len(signature.rows) :])
    hidden_BTD = layer.hidden_states(ids, mask, None, cache)
    logits_BTV = layer.logits(hidden_BTD[:, size(ids, 1) - count :])
    return logits_BTV, *(cache.rows[name] for name in signature.rows), *cache.pairs


class TracedCache:
    """The KV cache of one step of a program: past keys and values come in, and go out with the new ones appended.

    Args:
        rows: The model's own rows.
        pairs: Keys and values of each layer [B, P, K, H].
    """

    def __init__(self, rows: dict[str, Any], pairs: Sequence[Any]) -> None:
        self.rows, self.pairs = rows, list(pairs)
        self.length = size(pairs[0], 1)

    def update(self, layer: int, k_BTKH: Any, v_BTKH: Any) -> tuple[Any, Any]:
        """k_BSKH and v_BSKH: past and new."""
        for index, new in ((2 * layer, k_BTKH), (2 * layer + 1, v_BTKH)):
            self.pairs[index] = paddle.concat([self.pairs[index], new], axis=1)
        return self.pairs[2 * layer], self.pairs[2 * layer + 1]

    def advance(self, new: Any) -> None:
        """Nothing: the cache ends with the step."""


def save(layer: Any, signature: Signature, folder: Path) -> None:
    """Writes the program and its weights into a folder.

    Raises:
        UnsupportedError: The layer cannot be traced.
    """
    step = StepLayer(layer, signature)
    step.eval()
    try:
        with paddle.no_grad(), warnings.catch_warnings():
            # paddle asks symbolic tensors for their device, and warns that they have none.
            warnings.simplefilter("ignore")
            program = paddle.jit.to_static(step, input_spec=step.specs(), full_graph=True)
            paddle.jit.save(program, str(folder / NAME))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
        raise UnsupportedError(
            f"{type(layer).__name__} cannot be exported as a program: its code does what is possible only while it runs, such as "
            f"reading a tensor's values: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        ) from error


def first_rows(signature: Signature, batch: int) -> list[np.ndarray]:
    """The rows of a model before its first step."""
    return [np.full((batch, 1), -1, np.int64) for _ in signature.rows]
