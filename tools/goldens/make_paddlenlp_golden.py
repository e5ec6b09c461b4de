"""Records small models as PaddleNLP saves them, with its logits: config.json in its own spelling, safetensors, .pdparams.

``python tools/goldens/make_paddlenlp_golden.py`` writes tests/goldens/paddlenlp. It needs paddlenlp, which nothing else here
does; those of the repository were made with paddlenlp 3.0.0b4 and paddlepaddle 3.3.
"""

import shutil
from pathlib import Path

import numpy as np
import paddle
from paddlenlp.transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "paddlenlp"
SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=16)  # fmt: skip
ONE_HEAD = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES), True),
    "llama_linear": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, rope_scaling_type="linear", rope_scaling_factor=2.0),
        False,
    ),
    "opt": (OPTForCausalLM, OPTConfig(**ONE_HEAD, word_embed_proj_dim=16), True),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES), False),
}
IDS = [[5, 9, 11, 30, 7, 21]]


def main():
    """Writes a folder for each case."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    rng = np.random.default_rng(3)
    for name, (model_class, config, safe) in CASES.items():
        model = model_class(config)
        model.eval()
        for key, parameter in sorted(model.named_parameters()):
            mean = 1.0 if "norm" in key else 0.0
            parameter.set_value(rng.normal(mean, 0.3, parameter.shape).astype("float32"))
        if name == "opt":  # its classes tie the head when weights are loaded
            model.lm_head.decoder_weight.set_value(model.opt.embeddings.word_embeddings.weight)
        out = model(paddle.to_tensor(IDS))
        model.save_pretrained(FOLDER / name, safe_serialization=safe)
        (FOLDER / name / "generation_config.json").unlink()
        np.savez_compressed(
            FOLDER / name / "golden.npz", ids=np.array(IDS), logits=(out[0] if isinstance(out, tuple) else out).numpy()
        )


if __name__ == "__main__":
    main()
