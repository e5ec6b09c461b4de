"""Keys of ``config.json`` without effect on what a model computes; every other key must be on the card.

A key that no list has is accepted with a note where its value switches nothing on (null, false, 0, empty).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.errors import ConfigError

_BOOK_KEEPING = """
architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path _commit_hash auto_map
tokenizer_class use_cache bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
decoder_start_token_id task_specific_params finetuning_task problem_type id2label label2id num_labels return_dict
output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss pretraining_tp gradient_checkpointing
attn_implementation use_flash_attn paddlenlp_version bf16 fp16 fp32
"""
"""Metadata, token ids and output formats: ``PretrainedConfig`` of transformers, 4 and 5 (configuration_utils.py), and the
switches of authors' code on the hub (configuration_*.py)."""

_GENERATION = """
max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id suppress_tokens
begin_suppress_tokens remove_invalid_values exponential_decay_length_penalty prefix cache_implementation
"""
"""Generation defaults, which transformers before 4.41 kept in config.json (``PretrainedConfig._get_global_generation_defaults``)."""

_ATTENTION = """
use_flash_attention use_flash_attention_2 use_flash_attn_2 flash_attn flash_attention use_sdpa use_xformers
use_memory_efficient_attention attn_impl fuse_attention_qkv fuse_attention_ffn use_fused_rms_norm use_fused_rope
use_flash_attention_for_inference recompute_granularity
"""
"""Which kernel computes attention: of transformers (modeling_utils.py), authors' code and PaddleNLP (``LlmMetaConfig``)."""

_PUBLISHED = """
model_max_length tokenizer_model_max_length tokenizer_padding_side padding_side bos_token eos_token pad_token unk_token
unsloth_version unsloth_fixed transformers.js_config tokenizer_name license language datasets tags
"""
"""In files of published models, read by no release of transformers: Unsloth's, the web's (transformers.js_config), notes
on tokenizers and licences. What only one family's files have is on its card."""

_PADDLENLP = """
use_fused_linear use_fused_dropout_add use_fused_linear_cross_entropy use_fast_layer_norm rope_fusion_level
use_flash_attention_for_generation use_last_token_for_generation immediate_clear_past_key_value
tensor_parallel_degree tensor_parallel_rank tensor_parallel_output pipeline_parallel_degree virtual_pp_degree mp_degree
num_partitions sep_parallel_degree context_parallel_degree sequence_parallel fuse_sequence_parallel_allreduce use_dualpipev
no_recompute_layers pp_recompute_interval recompute use_recompute recompute_use_reentrant refined_recompute
offload_recompute_inputs seq_length dpo_config kto_config
"""
"""Kernels, parallelism and recomputation in files that PaddleNLP wrote, as its ``LlmMetaConfig`` and configuration classes
name them (paddlenlp/transformers, 2.5 to 3.0); ``seq_length`` is that of its training, unless the card reads it."""

PADDLENLP = frozenset(_PADDLENLP.split())
"""Keys without effect where the file has ``paddlenlp_version``."""

INERT = frozenset(f"{_BOOK_KEEPING} {_GENERATION} {_ATTENTION} {_PUBLISHED}".split())
"""Keys without effect in every file."""

NEUTRAL: Mapping[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "tie_word_embeddings": False,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
"""Keys without effect as long as they have this value: defaults of ``PretrainedConfig``, of ``rope_parameters`` in transformers
5, of SmolLM (rope_interleaved), and factors of 1 in models that were converted (Granite's)."""

OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that switch nothing on."""


def unknown_keys(config: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Keys that are neither known to a card nor without effect."""
    return [key for key in _others(config, known) if config[key] not in OFF]


def passed_over(config: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Keys that no list has and whose values switch nothing on; null says nothing at all."""
    return [key for key in _others(config, known) if config[key] in OFF and config[key] is not None]


def without_keys(
    config: Mapping[str, Any], names: Sequence[str], fields: frozenset[str], family: str, where: str
) -> dict[str, Any]:
    """A config.json without keys that the user says have no effect.

    Args:
        config: Content of the file.
        names: The keys, as in ``model.ignore_config_keys``.
        fields: Keys that the card reads, which cannot be ignored.
        family: Name of the family, for messages.
        where: The file, for messages.

    Raises:
        ConfigError: The file does not have a key, or the card reads it.
    """
    for name in names:
        if name in fields:
            raise ConfigError(
                f"model.ignore_config_keys: {family} reads {name}={config.get(name)!r}, so it cannot be ignored; leave it out"
            )
        if name not in config:
            close = difflib.get_close_matches(name, config, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "; leave it out"
            raise ConfigError(f"model.ignore_config_keys: {where} has no {name!r}{hint}")
    return {key: value for key, value in config.items() if key not in names}


def _others(config: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    inert = INERT | PADDLENLP if "paddlenlp_version" in config else INERT
    return [
        key
        for key, value in config.items()
        if not (key in known or key in inert or key.startswith("_") or NEUTRAL.get(key, NEUTRAL) == value)
    ]
