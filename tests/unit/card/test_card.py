"""Cards: shape algebra, expansion, settings from config.json, and what core derives from them."""

import math
import re
import warnings

import pytest

from llmctl import (
    HF_DECODER,
    HF_DECODER_ROWS,
    ConfigField,
    Dims,
    Family,
    Moe,
    Param,
    Size,
    Unsupported,
    linear_rows,
    norm_rows,
    plugins,
)
from llmctl.card import fill_decoder, slots
from llmctl.card.capabilities import Supported
from llmctl.card.presets import above_zero, fixed_fields, required_fields
from llmctl.card.shapes import evaluate, parse_shape
from llmctl.card.sharding import Segment
from llmctl.card.support import require, state
from llmctl.card.validate import validate
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.plugins import defaults


def make_card(*params, **fields):
    fields.setdefault("settings", (*HF_DECODER, ConfigField("experts", "num_experts", 1)))
    fields.setdefault("sizes", {})
    return Family(name="x", architectures=("X",), params=params, modeling="m.n:C", torch_prefix="model.", **fields)


DIMS = Dims(layers=2, hidden=48, heads=6, kv_heads=2, head_dim=8, ffn=96, vocab=100, experts=3, tied=False)


def test_shape_terms_keep_memory_order():
    axis = parse_shape("hidden, heads*3*head_dim + kv_heads*head_dim")[1]
    assert [term.factors for term in axis.terms] == [("heads", 3, "head_dim"), ("kv_heads", "head_dim")]
    assert axis.size(DIMS) == 6 * 3 * 8 + 2 * 8


@pytest.mark.parametrize("text", ["hidden,,ffn", "hidden*", "2x", "a+ +b", ""])
def test_malformed_shape_is_refused(text):
    with pytest.raises(ValueError, match="neither a symbol nor a whole number"):
        parse_shape(text)


def test_evaluate_divides_exactly_or_not_at_all():
    assert evaluate("hidden/heads", DIMS) == 8
    assert evaluate("ffn*2/3", DIMS) == 64
    with pytest.raises(ValueError, match="48 is not divisible by"):
        evaluate("hidden/5", DIMS)


def test_expansion_covers_layers_and_experts():
    card = make_card(Param("layers.{layer}.experts.{expert}.w.weight", "hidden, ffn"))
    names = [tensor.name for tensor in card.expand(DIMS)]
    assert len(names) == len(set(names)) == 2 * 3
    assert names[-1] == "layers.1.experts.2.w.weight"


def test_a_row_named_twice_is_refused():
    card = make_card(Param("a.weight", "hidden"), Param("a.weight", "ffn"))
    with pytest.raises(ValueError, match=r"names the tensor a\.weight twice"):
        card.expand(DIMS)


def test_equal_dims_are_expanded_once_and_callers_may_change_the_list(monkeypatch):
    card, calls = make_card(Param("a.weight", "hidden, ffn")), []
    made = Family._table
    monkeypatch.setattr(Family, "_table", lambda self, dims: calls.append(dims) or made(self, dims))
    first = card.expand(DIMS)
    first.clear()
    assert len(card.expand(Dims(**DIMS))) == 1 and len(calls) == 1
    assert len(card.expand(dict(DIMS))) == 1 and len(card.expand(DIMS.replace(hidden=2))) == 1 and len(calls) == 3


def test_conditional_rows_follow_their_setting():
    card = make_card(Param("/head.weight", "hidden, vocab", when="not tied"))
    assert [tensor.name for tensor in card.expand(DIMS)] == ["head.weight"]
    assert card.expand(DIMS.replace(tied=True)) == []


