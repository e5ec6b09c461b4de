"""Prefix-LM: prefixes with bidirectional attention are found by special tokens."""

import numpy as np
import paddle

from llmctl.card.decoder_spec import PrefixLM
from llmctl.nn.prefix_lm import find_prefix, find_prefixes

END, FIRST, SECOND = 60, 61, 62
TOKENS = PrefixLM(end=END, mask_ids=(FIRST, SECOND))


def test_operators_of_programs_find_what_the_loop_over_documents_finds():
    rng = np.random.default_rng(3)
    ids, real = rng.integers(1, 50, (40, 14)), np.ones((40, 14), np.int64)
    for row in range(40):
        real[row, : rng.integers(0, 5)] = 0
        mark, end = sorted(rng.choice(np.arange(5, 14), 2, replace=False))
        ids[row, mark], ids[row, end] = (FIRST, SECOND)[row % 2], END
        ids[row, rng.integers(0, 14)] = (SECOND, FIRST, END)[row % 3] if row > 20 and real[row].all() else ids[row, 0]
    kept = [row for row in range(40) if END in (seen := ids[row][real[row] > 0].tolist())
            and {FIRST, SECOND} & set(seen[: seen.index(END)])]  # fmt: skip
    assert len(kept) > 20
    ids, real = ids[kept], real[kept]
    position = np.maximum(real.cumsum(1) - 1, 0) + 3 * (real > 0)
    place, context, mark, first = find_prefixes(ids, position, real > 0, TOKENS)
    tensors = (paddle.to_tensor(part) for part in (ids, position, real > 0))
    base, length, at, column = (part.numpy() for part in find_prefix(*tensors, TOKENS))
    assert length[:, 0].tolist() == context[:, -1].tolist() and at[:, 0].tolist() == mark[:, -1].tolist()
    assert np.array_equal(column, first) and np.array_equal((position - base)[real > 0], place[real > 0])


def test_operators_mark_rows_that_lack_their_tokens():
    tensors = paddle.to_tensor([[5, FIRST, 6], [5, END, FIRST], [FIRST, 5, END]]), paddle.arange(3).expand([3, 3])
    _, length, at, _ = find_prefix(*tensors, paddle.ones([3, 3], "bool"), TOKENS)
    assert length[:, 0].tolist() == [-1, -1, 2] and at[:, 0].tolist() == [-1, -1, 0]
