"""LLaMA models with random weights, written as a Hugging Face folder and as GGUF, for comparisons of inference.

Nothing here is loaded as a whole: a tensor is drawn, written, forgotten. The vocabulary has no words.
"""

from __future__ import annotations

import json
from pathlib import Path

SIZES = {
    "58m": dict(layers=8, hidden=512, heads=8, kv_heads=8, ffn=1376, vocab=32000),
    "134m": dict(layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, vocab=49152),
    "1b": dict(layers=22, hidden=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000),
}
CONTEXT, EPS, THETA = 2048, 1e-6, 10000.0
QUANTISED = {"int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0", "bfloat16": "MOSTLY_BF16"}


def shapes(size):
    """Names as in transformers -> shape [out, in], in the order of the file."""
    s = SIZES[size]
    hidden, narrow, ffn = s["hidden"], s["hidden"] // s["heads"] * s["kv_heads"], s["ffn"]
    found = {"model.embed_tokens.weight": (s["vocab"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(s["layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        found |= {f"{at}self_attn.{name}_proj.weight": (narrow, hidden) for name in "kv"}
        found |= {f"{at}mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        found |= {f"{at}mlp.down_proj.weight": (hidden, ffn)}
        found |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return {**found, "lm_head.weight": (s["vocab"], hidden)}


def values(name, shape):
    """A tensor's values, the same whenever they are asked for."""
    import zlib

    import numpy as np

    if len(shape) == 1:
        return np.ones(shape, np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape, dtype="float32") * np.float32(0.02)


def write_folder(folder: Path, size: str) -> Path:
    """A folder in Hugging Face's layout, in float32; the same as before if it is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    offset, header = 0, {}
    for name, shape in shapes(size).items():
        length = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes(size).items():
            file.write(values(name, shape).tobytes())
    s = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
        "num_hidden_layers": s["layers"], "hidden_size": s["hidden"], "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"], "intermediate_size": s["ffn"], "vocab_size": s["vocab"],
        "max_position_embeddings": CONTEXT, "rms_norm_eps": EPS, "rope_theta": THETA, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_gguf(file: Path, size: str) -> Path:
    """The same model for llama.cpp, in float32; needs the package ``gguf``."""
    if file.exists():
        return file
    import gguf

    s = SIZES[size]
    writer = gguf.GGUFWriter(str(file) + ".part", "llama")
    writer.add_block_count(s["layers"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(s["hidden"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(s["hidden"] // s["heads"])
    writer.add_vocab_size(s["vocab"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    places = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, shape in shapes(size).items():
        array = values(name, shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = neighbours(array, s["heads"] if "q_proj" in name else s["kv_heads"])
        if name in places:
            target = places[name]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{parts[part]}.weight"
        writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    Path(str(file) + ".part").rename(file)
    return file


def neighbours(array, heads):
    """Rows of each head in the order in which pairs that turn together are neighbours, as llama.cpp has them."""
    out, inner = array.shape
    return array.reshape(heads, 2, out // heads // 2, inner).swapaxes(1, 2).reshape(out, inner)


def quantise_gguf(source: Path, kind: str) -> Path:
    """llama.cpp's own quantization of a file in float32: Q8_0 or Q4_0; the same as before if it is there."""
    if kind == "float32":
        return source
    target = source.with_name(f"{source.stem}-{kind}.gguf")
    if target.exists():
        return target
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{QUANTISED[kind]}")
    options.nthread = 2
    part = str(target) + ".part"
    status = llama_cpp.llama_model_quantize(str(source).encode(), part.encode(), options)
    if status:
        raise SystemExit(f"llama.cpp could not quantize {source}: status {status}")
    Path(part).rename(target)
    return target
