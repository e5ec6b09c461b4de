"""Files under PaddleNLP's names and in its packing, against rearrangements written out here.

Each function draws tensors as PaddleNLP 2.8 lays them out (linears [in, out]) and says what torch's files would hold.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.checkpoint import convert as conversion
from llmctl.errors import CheckpointError

LAYERS, HIDDEN, HEADS, WIDTH, FFN, VOCAB, PLACES = 2, 32, 4, 8, 48, 96, 64


class Drawn(dict):
    """Tensors by name; drawing one adds it."""

    def __init__(self):
        super().__init__()
        self._rng = np.random.default_rng(0)

    def __call__(self, name, *shape):
        self[name] = self._rng.normal(size=shape).astype("f4")
        return self[name]

    def linear(self, name, inputs, outputs, bias=True):
        weight = self(name + ".weight", inputs, outputs)
        return {"weight": weight.T, **({"bias": self(name + ".bias", outputs)} if bias else {})}

    def norm(self, name):
        return {key: self(f"{name}.{key}", HIDDEN) for key in ("weight", "bias")}


def under(name, parts):
    return {f"{name}.{key}": value for key, value in parts.items()}


def stacked(*parts):
    """Torch's rows of several linears, one after another."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def groups(fused, counts):
    """Rows of a fused linear [in, out] as torch has them, taken group by group: ``counts`` heads of each kind."""
    kinds = {}
    for key, rows in fused.items():
        heads = np.split(rows, len(rows) // WIDTH)
        step = sum(counts)
        for kind, count in enumerate(counts):
            first = sum(counts[:kind])
            picked = [heads[g + i] for g in range(0, len(heads), step) for i in range(first, first + count)]
            kinds.setdefault(kind, {})[key] = np.concatenate(picked)
    return [kinds[kind] for kind in range(len(counts))]


def llama(prefix="llama.", kv_heads=2, fused=False, pack=False):
    draw, hf = Drawn(), {}
    hf["model.embed_tokens.weight"] = draw(prefix + "embed_tokens.weight", VOCAB, HIDDEN)
    hf["model.norm.weight"] = draw(prefix + "norm.weight", HIDDEN)
    hf["lm_head.weight"] = draw("lm_head.weight", HIDDEN, VOCAB).T
    for i in range(LAYERS):
        here, there = f"{prefix}layers.{i}.", f"model.layers.{i}."
        if fused:
            both = draw.linear(here + "self_attn.qkv_proj", HIDDEN, (HEADS + 2 * kv_heads) * WIDTH, False)
            q, k, v = groups(both, (HEADS // kv_heads, 1, 1))
            up = draw.linear(here + "mlp.gate_up_fused_proj", HIDDEN, 2 * FFN, False)
            gate, up = ({"weight": rows} for rows in (up["weight"][:FFN], up["weight"][FFN:]))
        else:
            widths = HEADS, kv_heads, kv_heads
            q, k, v = (draw.linear(f"{here}self_attn.{n}_proj", HIDDEN, w * WIDTH, False)
                       for n, w in zip("qkv", widths, strict=True))  # fmt: skip
            gate, up = (draw.linear(f"{here}mlp.{name}_proj", HIDDEN, FFN, False) for name in ("gate", "up"))
        if pack:
            hf |= under(there + "self_attn.W_pack", stacked(q, k, v))
        else:
            hf |= {f"{there}self_attn.{n}_proj.weight": x["weight"] for n, x in zip("qkv", (q, k, v), strict=True)}
        hf |= under(there + "mlp.gate_proj", gate) | under(there + "mlp.up_proj", up)
        hf |= under(there + "self_attn.o_proj", draw.linear(here + "self_attn.o_proj", HEADS * WIDTH, HIDDEN, False))
        hf |= under(there + "mlp.down_proj", draw.linear(here + "mlp.down_proj", FFN, HIDDEN, False))
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            hf[there + name] = draw(here + name, HIDDEN)
    return draw, hf


def gpt(fused=False):
    draw, hf = Drawn(), {}
    table = draw("gpt.embeddings.word_embeddings.weight", VOCAB, HIDDEN)
    draw["lm_head.weight"] = table
    hf["transformer.wte.weight"] = table
    hf["transformer.wpe.weight"] = draw("gpt.embeddings.position_embeddings.weight", PLACES, HIDDEN)
    hf |= under("transformer.ln_f", draw.norm("gpt.decoder.norm"))
    for i in range(LAYERS):
        here, there = f"gpt.decoder.layers.{i}.", f"transformer.h.{i}."
        if fused:
            qkv = groups(draw.linear(here + "self_attn.qkv_proj", HIDDEN, 3 * HIDDEN), (1, 1, 1))
        else:
            qkv = [draw.linear(f"{here}self_attn.{name}_proj", HIDDEN, HIDDEN) for name in "qkv"]
        linears = {
            "attn.c_attn": stacked(*qkv),
            "attn.c_proj": draw.linear(here + "self_attn.out_proj", HIDDEN, HIDDEN),
            "mlp.c_fc": draw.linear(here + "linear1", HIDDEN, FFN),
            "mlp.c_proj": draw.linear(here + "linear2", FFN, HIDDEN),
        }
        for name, rows in linears.items():  # torch's Conv1D is [in, out]
            hf |= under(there + name, {key: value.T for key, value in rows.items()})
        for mine, name in (("norm1", "ln_1"), ("norm2", "ln_2")):
            hf |= under(there + name, draw.norm(here + mine))
    return draw, hf


def opt(fused=False, narrow=False):
    draw, hf = Drawn(), {}
    width = 16 if narrow else HIDDEN
    table = draw("opt.embeddings.word_embeddings.weight", VOCAB, width)
    draw["lm_head.decoder_weight"] = table
    hf["model.decoder.embed_tokens.weight"] = table
    hf["model.decoder.embed_positions.weight"] = draw("opt.embeddings.position_embeddings.weight", PLACES + 2, HIDDEN)
    if narrow:
        hf |= under("model.decoder.project_in", draw.linear("opt.embeddings.project_in", width, HIDDEN, False))
        hf |= under("model.decoder.project_out", draw.linear("opt.decoder.project_out", HIDDEN, width, False))
    hf |= under("model.decoder.final_layer_norm", draw.norm("opt.decoder.final_layer_norm"))
    for i in range(LAYERS):
        here, there = f"opt.decoder.layers.{i}.", f"model.decoder.layers.{i}."
        if fused:
            qkv = groups(draw.linear(here + "self_attn.qkv_proj", HIDDEN, 3 * HIDDEN), (1, 1, 1))
        else:
            qkv = [draw.linear(f"{here}self_attn.{name}_proj", HIDDEN, HIDDEN) for name in "qkv"]
        for name, rows in zip("qkv", qkv, strict=True):
            hf |= under(f"{there}self_attn.{name}_proj", rows)
        hf |= under(there + "self_attn.out_proj", draw.linear(here + "self_attn.out_proj", HIDDEN, HIDDEN))
        hf |= under(there + "fc1", draw.linear(here + "linear1", HIDDEN, FFN))
        hf |= under(there + "fc2", draw.linear(here + "linear2", FFN, HIDDEN))
        hf |= under(there + "self_attn_layer_norm", draw.norm(here + "norm1"))
        hf |= under(there + "final_layer_norm", draw.norm(here + "norm2"))
    return draw, hf


def interleaved(decoder, layers, torch_layers, attention, first, last, first_norm=None):
    """Families whose packed projection holds each head's query, key and value, as in torch's own files."""
    draw, hf = Drawn(), {}
    hf["transformer.word_embeddings.weight"] = draw(decoder + "word_embeddings.weight", VOCAB, HIDDEN)
    if first_norm:
        hf |= under("transformer." + first_norm, draw.norm(decoder + first_norm))
    hf |= under("transformer." + last, draw.norm(decoder + last))
    for i in range(LAYERS):
        here, there = f"{decoder}{layers}.{i}.", f"transformer.{torch_layers}.{i}."
        hf |= under(
            f"{there}{attention}.query_key_value",
            draw.linear(f"{here}{attention}.query_key_value", HIDDEN, 3 * HIDDEN),
        )
        hf |= under(f"{there}{attention}.dense", draw.linear(f"{here}{attention}.dense", HIDDEN, HIDDEN))
        hf |= under(there + "mlp.dense_h_to_4h", draw.linear(here + "mlp.dense_h_to_4h", HIDDEN, first))
        hf |= under(there + "mlp.dense_4h_to_h", draw.linear(here + "mlp.dense_4h_to_h", first, HIDDEN))
        for name in ("input_layernorm", "post_attention_layernorm"):
            hf |= under(there + name, draw.norm(here + name))
    return draw, hf


def bloom():
    draw, hf = interleaved("bloom.", "h", "h", "self_attention", 4 * HIDDEN, "ln_f", "word_embeddings_layernorm")
    draw["lm_head.decoder_weight"] = draw["bloom.word_embeddings.weight"]
    return draw, hf


def chatglm():
    draw, hf = interleaved("chatglm.transformer.", "layers", "layers", "attention", FFN, "final_layernorm")
    hf["lm_head.weight"] = draw["chatglm.transformer.word_embeddings.weight"]
    return draw, hf


def chatglm2(apart=False):
    draw, hf, kv_heads = Drawn(), {}, 2
    decoder = "chatglm_v2."
    hf["transformer.embedding.word_embeddings.weight"] = draw(
        decoder + "embedding.word_embeddings.weight", VOCAB, HIDDEN
    )
    hf["transformer.encoder.final_layernorm.weight"] = draw(decoder + "encoder.final_layernorm.weight", HIDDEN)
    hf |= under("transformer.output_layer", draw.linear(decoder + "output_layer", HIDDEN, VOCAB, False))
    for i in range(LAYERS):
        here, there = f"{decoder}encoder.layers.{i}.", f"transformer.encoder.layers.{i}."
        widths = {"query": HIDDEN, "key": kv_heads * WIDTH, "value": kv_heads * WIDTH}
        up = draw.linear(here + "mlp.dense_h_to_4h", HIDDEN, 2 * FFN, False)
        if apart:
            parts = [draw.linear(f"{here}self_attention.{name}", HIDDEN, width) for name, width in widths.items()]
            hf |= under(there + "self_attention.query_key_value", stacked(*parts))
            up = {"weight": np.concatenate([up["weight"][0::2], up["weight"][1::2]])}
        else:
            packed = draw.linear(here + "self_attention.query_key_value", HIDDEN, sum(widths.values()))
            hf |= under(there + "self_attention.query_key_value", packed)
        hf |= under(there + "mlp.dense_h_to_4h", up)
        hf |= under(there + "mlp.dense_4h_to_h", draw.linear(here + "mlp.dense_4h_to_h", FFN, HIDDEN, False))
        dense = draw.linear(here + "self_attention.dense", HIDDEN, HIDDEN, False)
        hf |= under(there + "self_attention.dense", dense)
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            hf[there + name] = draw(here + name, HIDDEN)
    return draw, hf


def qwen(fused=False):
    draw, hf = Drawn(), {}
    hf["transformer.wte.weight"] = draw("qwen.wte.weight", VOCAB, HIDDEN)
    hf["transformer.ln_f.weight"] = draw("qwen.ln_f.weight", HIDDEN)
    hf["lm_head.weight"] = draw("lm_head.weight", HIDDEN, VOCAB).T
    for i in range(LAYERS):
        here, there = f"qwen.h.{i}.", f"transformer.h.{i}."
        hf |= under(there + "attn.c_attn", draw.linear(here + "attn.c_attn", HIDDEN, 3 * HIDDEN))
        if fused:
            both = draw.linear(here + "mlp.gate_up_fused_proj", HIDDEN, 2 * FFN, False)["weight"]
            hf |= {there + "mlp.w2.weight": both[:FFN], there + "mlp.w1.weight": both[FFN:]}
        else:
            for name in ("w1", "w2"):
                hf |= under(f"{there}mlp.{name}", draw.linear(f"{here}mlp.{name}", HIDDEN, FFN, False))
        hf |= under(there + "attn.c_proj", draw.linear(here + "attn.c_proj", HIDDEN, HIDDEN, False))
        hf |= under(there + "mlp.c_proj", draw.linear(here + "mlp.c_proj", FFN, HIDDEN, False))
        for name in ("ln_1.weight", "ln_2.weight"):
            hf[there + name] = draw(here + name, HIDDEN)
    return draw, hf


CASES = {
    "llama": ("llama", llama, {"kv_heads": 2}, "native"),
    "llama fused": ("llama", lambda: llama(fused=True), {"kv_heads": 2}, "paddlenlp"),
    "baichuan": ("baichuan", lambda: llama(kv_heads=4, pack=True), {}, "paddlenlp"),
    "gpt3": ("gpt3", gpt, {"ffn": FFN}, "paddlenlp"),
    "gpt3 fused": ("gpt3", lambda: gpt(fused=True), {"ffn": FFN}, "paddlenlp"),
    "opt": ("opt", opt, {"embed": HIDDEN}, "paddlenlp"),
    "opt fused": ("opt", lambda: opt(fused=True), {"embed": HIDDEN}, "paddlenlp"),
    "opt narrow": ("opt", lambda: opt(narrow=True), {"embed": 16}, "paddlenlp"),
    "bloom": ("bloom", bloom, {}, "native"),
    "chatglm": ("chatglm", chatglm, {"bos": 94, "gmask": 93, "mask": 92}, "paddlenlp"),
    "chatglm2": ("chatglm2", chatglm2, {}, "paddlenlp"),
    "chatglm2 apart": ("chatglm2", lambda: chatglm2(apart=True), {}, "paddlenlp"),
    "qwen": ("qwen", qwen, {"double_ffn": 2 * FFN}, "native"),
    "qwen fused": ("qwen", lambda: qwen(fused=True), {"double_ffn": 2 * FFN}, "paddlenlp"),
}


def opened(folder, family, changes):
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, changes)
    (folder / "config.json").write_text(json.dumps(plugin.card.config_from_dims(dims)))
    return conversion.open_source(folder, plugin, dims)


def write(folder, tensors, name="model_state.pdparams"):
    import paddle

    paddle.save(
        {key: paddle.to_tensor(np.ascontiguousarray(value)) for key, value in tensors.items()}, f"{folder / name}"
    )


def check_hf(source, target, expected):
    conversion.convert(source, target, "hf")
    found = load_file(target / "model.safetensors")
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_arrives_where_torch_has_it(tmp_path, case):
    family, make, changes, layout = CASES[case]
    tensors, expected = make()
    write(tmp_path, tensors)
    source = opened(tmp_path, family, changes)
    assert source.layout == layout
    check_hf(source, tmp_path / "hf", expected)


def columns(rank, values, blocks=1):
    """Columns of a rank: its share of each of some equal blocks."""
    return np.concatenate([np.split(b, 2, axis=-1)[rank] for b in np.split(values, blocks, axis=-1)], axis=-1)


def rank_of(name, values, rank):
    """What PaddleNLP gives a rank of two."""
    if any(key in name for key in ("o_proj.w", "down_proj.w", "linear2.w", "out_proj.w", "embed_tokens", "word_emb")):
        return np.split(values, 2)[rank]
    if name == "lm_head.weight":  # [hidden, vocab], or the embedding itself
        return np.split(values, 2, axis=1 if values.shape[0] == HIDDEN else 0)[rank]
    if "gate_up_fused_proj" in name:
        return columns(rank, values, 2)
    return columns(rank, values) if "_proj" in name or "linear1" in name else values


@pytest.mark.parametrize("case", ["llama", "llama fused", "gpt3", "gpt3 fused"])
def test_files_of_two_ranks_are_put_together(tmp_path, case):
    family, make, changes, _ = CASES[case]
    tensors, expected = make()
    for rank in range(2):
        write(tmp_path, {n: rank_of(n, v, rank) for n, v in tensors.items()}, f"model_state.tp0{rank}.pdparams")
    check_hf(opened(tmp_path, family, changes), tmp_path / "hf", expected)


def test_key_value_heads_that_every_rank_holds_whole_are_taken_once(tmp_path):
    tensors, expected = chatglm2(apart=True)
    row = ("word_embeddings", "self_attention.dense", "dense_4h_to_h")
    column = ("self_attention.query", "dense_h_to_4h", "output_layer")
    for rank in range(2):
        part = dict(tensors)
        for name, values in tensors.items():
            if any(key in name for key in row):
                part[name] = np.split(values, 2)[rank]
            elif any(key in name for key in column):
                part[name] = columns(rank, values)
        write(tmp_path, part, f"model_state.tp0{rank}.pdparams")
    check_hf(opened(tmp_path, "chatglm2", {}), tmp_path / "hf", expected)


def test_names_that_do_not_belong_and_names_that_are_absent_are_listed(tmp_path):
    tensors, _ = gpt(fused=True)
    tensors["gpt.decoder.layers.0.self_attn.q_proj.weight"] = np.zeros((HIDDEN, HIDDEN), "f4")
    tensors["gpt.surprise.weight"] = np.zeros(3, "f4")
    del tensors["gpt.decoder.layers.1.linear1.bias"]
    write(tmp_path, tensors)
    with pytest.raises(CheckpointError) as error:
        opened(tmp_path, "gpt3", {"ffn": FFN})
    assert "missing: gpt.decoder.layers.1.linear1.bias" in str(error.value)
    assert "gpt.surprise.weight" in str(error.value) and "layers.0.self_attn.q_proj.weight" in str(error.value)


def test_a_head_that_differs_from_the_shared_embedding_is_refused(tmp_path):
    tensors, _ = gpt()
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    write(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="unexpected: lm_head.weight"):
        opened(tmp_path, "gpt3", {"ffn": FFN})
