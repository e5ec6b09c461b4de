"""The cases that ``make_golden.py`` records, as data: which class of the original code, with which configuration.

A case shows something that a mistake would change: a head count that is no power of two, a window shorter than a row, a
row longer than the trained length. Sizes are as small as that allows; what is not listed is the original's default.
"""

from __future__ import annotations

from typing import Any

from llmctl.testing.case import Case

VOCAB = 64
SMALL = dict(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2)
GATED = dict(SMALL, intermediate_size=40, max_position_embeddings=64, rms_norm_eps=1e-6)
EXPERTS = dict(GATED, hidden_size=16, intermediate_size=24, num_key_value_heads=2, num_local_experts=4)
MISTRAL = dict(GATED, num_key_value_heads=2, rope_theta=1000.0)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LITTLE = dict(
    vocab_size=16,
    hidden_size=8,
    head_dim=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=8,
    initializer_range=0.2,
    rms_norm_eps=1e-6,
    rope_theta=100.0,
)
"""Goldens are 2 MB in all, so the newest are smaller."""
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=1.0, beta_slow=0.1)
QWEN_EXPERTS = dict(
    GATED,
    hidden_size=16,
    intermediate_size=24,
    num_key_value_heads=2,
    moe_intermediate_size=12,
    shared_expert_intermediate_size=20,
    num_experts=4,
    num_experts_per_tok=2,
)
GPT2 = dict(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=64)
BLOOM = dict(vocab_size=VOCAB, hidden_size=24, n_layer=2, n_head=4, pad_token_id=3)
OPT = dict(SMALL, ffn_dim=40, max_position_embeddings=64, word_embed_proj_dim=24)
BAICHUAN = dict(GATED, pad_token_id=0, hidden_act="silu", tie_word_embeddings=False)
QWEN = dict(
    SMALL,
    intermediate_size=80,
    kv_channels=6,
    layer_norm_epsilon=1e-6,
    max_position_embeddings=64,
    emb_dropout_prob=0.0,
    attn_dropout_prob=0.0,
    use_flash_attn=False,
    bf16=False,
    fp16=False,
    fp32=True,
    no_bias=True,
    use_dynamic_ntk=True,
    use_logn_attn=True,
    tie_word_embeddings=False,
)
CHATGLM = dict(
    vocab_size=80,
    hidden_size=32,
    inner_hidden_size=48,
    num_layers=2,
    num_attention_heads=4,
    max_sequence_length=64,
    mask_token_id=72,
    gmask_token_id=73,
    bos_token_id=76,
    eos_token_id=77,
    pad_token_id=3,
    position_encoding_2d=True,
)
CHATGLM2 = dict(
    padded_vocab_size=VOCAB,
    hidden_size=32,
    ffn_hidden_size=40,
    num_layers=2,
    num_attention_heads=4,
    kv_channels=8,
    multi_query_attention=True,
    multi_query_group_num=2,
    add_qkv_bias=True,
    rmsnorm=True,
    original_rope=True,
    seq_length=64,
    use_cache=True,
    tie_word_embeddings=False,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    pad_token_id=0,
    eos_token_id=2,
)


def _llama(name: str, about: str, weights: str = "float32", cache_differs: bool = False, **config: Any) -> Case:
    config = {**GATED, "num_key_value_heads": 2, **config}
    return Case(
        f"llama_{name}", "llama", "LlamaForCausalLM", config, about, weights=weights, cache_differs=cache_differs
    )


PLUGINS = {"mistral": "mixtral", "qwen2": "qwen", "qwen3": "qwen", "baichuan": "llama", "chatglm2": "chatglm"}
"""Family -> folder in plugins/ where its tests are, unless it has the family's name."""