def test_a_setting_with_a_value_for_each_layer_decides_for_each():
    rows = (Param("layers.{layer}.a", "hidden", when="sparse"), Param("layers.{layer}.b", "hidden", when="not sparse"))
    dims = DIMS.replace(layers=3, sparse=(True, False, True))
    names = [tensor.name for tensor in make_card(*rows).expand(dims)]
    assert names == ["layers.0.a", "layers.2.a", "layers.1.b"]
    outside = make_card(Param("a", "hidden", when="sparse"), Param("b", "hidden", when="not sparse"))
    assert [tensor.name for tensor in outside.expand(dims)] == ["a"]


def test_a_bias_is_as_long_as_the_last_axis_and_has_the_slot_beside_its_weights():
    assert linear_rows("q", "hidden, kv_heads*head_dim", "qkv.1", bias_when="bias", torch_layout="same") == (
        Param("q.weight", "hidden, kv_heads*head_dim", slot="qkv.1", torch_layout="same"),
        Param("q.bias", "kv_heads*head_dim", slot="qkv_bias.1", when="bias"),
    )
    assert linear_rows("up", "hidden, ffn", when="dense")[1] == Param("up.bias", "ffn", when="dense")
    assert norm_rows("n", "ln", "embed", when="last") == (
        Param("n.weight", "embed", kind="norm", slot="ln", when="last"),
        Param("n.bias", "embed", slot="ln_bias", when="last"),
    )


def test_only_linears_are_transposed():
    card = make_card(
        Param("e.weight", "vocab, hidden", kind="embed"),
        Param("l.weight", "hidden, ffn"),
        Param("c.weight", "hidden, ffn", torch_layout="same"),
        Param("n.weight", "hidden", kind="norm"),
    )
    assert [tensor.transpose for tensor in card.expand(DIMS)] == [False, True, False, False]


def test_dims_from_config_fill_in_what_is_derived():
    config = dict(num_hidden_layers=1, hidden_size=48, num_attention_heads=6, intermediate_size=9, vocab_size=7)
    dims = make_card(Param("a", "kv_heads*head_dim")).dims_from_config(config)
    assert (dims.kv_heads, dims.head_dim, dims.tied) == (6, 8, False)
    assert make_card(Param("a", "hidden")).dims_from_config({**config, "head_dim": 16}).head_dim == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "no 'hidden_size', which the family x needs"),
        ({"hidden_size": 50}, "50 is not divisible by heads=6"),
        ({"hidden_size": "48"}, "must be a whole number above 0"),
        ({"hidden_size": 0}, "must be a whole number above 0"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported by x; supported: 'silu'"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 must be a whole number above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' must be true or false"),
        ({"initializer_range": "0.02"}, "initializer_range='0.02' must be a number, 0 or above"),
        ({"initializer_range": float("nan")}, "must be a number, 0 or above"),
    ],
)
def test_bad_config_is_named(change, message):
    card = make_card(
        Param("a", "hidden"), settings=(*HF_DECODER, ConfigField("act", "hidden_act", "silu", allowed=("silu",)))
    )
    config = dict(num_hidden_layers=1, hidden_size=48, num_attention_heads=6, intermediate_size=9, vocab_size=7)
    with pytest.raises(ConfigError, match=message):
        card.dims_from_config({**config, **change})


