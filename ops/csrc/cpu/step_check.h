// Checks a step before anything is computed: that it stays within the model, the cache and its own arrays.

#pragma once

#include <stdint.h>

#include "decoder.h"
#include "kv_cache.h"
#include "structs.h"

namespace {

// The statuses of a step; llmctl_ops/decoder.py has a message for each.
enum StepStatus : int {
  STEP_OK = 0,
  NO_MEMORY = 1,
  BAD_TOKEN_COUNT,
  BAD_ID,
  BAD_SEQUENCE,
  BAD_KV_POSITION,
  BAD_ATTENTION_RANGE,
  BAD_BLOCK,
  BAD_POSITION,
  BAD_ADAPTER,
  BAD_LOGITS_INDEX
};

// The first thing in a step that would be read or written out of bounds; `where` gets its index.
inline StepStatus check_step(const Decoder& d, const Step& s, int64_t* where) {
  const Model& m = d.model;
  int64_t kv_positions = s.max_blocks * BLOCK;
  if (s.tokens < 1 || s.tokens > d.work.tokens || s.logits_count < 0 || s.logits_count > s.tokens)
    return BAD_TOKEN_COUNT;
  for (int64_t t = 0; t < s.tokens; ++t) {
    *where = t;
    if (s.ids[t] < 0 || s.ids[t] >= m.vocab) return BAD_ID;
    if (s.sequence[t] < 0 || s.sequence[t] >= s.sequences) return BAD_SEQUENCE;
    if (s.kv_position[t] < 0 || s.kv_position[t] >= kv_positions) return BAD_KV_POSITION;
    if (s.attend_begin[t] < 0 || s.attend_begin[t] >= s.attend_end[t] || s.attend_end[t] > kv_positions)
      return BAD_ATTENTION_RANGE;
    if (m.positions && (s.position[t] < 0 || s.position[t] >= m.position_rows)) return BAD_POSITION;
    if ((m.rotary_dim || s.query_scale) && (s.position[t] < 0 || s.position[t] >= s.angle_rows)) return BAD_POSITION;
    if (m.rope_2d && (s.second_position[t] < 0 || s.second_position[t] >= s.angle_rows)) return BAD_POSITION;
    // A tile reads all blocks between the first and the last KV position of its rows, so the blocks between the ranges
    // of consecutive tokens must exist too. These ranges overlap: only what the previous token did not cover is
    // checked.
    bool same = t > 0 && s.sequence[t - 1] == s.sequence[t],
         covered = same && s.attend_begin[t] >= s.attend_begin[t - 1];
    int64_t first = (covered ? s.attend_end[t - 1] - 1 : s.attend_begin[t]) / BLOCK;
    int64_t last =
        ((same && s.attend_begin[t - 1] > s.attend_end[t] ? s.attend_begin[t - 1] : s.attend_end[t]) - 1) / BLOCK;
    const int32_t* table = s.block_tables + s.sequence[t] * s.max_blocks;
    for (int64_t b = first; b <= last; ++b)
      if (table[b] < 0 || table[b] >= d.cache.blocks) return BAD_BLOCK;
    int32_t own = table[s.kv_position[t] / BLOCK];
    if (own < 0 || own >= d.cache.blocks) return BAD_BLOCK;
  }
  for (int64_t r = 0; r < s.sequences; ++r)
    if (*where = r, s.adapter[r] < -1 || s.adapter[r] >= m.adapters) return BAD_ADAPTER;
  for (int64_t i = 0; i < s.logits_count; ++i) {
    *where = i;
    int32_t least = i ? s.logits_indices[i - 1] + 1 : 0;
    if (s.logits_indices[i] < least || s.logits_indices[i] >= s.tokens) return BAD_LOGITS_INDEX;
  }
  return STEP_OK;
}

}  // namespace
