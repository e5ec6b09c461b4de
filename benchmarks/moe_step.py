"""One training step of a mixture of experts here and in transformers on torch, in one run: forward, backward, AdamW.

A Mixtral of 78 million parameters, of which each token uses two of eight experts in each layer. Both sides hold the same
weights and see the same tokens; a run whose losses differ by more than 1e-4 fails. How the two take turns is in
``turns.py``.

    python benchmarks/moe_step.py --peer-python /path/to/python/with/transformers
"""

from __future__ import annotations

from types import SimpleNamespace

import train_step
from lib import turns
from train_step import TOLERANCE

LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCAB, BATCH, TOKENS = 4, 512, 8, 2, 1376, 8000, 4, 256
EXPERTS, TOP_K = 8, 2


def tensors():
    """Names as in transformers, and arrays [out, in]; the same on both sides."""
    import numpy as np

    rng = np.random.default_rng(0)
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qo"}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (narrow, HIDDEN) for name in "kv"}
        shapes |= {f"{at}block_sparse_moe.gate.weight": (EXPERTS, HIDDEN)}
        for expert in range(EXPERTS):
            inner = f"{at}block_sparse_moe.experts.{expert}."
            shapes |= {f"{inner}{name}.weight": (FFN, HIDDEN) for name in ("w1", "w3")}
            shapes |= {f"{inner}w2.weight": (HIDDEN, FFN)}
    return {name: rng.standard_normal(shape, dtype="float32") * 0.02 for name, shape in shapes.items()}


def tokens():
    """Ids and next ids [BATCH, TOKENS]."""
    import numpy as np

    ids = np.random.default_rng(1).integers(0, VOCAB, (BATCH, TOKENS + 1))
    return ids[:, :-1], ids[:, 1:]


def our_step(options):
    """A function that makes one step and returns the loss before it; and our name."""
    from llmctl import runtime

    runtime.configure()
    import paddle

    from llmctl_mixtral.modeling import MixtralForCausalLM

    dims = SimpleNamespace(
        layers=LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=KV_HEADS, head_dim=HIDDEN // HEADS, ffn=FFN, vocab=VOCAB,
        experts=EXPERTS, top_k=TOP_K, tied=False, norm_eps=1e-5, rope_theta=1e6, rope_scaling=None, window=None,
        balance=False, aux_loss=0.0, max_positions=2048, init_std=0.02,
    )  # fmt: skip
    model = MixtralForCausalLM(dims)
    train_step.fill(model, {name.replace("model.", "mixtral.", 1): value for name, value in tensors().items()})
    step = train_step.our_update(model, train_step.our_optimizer(model), tokens)
    return step, f"llmctl, paddle {paddle.__version__}"


def peer_step(options):
    """The same with transformers and torch."""
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    config = transformers.MixtralConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        intermediate_size=FFN, vocab_size=VOCAB, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K,
        rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=2048, use_cache=False, sliding_window=None,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).float().train()
    train_step.peer_fill(model, tensors())
    return train_step.peer_update(model, train_step.peer_optimizer(model), tokens), train_step.peer_name()


if __name__ == "__main__":
    turns.main(__doc__, __file__, {"ours": our_step, "peer": peer_step}, TOLERANCE)