def test_settings_of_one_kind_are_required_fixed_or_numbers_above_zero():
    ratio = ConfigField("ratio", "rope_ratio", 1, check=above_zero("rope_ratio"))
    settings = *required_fields(layers="num_layers"), *fixed_fields(0, 0.0, dropout="hidden_dropout"), ratio
    card = Family("f", ("F",), (Param("a", "layers"),), settings, {}, "m:C")
    assert dict(card.dims_from_config({"num_layers": 2})) == {"layers": 2, "dropout": 0.0, "ratio": 1}
    assert card.dims_from_config({"num_layers": 2, "hidden_dropout": 0, "rope_ratio": 0.5}).ratio == 0.5
    for change, message in (
        ({"num_layers": None}, "has no 'num_layers'"),
        ({"hidden_dropout": 0.1}, "hidden_dropout=0.1 is not supported by f; supported: 0, 0.0"),
        ({"rope_ratio": 0}, "rope_ratio=0 must be a number above 0"),
        ({"rope_ratio": True}, "rope_ratio=True must be a number above 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            card.dims_from_config({"num_layers": 2, **change})


def test_dims_cannot_be_changed_or_misspelt():
    with pytest.raises(AttributeError, match="immutable"):
        DIMS.hidden = 1
    with pytest.raises(AttributeError, match="have no 'hiden'"):
        _ = DIMS.hiden
    assert DIMS.replace(hidden=1).hidden == 1 and DIMS.hidden == 48


def test_validate_lists_every_problem():
    problems = validate(make_card(Param("a.{depth}.w", "hidden, latent"), Param("b", "hidden", when="not odd")))
    assert any("'latent' is not a field" in line for line in problems)
    assert any("unknown placeholder {depth}" in line for line in problems)
    assert any("'odd' is not a field" in line for line in problems)


STANDARD = [
    *HF_DECODER_ROWS[:1],
    *(Param("layers.{layer}." + slot, "hidden", slot=slot) for slot in ("ln", "qkv", "out", "ffn_ln", "ffn1", "ffn2")),
]


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        (make_card(*STANDARD, norm="layernorm", activation="gelu-tanh", position="other"), ""),
        (
            make_card(Param("{layer}", "hidden", slot="qvk.1")),
            "{layer}: slot='qvk.1' is unknown in a layer; known: ln, ln_b",
        ),
        (make_card(Param("{layer}", "hidden", slot="qkv.k")), "{layer}: slot='qkv.k' is unknown"),
        (make_card(Param("a", "hidden", slot="qkv")), "a: slot='qkv' is unknown outside the layers; known: embed, pos"),
        (make_card(Param("a", "hidden", slot="head.0")), "a: slot='head.0' is unknown outside the layers"),
        (make_card(*STANDARD, Param("a", "hidden")), "a has no slot, so the fused decoder would ignore it"),
        (make_card(Param("a", "hidden"), norm="layer_norm"), "norm='layer_norm' is unknown; known: rmsnorm, layernorm"),
        (make_card(Param("a", "hidden"), activation="silu"), "activation='silu' is unknown; known: swiglu"),
        (make_card(Param("a", "hidden"), position="rope"), "position='rope' is unknown; known: rope-neox"),
        (
            make_card(Param("a", "hidden"), claims={"loar": Unsupported("x")}),
            "claims: 'loar' is not a method; known: pre",
        ),
        (
            make_card(*STANDARD, Param("layers.{layer}.o.bias", "hidden")),
            "layers.{layer}.o.bias has no slot, so the fused",
        ),
        (make_card(*STANDARD, Param("layers.{layer}.b", "hidden"), claims={"fused": Unsupported("odd")}), ""),
        (make_card(*STANDARD[1:], Param("layers.{layer}.b", "hidden")), ""),
    ],
)
def test_a_name_that_no_kernel_knows_and_a_tensor_that_fusing_would_lose_are_problems(card, problem):
    found = validate(card)
    assert [line.startswith(problem) for line in found] == ([True] if problem else []), found


def test_a_family_with_a_norm_of_its_own_has_no_fused_path():
    assert fill_decoder.fill_decoder(make_card(*HF_DECODER_ROWS, position="none"), DIMS).kv_heads == 2
    card = make_card(*HF_DECODER_ROWS, position="none", norm="other")
    with pytest.raises(UnsupportedError, match="the fused decoder does not support x: norm 'other' has no kernel"):
        fill_decoder.fill_decoder(card, DIMS)
    assert state(card, "fused") == Unsupported("the fused decoder has no kernel for the family's norm")


def test_card_hash_changes_with_the_table_only():
    one = make_card(Param("a", "hidden"))
    assert one.hash() == make_card(Param("a", "hidden"), sizes={"s": Size("", 1, {})}).hash()
    assert one.hash() != make_card(Param("a", "ffn")).hash()