CASES = (
    _llama("tied", "grouped queries, tied embeddings", tie_word_embeddings=True),
    _llama("bias", "heads wider than hidden/heads, biases, bfloat16 file", "bfloat16",
           head_dim=8, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5),
    _llama("rope_linear", "positions divided by 2", rope_scaling=dict(rope_type="linear", factor=2.0)),
    _llama("rope_dynamic", "rows longer than the trained length of 6", cache_differs=True, max_position_embeddings=6,
           rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    _llama("rope_llama3", "frequencies kept, mixed and divided", head_dim=8, rope_theta=100.0,
           rope_scaling=LLAMA3_ROPE),
    Case("llama_rope_yarn", "llama", "LlamaForCausalLM", dict(LITTLE, max_position_embeddings=32, rope_scaling=YARN),
         "YaRN: frequencies kept, mixed and divided; cosines and sines times 0.1 ln 4 + 1", ids_below=16, weights="bfloat16"),
    Case("llama_rope_longrope", "llama", "LlamaForCausalLM",
         dict(LITTLE, max_position_embeddings=24, rope_scaling=dict(
             rope_type="longrope", original_max_position_embeddings=6, short_factor=[1.0, 1.5, 2.0, 2.5],
             long_factor=[1.0, 3.0, 5.0, 9.0])),
         "LongRoPE: rows longer than the trained length of 6", ids_below=16, cache_differs=True, weights="bfloat16"),
    Case("mistral_window", "mistral", "MistralForCausalLM", dict(MISTRAL, sliding_window=5),
         "a sliding window shorter than the row"),
    Case("mistral_whole", "mistral", "MistralForCausalLM", dict(MISTRAL, sliding_window=None, head_dim=8),
         "no window, heads wider than hidden/heads"),
    Case("mixtral_aux", "mixtral", "MixtralForCausalLM",
         dict(EXPERTS, output_router_logits=True, router_aux_loss_coef=0.1, sliding_window=None),
         "the balancing loss is part of the loss, over real tokens"),
    Case("mixtral_window", "mixtral", "MixtralForCausalLM", dict(EXPERTS, sliding_window=5),
         "a sliding window, no balancing loss"),
    Case("qwen2", "qwen2", "Qwen2ForCausalLM", dict(GATED, num_key_value_heads=2),
         "biases of queries, keys and values"),
    Case("qwen2_tied", "qwen2", "Qwen2ForCausalLM",
         dict(GATED, num_key_value_heads=4, tie_word_embeddings=True), "tied embeddings"),
    Case("qwen2_moe", "qwen2_moe", "Qwen2MoeForCausalLM",
         dict(QWEN_EXPERTS, mlp_only_layers=[0], norm_topk_prob=False),
         "a shared expert, a layer without experts, weights of experts as they are"),
    Case("qwen2_moe_aux", "qwen2_moe", "Qwen2MoeForCausalLM",
         dict(QWEN_EXPERTS, decoder_sparse_step=2, norm_topk_prob=True, output_router_logits=True,
              router_aux_loss_coef=0.1),
         "experts in every second layer, their weights renormalised, the balancing loss"),
    Case("qwen3", "qwen3", "Qwen3ForCausalLM", dict(GATED, num_key_value_heads=2, head_dim=8),
         "normalised queries and keys, heads wider than hidden/heads"),
    Case("qwen3_bias", "qwen3", "Qwen3ForCausalLM", dict(LITTLE, num_hidden_layers=1, attention_bias=True),
         "biases of all four projections", ids_below=16, weights="bfloat16"),
    Case("bloom", "bloom", "BloomForCausalLM", BLOOM, "slopes of 4 heads", positions=False),
    Case("bloom_six_heads", "bloom", "BloomForCausalLM",
         dict(BLOOM, n_head=6, apply_residual_connection_post_layernorm=True),
         "slopes of 6 heads, residuals taken after the norms", positions=False),
    Case("gpt2", "gpt3", "GPT2LMHeadModel", GPT2, "the published settings"),
    Case("gpt2_scaled", "gpt3", "GPT2LMHeadModel",
         dict(GPT2, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
         "scores divided by the layer's number"),
    Case("gpt2_untied", "gpt3", "GPT2LMHeadModel",
         dict(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=20, tie_word_embeddings=False),
         "an output head of its own", ids_below=16, weights="bfloat16"),
    Case("opt_unbiased", "opt", "OPTForCausalLM",
         dict(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8,
              max_position_embeddings=20, word_embed_proj_dim=12, do_layer_norm_before=False, enable_bias=False,
              tie_word_embeddings=False),
         "no biases, an output head of its own, of the width of the embeddings", ids_below=16, weights="bfloat16"),
    Case("opt", "opt", "OPTForCausalLM", OPT, "norms first"),
    Case("opt_350m", "opt", "OPTForCausalLM", dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=16),
         "norms last, embeddings projected to the width of the layers"),
    Case("baichuan_7b", "baichuan", "BaiChuanForCausalLM", BAICHUAN, "rotary positions",
         file="modeling_baichuan.py", unused=("xformers.ops",)),
    Case("baichuan_13b", "baichuan", "BaichuanForCausalLM",
         {**{k: v for k, v in BAICHUAN.items() if k != "max_position_embeddings"}, "num_attention_heads": 6,
          "model_max_length": 64},
         "slopes of 6 heads", file="modeling_baichuan.py", positions=False, padded=False),
    Case("baichuan2_13b", "baichuan", "BaichuanForCausalLM",
         {**{k: v for k, v in BAICHUAN.items() if k != "max_position_embeddings"}, "model_max_length": 64,
          "num_attention_heads": 6, "norm_head": True},
         "rows of the head normalised, slopes of 6 heads", file="modeling_baichuan.py", positions=False, trains=True),
    Case("qwen_short", "qwen", "QWenLMHeadModel", dict(QWEN, seq_length=64), "rows within the trained length",
         file="modeling_qwen.py", positions=False, generate=False),
    Case("qwen_long", "qwen", "QWenLMHeadModel", dict(QWEN, seq_length=6),
         "rows longer than the trained length: stretched positions, scaled queries", file="modeling_qwen.py",
         positions=False, padded=False, generate=False, cache_differs=True),
    Case("chatglm", "chatglm", "ChatGLMForConditionalGeneration", CHATGLM,
         "positions in two dimensions, a prefix that sees all of itself", file="modeling_chatglm.py",
         architectures=("ChatGLMModel",), tokens={5: "gmask_token_id", 6: "bos_token_id"}, ids_below=70, padded=False,
         generate=False),
    Case("chatglm2", "chatglm2", "ChatGLMForConditionalGeneration", CHATGLM2,
         "two groups of keys, half of each head rotated", file="modeling_chatglm.py", architectures=("ChatGLMModel",)),
    Case("chatglm3", "chatglm2", "ChatGLMForConditionalGeneration",
         dict(CHATGLM2, num_attention_heads=8, kv_channels=4), "the third release: its file, 8 heads",
         file="modeling_chatglm.py", architectures=("ChatGLMModel",)),
)  # fmt: skip
