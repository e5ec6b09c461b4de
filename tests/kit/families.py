"""A tiny model of every family with a batch, for tests of ranks that share it."""

import numpy as np

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.testing.tensor_ranks import Case

FAMILIES = (
    ("llama", {"vocab": 97}),
    ("llama", {"tied": True, "vocab": 97}),
    ("baichuan", {"position": "alibi", "norm_head": True}),
    ("qwen", {"double_ffn": 96}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mixtral", {"balance": True}),
    ("mistral", {"window": 5}),
    ("qwen2_moe", {"balance": True, "dense_layers": [0], "top_k": 2, "expert_ffn": 24, "shared_ffn": 40}),
    ("chatglm", {"bos": 90, "gmask": 91, "mask": 92}),
    ("chatglm2", {}),
    ("bloom", {}),
    ("gpt3", {}),
    ("opt", {"embed": 24}),
)


def case_of(family, changes):
    """A tiny model with fewer key-value heads than ranks where it may have them, and packed rows of two and of one document."""
    card = plugins.load(family).card
    settable = {setting.name for setting in card.settings if setting.key}
    kept = tiny_dims(card, changes)
    heads = {"heads": 8, "kv_heads": 8 if kept.kv_heads == kept.heads and family != "llama" else 2}
    dims = tiny_dims(card, {**changes, **{name: n for name, n in heads.items() if name in settable}})
    ids = np.random.default_rng(7).integers(3, dims.vocab, (2, 17))
    if family == "chatglm":
        ids = ids % 80 + 3
        ids[:, 3:5] = [dims.gmask, dims.bos]
    labels = ids[:, 1:].copy()
    labels[0, :4] = labels[1, 2] = -100
    arrays = {"input_ids": ids[:, :-1], "labels": labels}
    if family != "chatglm":
        arrays["position_ids"] = np.stack([[*range(10), *range(6)], np.arange(16)])
        arrays["document_end"] = np.stack([[10] * 10 + [16] * 6, np.full(16, 16)])
    return Case(family, dims, arrays)


CASES = [case_of(*row) for row in FAMILIES]