def test_column_and_row_parallel_follow_from_the_symbol():
    card = make_card(
        Param("q.weight", "hidden, heads*head_dim"),
        Param("o.weight", "heads*head_dim, hidden"),
        Param("o.bias", "hidden"),
        Param("e.weight", "vocab, hidden", kind="embed"),
        Param("p.weight", "hidden, ffn", shard=()),
    )
    splits = defaults.tensor_parallel_rules(card, DIMS, 2)
    assert {name: (s.axis, s.symbol) for name, s in splits.items()} == {
        "q.weight": (1, "heads"),
        "o.weight": (0, "heads"),
        "e.weight": (0, "vocab"),
    }


def test_three_qkv_layouts_need_no_flags():
    dims = DIMS.replace(heads=4, kv_heads=2, head_dim=8)
    card = make_card(
        Param("packed", "hidden, 3*heads*head_dim"),
        Param("interleaved", "hidden, heads*3*head_dim"),
        Param("mqa", "hidden, heads*head_dim + kv_heads*head_dim + kv_heads*head_dim"),
    )
    splits = defaults.tensor_parallel_rules(card, dims, 2)
    assert splits["packed"].segments == (Segment(3, 4, 8),)
    assert splits["interleaved"].segments == (Segment(1, 4, 24),)
    assert splits["mqa"].segments == (Segment(1, 4, 8), Segment(1, 2, 8), Segment(1, 2, 8))


def test_kv_heads_fewer_than_ranks_are_replicated():
    card = make_card(Param("k", "hidden, kv_heads*head_dim"))
    assert defaults.tensor_parallel_rules(card, DIMS, 6)["k"].segments == (Segment(1, 2, 8, replicas=3),)


def test_indivisible_degree_names_symbol_size_and_remedy():
    card = make_card(Param("q", "hidden, heads*head_dim"))
    with pytest.raises(
        ValueError, match=r"heads=6 is not divisible by tensor_parallel_degree=4; use one of 1, 2, 3, 6"
    ):
        defaults.tensor_parallel_rules(card, DIMS, 4)


def test_quant_layers_leave_out_router_and_head():
    card = make_card(
        Param("layers.{layer}.q.weight", "hidden, ffn", slot="qkv"),
        Param("layers.{layer}.gate.weight", "hidden, experts", kind="router"),
        Param("/head.weight", "hidden, vocab"),
    )
    targets = defaults.quant_layers(card, DIMS, "gptq")
    assert [(t.name, t.in_features, t.out_features) for t in targets] == [
        ("layers.0.q.weight", 48, 96),
        ("layers.1.q.weight", 48, 96),
    ]
    with pytest.raises(ValueError, match="method='gtpq' is unknown; known: ptq-a8w8"):
        defaults.quant_layers(card, DIMS, "gtpq")


def test_fused_graph_orders_the_parts_of_a_slot():
    rows = [row for row in HF_DECODER_ROWS if not row.slot.startswith("ffn1")]
    experts = "layers.{layer}.{expert}."
    up = [Param(experts + name, "hidden, ffn", slot=slot) for name, slot in (("b", "ffn1.10"), ("a", "ffn1.2"))]
    gate = Param("layers.{layer}.gate", "hidden, experts", kind="router", slot="gate")
    card = make_card(*rows, *up, gate, position="none", moe=Moe("softmax-topk", 2))
    filled = fill_decoder.fill_decoder(card, DIMS)
    assert filled.layers[1]["qkv"] == tuple(f"layers.1.self_attn.{part}_proj.weight" for part in "qkv")
    assert filled.layers[1]["ffn1"] == tuple(f"layers.1.{expert}.{name}" for expert in range(3) for name in "ab")
    assert filled.experts.count == 3


