"""Keys of ``config.json`` without effect on what a model computes; every other key must be on the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOOK_KEEPING = """
architectures model_type torch_dtype dtype transformers_version _name_or_path name_or_path _commit_hash auto_map
tokenizer_class use_cache bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
decoder_start_token_id task_specific_params finetuning_task problem_type id2label label2id num_labels return_dict
output_attentions output_hidden_states torchscript use_bfloat16 tf_legacy_loss pretraining_tp gradient_checkpointing
attn_implementation _attn_implementation _attn_implementation_autoset use_flash_attn paddlenlp_version bf16 fp16 fp32
"""
_GENERATION = """
max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id suppress_tokens
begin_suppress_tokens remove_invalid_values exponential_decay_length_penalty prefix
"""
INERT = frozenset(f"{_BOOK_KEEPING} {_GENERATION}".split())
"""Metadata, token ids, switches of other software, generation defaults."""

NEUTRAL: Mapping[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "tie_word_embeddings": False,
}
"""Keys without effect as long as they have this value."""


def unknown_keys(config: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    """Keys that are neither known to a card nor without effect; null values have none."""
    return [
        key
        for key, value in config.items()
        if value is not None and key not in known and key not in INERT and NEUTRAL.get(key, NEUTRAL) != value
    ]
