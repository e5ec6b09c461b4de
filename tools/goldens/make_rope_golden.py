"""Records RoPE of transformers: frequencies of scaled contexts, and attention that rotates only a part of each head.

``python tools/goldens/make_rope_golden.py`` writes ``scaling.json`` and ``partial.npz`` into tests/goldens/rope. Those of the
repository were made with torch 2.14.1 and transformers 5.24.0; no test needs them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Glm4Config, LlamaConfig, StableLmConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm4.modeling_glm4 import Glm4Attention, Glm4RotaryEmbedding
from transformers.models.stablelm.modeling_stablelm import StableLmAttention, StableLmRotaryEmbedding

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "rope"
SHORT = [1.0, 1.02, 1.1, 1.3, 1.7, 2.0, 2.4, 3.0]
LONG = [1.0, 1.5, 2.25, 4.0, 9.0, 20.0, 41.0, 64.5]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}


def config(head_dim, theta, longest, scaling, **outside):
    """The keys of a config.json that RoPE depends on."""
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "head_dim": head_dim}
    return {**sizes, "rope_theta": theta, "max_position_embeddings": longest, "rope_scaling": scaling, **outside}


def yarn(factor, trained, **more):
    """A ``rope_scaling`` of YaRN."""
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained, **more}


CONFIGS = {
    "Qwen2.5, as its page says to edit config.json": config(128, 1e6, 32768, yarn(4.0, 32768)),
    "Qwen3, longer positions": config(128, 1e6, 131072, yarn(4.0, 32768)),
    "legacy key": config(16, 1e4, 4096, {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}),
    "trained length is max_position_embeddings": config(16, 1e4, 2048, {"rope_type": "yarn", "factor": 2.5}),
    "DeepSeek-V2": config(
        64, 1e4, 163840, yarn(40, 4096, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)
    ),
    "two scales": config(64, 1e4, 163840, yarn(40, 4096, mscale=1.0, mscale_all_dim=0.5)),
    "one scale has no effect": config(64, 1e4, 163840, yarn(40, 4096, mscale=0.707)),
    "attention factor": config(32, 1e4, 8192, yarn(8.0, 1024, attention_factor=0.83, beta_fast=16, beta_slow=2)),
    "fractions of pairs": config(64, 150000.0, 131072, yarn(32.0, 4096, beta_fast=32.0, beta_slow=1.0, truncate=False)),
    "factor from the lengths": config(16, 1e4, 4096, yarn(None, 512)),
    "no ramp": config(8, 1e4, 64, yarn(2.0, 64, beta_fast=1.0, beta_slow=1.0)),
    "factor 1": config(16, 1e4, 4096, yarn(1.0, 4096)),
    "LongRoPE": config(16, 1e4, 131072, {**LONGROPE, "original_max_position_embeddings": 4096}),
    "LongRoPE, its factor": config(16, 1e4, 4096, {**LONGROPE, "factor": 32.0}),
    "LongRoPE, attention factor": config(16, 1e4, 131072, {**LONGROPE, "attention_factor": 1.19}),
    "Phi-3: trained length outside": config(16, 1e4, 131072, LONGROPE, original_max_position_embeddings=4096),
}


def record_scaling():
    """For each configuration its frequencies, at the trained length and beyond, and the factor of cosines and sines."""
    rows = []
    for about, keys in CONFIGS.items():
        made = LlamaConfig(**json.loads(json.dumps(keys)))
        made.standardize_rope_params()
        parameters = made.rope_parameters
        trained = parameters["original_max_position_embeddings"]
        rule = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
        (within, factor), (beyond, _) = (rule(made, "cpu", seq_len=length) for length in (trained, trained + 1))
        rows.append({"about": about, "config": keys, "trained": trained, "factor": float(factor),
                     "within": within.double().tolist(), "beyond": beyond.double().tolist()})  # fmt: skip
    (FOLDER / "scaling.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def record_partial():
    """Weights, input and output of attention layers in which a part of each head is rotated."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "attention_dropout": 0.0}
    arrays = {}
    for name, kind, layer, rotary, part in (
        ("stablelm", StableLmConfig, StableLmAttention, StableLmRotaryEmbedding, 0.25),
        ("glm4", Glm4Config, Glm4Attention, Glm4RotaryEmbedding, 0.5),
    ):
        heads = {"head_dim": 8} if name == "glm4" else {}
        made = kind(
            **sizes,
            **heads,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": part},
        )
        made._attn_implementation = "eager"
        rng = np.random.default_rng(7)
        attention = layer(made, layer_idx=0).double().eval()
        with torch.no_grad():
            for key, parameter in sorted(attention.named_parameters()):
                parameter.copy_(torch.tensor(rng.normal(0, 0.3, parameter.shape)))
                arrays[f"{name}.{key}"] = parameter.numpy()
            x = torch.tensor(rng.normal(0, 1, (1, 6, 16)))
            positions = torch.arange(6)[None]
            mask = torch.full((6, 6), float("-inf"), dtype=torch.float64).triu(1)[None, None]
            cos, sin = rotary(made)(x, positions)
            arrays[f"{name}.x"] = x.numpy()
            arrays[f"{name}.y"] = attention(x, position_embeddings=(cos, sin), attention_mask=mask)[0].numpy()
            arrays[f"{name}.width"] = np.array(cos.shape[-1])
    np.savez_compressed(FOLDER / "partial.npz", **arrays)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    record_scaling()
    record_partial()