def rows_with(**shapes):
    """The usual rows; those of the slots given have other shapes, or are left out."""
    rows = [row for row in HF_DECODER_ROWS if slots.base_slot(row.slot) not in shapes]
    return rows + [Param("layers.{layer}." + slot, shape, slot=slot) for slot, shape in shapes.items() if shape]


SOME_EXPERTS = [*HF_DECODER_ROWS, Param("layers.{layer}.g", "hidden, experts", kind="router", slot="gate", when="some")]


@pytest.mark.parametrize(
    ("rows", "fields", "why"),
    [
        (rows_with(ffn1="", ffn2=""), {}, "no tensor fills ffn1, ffn2"),
        (HF_DECODER_ROWS[1:], {}, "no tensor fills embed"),
        (
            rows_with(qkv="hidden, kv_heads*5*head_dim"),
            {},
            "'hidden, kv_heads*5*head_dim' is an unknown layout of queries, keys and values",
        ),
        (rows_with(ffn1="hidden, ffn*2"), {}, "'hidden, ffn*2': gate and up must be concatenated"),
        (rows_with(ffn1="hidden, ffn"), {}, "ffn1 must have gate and up as wide as ffn2"),
        (HF_DECODER_ROWS, {"activation": "relu"}, "ffn1 must have outputs as wide as ffn2"),
        (
            [*HF_DECODER_ROWS, Param("layers.{layer}.b", "heads*head_dim", slot="qkv_bias.0")],
            {},
            "qkv_bias does not cover all outputs of qkv",
        ),
        (
            [*HF_DECODER_ROWS, Param("layers.{layer}.g", "hidden, experts", slot="gate")],
            {},
            "it has routers, but its card has no moe=",
        ),
        (SOME_EXPERTS, {"moe": Moe("softmax-topk", 2)}, "only some of its layers are mixtures of experts"),
        (HF_DECODER_ROWS, {"position": "learned"}, "no tensor fills positions"),
        (HF_DECODER_ROWS, {"position": "rope-neox"}, "position='rope-neox' needs a decoder on the card"),
        (HF_DECODER_ROWS, {"position": "rope-2d"}, "position='rope-2d' needs a decoder on the card"),
    ],
)
def test_what_is_no_standard_decoder_is_refused_with_what_is_in_the_way(rows, fields, why):
    card = make_card(*rows, **{"position": "none", **fields})
    with pytest.raises(UnsupportedError, match=re.escape(f"the fused decoder does not support x: {why}")):
        fill_decoder.fill_decoder(card, DIMS.replace(some=(True, False)))


def test_claims_come_before_what_the_table_implies():
    linear = Param("layers.{layer}.q.weight", "hidden, ffn", slot="qkv")
    assert isinstance(state(make_card(linear), "lora"), Supported)
    assert isinstance(state(make_card(Param("e", "vocab, hidden", kind="embed")), "lora"), Unsupported)
    card = make_card(linear, claims={"lora": Unsupported("the moon is full")})
    with pytest.raises(UnsupportedError, match="x does not support LoRA: the moon is full"):
        require(card, "lora")


def test_softmax_topk_router_equals_numpy():
    import numpy as np
    import paddle

    from llmctl.nn.moe import SoftmaxTopK, balancing_loss, router_sums

    paddle.seed(0)
    router = SoftmaxTopK(6, 4, Moe("softmax-topk", top_k=2)).to(dtype="float64")
    x_TD = np.random.default_rng(0).normal(size=(7, 6))
    weight, expert = (value.numpy() for value in router(paddle.to_tensor(x_TD)))
    aux = balancing_loss(*router_sums([router.logits_TE], 2))
    logits = x_TD @ router.weight.numpy()
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    best = np.argsort(-probability, axis=-1)[:, :2]
    chosen = np.take_along_axis(probability, best, -1)
    assert (expert == best).all()
    np.testing.assert_allclose(weight, chosen / chosen.sum(-1, keepdims=True), atol=1e-12)
    share = np.stack([(best == e).sum(-1).mean() for e in range(4)])
    assert math.isclose(float(aux), 4 * (share * probability.mean(0)).sum(), rel_tol=1e-9)


