"""A toy language model and toy rows for tests of training: small, float64, with nothing of a real family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import paddle

from llmctl.nn.vocabulary import Vocabulary

VOCAB, HIDDEN = 13, 6


@dataclass(frozen=True)
class ToyRow:
    input_ids: list[int]
    labels: list[int]
    source: str


class ToyModel(paddle.nn.Layer):
    """Embedding, a running mean over the past (causal), a norm, a biased linear, a head."""

    def __init__(self, dtype: str = "float64", seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)

        def parameter(*shape):
            value = paddle.to_tensor(rng.normal(0, 0.5, shape).astype(dtype))
            return self.create_parameter(shape, dtype=dtype, default_initializer=paddle.nn.initializer.Assign(value))

        self.embed, self.norm = parameter(VOCAB, HIDDEN), parameter(HIDDEN)
        self.weight, self.bias, self.head = parameter(HIDDEN, HIDDEN), parameter(HIDDEN), parameter(HIDDEN, VOCAB)

    def hidden_states(self, input_ids_BT, attention_mask_BS=None, position_ids_BT=None, cache=None):
        x_BTD = paddle.nn.functional.embedding(input_ids_BT, self.embed)
        length = paddle.arange(1, x_BTD.shape[1] + 1).astype(x_BTD.dtype).reshape([1, -1, 1])
        mean_BTD = paddle.cumsum(x_BTD, axis=1) / length
        return paddle.tanh(paddle.matmul(mean_BTD + x_BTD, self.weight) + self.bias) * self.norm

    def logits(self, hidden):
        return paddle.matmul(hidden, self.head)

    @property
    def vocabulary(self):
        return Vocabulary(self.logits)


def toy_rows(count: int, seed: int = 0) -> list[ToyRow]:
    """Rows of 4 to 11 tokens, of which the last 1 to 3 are labels; the next token is the present one plus one."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length, asked = int(rng.integers(4, 12)), int(rng.integers(1, 4))
        ids = [int(i) for i in (rng.integers(1, VOCAB) + np.arange(length + 1)) % VOCAB]
        labels = [-100] * (length - asked) + ids[length + 1 - asked :]
        rows.append(ToyRow(ids[:-1], labels, f"toy.jsonl:{index + 1}"))
    return rows


def collate(rows) -> dict[str, np.ndarray]:
    """Rows padded on the right."""
    width = max(len(row.input_ids) for row in rows)
    ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -100, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)] = row.input_ids
        labels[i, : len(row.labels)] = row.labels
    return {"input_ids": ids, "labels": labels}
