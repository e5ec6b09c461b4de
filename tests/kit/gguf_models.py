"""Models in GGUF files, written by the package ``gguf``, by an independent statement of how llama.cpp orders heads."""

import json

import gguf
import numpy as np

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint.formats import gguf as files
from llmctl.checkpoint.formats.safetensors import PlannedTensor, write_file

SMALL = {"hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 96}
WIDE = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 256, "vocab": 32}
"""Sizes with rows of whole blocks of 256."""
PLACES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.", "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.", "self_attn.v_proj.": "attn_v.", "self_attn.o_proj.": "attn_output.", "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.", "mlp.down_proj.": "ffn_down.", "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.", "self_attn.q_norm.": "attn_q_norm.", "self_attn.k_norm.": "attn_k_norm.",
    "block_sparse_moe.gate.": "ffn_gate_inp.",
}  # fmt: skip
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


class Model:
    """A random model of a family: ``plugin``, ``dims``, and its tensors by Hugging Face's names in ``values``."""

    def __init__(self, family, seed=0, **changes):
        self.plugin = plugins.load(family)
        settable = {setting.name for setting in self.plugin.card.settings if setting.key}
        small = {name: size for name, size in SMALL.items() if name in settable}
        self.dims = tiny_dims(self.plugin.card, {**small, **changes})
        rng = np.random.default_rng(seed)
        self.values = {}
        for tensor in self.plugin.card.expand(self.dims):
            shape = tensor.shape[::-1] if tensor.transpose else tensor.shape
            value = (rng.standard_normal(shape) * 0.05).astype("f4")
            parts = [self.values[tensor.torch_name]] if tensor.torch_name in self.values else []
            self.values[tensor.torch_name] = np.concatenate([*parts, value])

    def folder(self, path, dtype="float32"):
        """Writes a folder in Hugging Face's layout."""
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self.plugin.card.config_from_dims(self.dims)))
        stored = {name: value.astype("f2") if dtype == "float16" else value for name, value in self.values.items()}
        planned = {name: PlannedTensor(value.shape, dtype, value.tofile) for name, value in stored.items()}
        write_file(path / "model.safetensors", planned)
        return path

    def gguf(self, path, architecture, kind="F32", neighbours=False, change=None, facts=(), **split):
        """Writes a file whose matrices are of a type; ``change`` may change the dictionary of tensors (name -> array).

        With ``split_max_tensors`` the model is written in parts, whose names the writer makes of the file's.
        """
        dims, writer = self.dims, gguf.GGUFWriter(str(path), architecture, **split)
        writer.add_block_count(dims.layers)
        writer.add_context_length(dims.max_positions)
        writer.add_embedding_length(dims.hidden)
        writer.add_feed_forward_length(dims.get("double_ffn", dims.ffn))
        writer.add_head_count(dims.heads)
        writer.add_head_count_kv(dims.kv_heads)
        writer.add_key_length(dims.head_dim)
        rms = self.plugin.card.norm == "rmsnorm"
        (writer.add_layer_norm_rms_eps if rms else writer.add_layer_norm_eps)(dims.norm_eps)
        if "rope_theta" in dims:
            writer.add_rope_freq_base(dims.rope_theta)
        if "experts" in dims:
            writer.add_expert_count(dims.experts)
            writer.add_expert_used_count(dims.top_k)
        if "expert_ffn" in dims:
            writer.add_expert_feed_forward_length(dims.expert_ffn)
            writer.add_expert_shared_feed_forward_length(dims.shared_ffn)
        for key, value in facts:
            writer.add_key_value(key, *value)
        tensors = self.mapped(architecture) if architecture in ARRANGED else self.tensors(neighbours)
        if change:
            change(tensors)
        for name, value in tensors.items():
            if kind == "F32" or value.ndim == 1 or "gate_inp" in name:
                writer.add_tensor(name, value)
                continue
            if kind == "F16":
                writer.add_tensor(name, value.astype("f2"))
                continue
            of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, blocks(value, of), raw_dtype=of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def tensors(self, neighbours):
        """Name in GGUF -> array."""
        found = {}
        for name, value in self.values.items():
            for part, heads in (("q_proj", self.dims.heads), ("k_proj", self.dims.kv_heads)):
                if neighbours and f"{part}." in name:
                    value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
            layer = f"blk.{name.split('.')[2]}." if name.startswith("model.layers.") else ""
            if "experts." in name:
                *_, expert, which, _ = name.split(".")
                key = f"{layer}{EXPERTS[which]}.weight"
                found.setdefault(key, np.zeros((self.dims.experts, *value.shape), "f4"))[int(expert)] = value
                continue
            place = next(target for source, target in PLACES.items() if source in name)
            found[f"{layer}{place}{name.rpartition('.')[2]}"] = value
        return found

    def mapped(self, architecture):
        """Name in GGUF -> array, by the package's own table of names, arranged as llama.cpp's conversion does it."""
        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        names = gguf.get_tensor_name_map(kind, self.dims.layers)
        found, experts = {}, {}
        for name, value in self.values.items():
            if ".experts." in name:
                before, _, after = name.partition(".experts.")
                experts.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(value)
                continue
            for one, part in ARRANGED[architecture](name, value, self.dims):
                found[names.get_name(one, try_suffixes=(".weight", ".bias")) or one] = part
        return found | {
            names.get_name(name, try_suffixes=(".weight",)): np.stack(values) for name, values in experts.items()
        }


def _neighbours(value, heads):
    return value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)


def _of_baichuan(name, value, dims):
    if "W_pack" not in name:
        return [(name, value)]
    parts, layer = np.split(value, 3), name.split(".")[2]
    return [
        (f"blk.{layer}.attn_{part}.weight", _neighbours(rows, dims.heads) if part in "qk" else rows)
        for part, rows in zip("qkv", parts, strict=True)
    ]


def _of_bloom(name, value, dims):
    if "query_key_value" in name:
        value = value.reshape(dims.heads, 3, dims.head_dim, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
    return _without_prefix(name, value, dims)


def _of_gpt2(name, value, dims):
    return [(name, value.T.copy() if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else value)]


def _as_it_is(name, value, dims):
    return [(name, value)]


def _without_prefix(name, value, dims):
    return [(name.removeprefix("transformer."), value)]


ARRANGED = {
    "baichuan": _of_baichuan, "bloom": _of_bloom, "gpt2": _of_gpt2, "qwen": _as_it_is, "qwen2moe": _as_it_is, "chatglm": _without_prefix,
}  # fmt: skip
"""Architecture -> what a tensor of Hugging Face's becomes in GGUF."""


def mixed(target, path, other, part):
    """Writes the model of a file with the tensors whose names have a part as another file stores them."""
    one, two, planned = files.read(path), files.read(other), {}
    for name in one.tensors:
        stored = (two if part in name else one).tensors[name]
        raw = np.fromfile(stored.file, np.uint8, stored.nbytes, offset=stored.offset)
        planned[name] = files.Planned(stored.shape, stored.type, lambda raw=raw: raw)
    files.write(target, one.metadata, planned)
    return target


def blocks(value, kind, seed=1):
    """Blocks of a type: rounded where the package does, else random bytes with small scales."""
    try:
        return gguf.quantize(value, kind)
    except NotImplementedError:
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        raw = np.random.default_rng(seed).integers(
            0, 256, (*value.shape[:-1], value.shape[-1] // size, nbytes), dtype=np.uint8
        )
        for start in HALVES.get(kind.name, ()):
            raw[..., start : start + 2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
        return raw.reshape(*value.shape[:-1], -1)


HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where the float16 numbers of blocks are that the package does not write."""