def test_moe_routing_is_none_for_dense_families():
    assert defaults.moe_routing(make_card(Param("a", "hidden")), DIMS) is None
    routed = make_card(Param("a", "hidden"), moe=Moe("softmax-topk", top_k=2))
    assert tuple(defaults.moe_routing(routed, DIMS).weight.shape) == (48, 3)


def test_card_hash_is_the_same_in_every_process(run_llmctl):
    import json

    from llmctl import plugins

    for name in ("llama", "bloom", "baichuan"):
        done = run_llmctl("models", name, "--json")
        assert json.loads(done.stdout)["card"] == plugins.load(name).card.hash()


def test_heads_that_do_not_divide_are_refused():
    from llmctl import plugins

    card = plugins.load("llama").card
    config = card.config_from_dims(card.dims_of("llama2-7b"))
    with pytest.raises(ConfigError, match="32 query heads cannot share 5 key-value heads"):
        card.dims_from_config({**config, "num_key_value_heads": 5})
    with pytest.raises(ConfigError, match="head_dim: hidden/heads: 4096 is not divisible by heads=30"):
        card.dims_from_config({**config, "num_attention_heads": 30, "num_key_value_heads": 30, "head_dim": None})


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        ("gpt3", "resid_pdrop", 1.0, "resid_pdrop=1.0 must be a number from 0 to below 1"),
        ("gpt3", "attn_pdrop", -0.1, "attn_pdrop=-0.1 must be a number from 0 to below 1"),
        ("opt", "dropout", "0.1", "dropout='0.1' must be a number from 0 to below 1"),
        ("llama", "rope_theta", 0, "rope_theta=0 must be a number above 0"),
        ("qwen", "rotary_emb_base", -10000, "rotary_emb_base=-10000 must be a number above 0"),
        ("qwen", "seq_length", 0, "seq_length=0 must be a whole number above 0"),
        ("llama", "rms_norm_eps", 0.0, "rms_norm_eps=0.0 must be a number above 0"),
        ("chatglm", "layernorm_epsilon", -1e-5, "layernorm_epsilon=-1e-05 must be a number above 0"),
        ("mixtral", "num_local_experts", -8, "num_local_experts=-8 must be a whole number above 0"),
        ("llama", "num_key_value_heads", 0, "num_key_value_heads=0 must be a whole number above 0"),
        ("llama", "head_dim", 127, "a head of width 127 cannot be rotated in pairs; its width must be a multiple of 2"),
        ("chatglm2", "kv_channels", 126, "a head of width 126 .* a multiple of 4"),
    ],
)
def test_numbers_that_no_model_can_have_are_refused(family, key, value, message):
    from llmctl import plugins

    card = plugins.load(family).card
    with pytest.raises(ConfigError, match=message):
        card.dims_from_config({**card.config_from_dims(card.dims_of(next(iter(card.sizes)))), key: value})


def test_heads_that_are_not_rotated_may_have_any_width():
    from llmctl import plugins

    baichuan, gpt = (plugins.load(name).card for name in ("baichuan", "gpt3"))
    sizes = {name: baichuan.dims_of(name) for name in baichuan.sizes}
    odd = {"hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": None, "head_dim": None}
    for dims in sizes.values():
        config = {**baichuan.config_from_dims(dims), **odd, "position_kind": dims.position}
        if dims.position == "alibi":
            assert baichuan.dims_from_config(config).head_dim == 15
        else:
            with pytest.raises(ConfigError, match="a head of width 15 cannot be rotated"):
                baichuan.dims_from_config(config)
    assert {dims.position for dims in sizes.values()} == {"rope", "alibi"}
    small = {**gpt.config_from_dims(gpt.dims_of(next(iter(gpt.sizes)))), "n_embd": 75, "n_head": 5, "n_inner": None}
    assert gpt.dims_from_config(small).head_dim == 15


def test_values_that_a_family_cannot_even_read_are_refused():
    from llmctl import plugins

    mixtral, qwen = (plugins.load(name).card for name in ("mixtral", "qwen"))
    config = mixtral.config_from_dims(mixtral.dims_of("8x7b"))
    for key, value, message in (
        ("rope_scaling", "linear", "rope_scaling='linear' is not an object with a rope_type"),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "mscale": 3}, "of type 'linear' does not know mscale"),
        ("sliding_window", 0, "sliding_window=0 must be a whole number above 0"),
        ("num_experts_per_tok", 9, "a token cannot be routed to 9 of 8 experts"),
    ):
        with pytest.raises(ConfigError, match=message):
            mixtral.dims_from_config({**config, key: value})
    with pytest.raises(ConfigError, match=r"intermediate_size=\[1\] must be a whole number above 0"):
        qwen.dims_from_config({**qwen.config_from_dims(qwen.dims_of("7b")), "intermediate_size": [1]})
    with pytest.raises(ConfigError, match="layer_types=3 is of the wrong kind"):
        card = plugins.load("qwen2").card
        card.dims_from_config({**card.config_from_dims(card.dims_of("qwen2-7b")), "layer_types": 3})


def test_a_key_that_no_setting_reads_is_named_and_a_null_one_is_not():
    from llmctl import plugins

    card = plugins.load("llama").card
    config = card.config_from_dims(card.dims_of("llama2-7b"))
    known = {**config, "torch_dtype": "bfloat16", "is_encoder_decoder": False, "attn_window": None}
    assert card.dims_from_config(known) == card.dims_of("llama2-7b")
    # Published models: SmolLM2, gpt2-xl, Vicuna, Unsloth, the web's; and names that begin with an underscore.
    published = {"is_llama_config": True, "rope_interleaved": False, "model_max_length": 9, "max_sequence_length": 2048,
                 "partial_rotary_factor": 1.0, "logits_scaling": 1, "unsloth_version": "2025.1", "transformers.js_config": {"dtype": "q4"}, "_anything": 3}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card.dims_from_config({**config, **published}) == card.dims_of("llama2-7b")
    with pytest.warns(UserWarning, match="attn_window=0, odd={}: llama has no such setting, and it is off"):
        card.dims_from_config({**config, "attn_window": 0, "odd": {}})
    for key, value in (("quantization_config", {"bits": 4}), ("is_encoder_decoder", True), ("attn_window", 64),
                       ("rope_interleaved", True), ("partial_rotary_factor", 0.5), ("logits_scaling", 8.0)):  # fmt: skip
        with pytest.raises(ConfigError, match=f"llama does not know {key}="):
            card.dims_from_config({**config, key: value})


def test_a_field_is_read_under_another_key_where_its_own_is_absent():
    card = make_card(
        Param("a", "width"), settings=(ConfigField("width", "ffn_dim", 7, aliases=("intermediate_size",)),)
    )
    base = {"intermediate_size": 5}
    assert card.dims_from_config(base).width == 5
    assert card.dims_from_config({**base, "ffn_dim": 6}).width == 6
    assert card.dims_from_config({**base, "ffn_dim": None}).width == 5


def test_a_config_of_endless_parts_is_refused():
    """A list of the tensors of 2^40 layers would take all memory."""
    card = plugins.load("mixtral").card
    config = card.config_from_dims(card.dims_of("8x7b"))
    key = next(setting.key for setting in card.settings if setting.name == "experts")
    with pytest.raises(ConfigError, match="layers=32 x experts=1099511627776 are more than 100,000 parts"):
        card.dims_from_config({**config, key: 2**40})
