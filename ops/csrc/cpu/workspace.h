// All buffers that a step writes to, laid out once for the largest step.

#pragma once

#include <stdint.h>

#include "linear.h"
#include "memory.h"
#include "moe.h"
#include "paged_attention.h"
#include "structs.h"

namespace {

const int64_t MAX_PARTIALS = 1024;  // partial outputs of split-KV that are kept at once

// Rows named *_row are the strides of the buffers. Slots are (token, expert) pairs; tokens if there are no experts.
struct Workspace {
  int64_t tokens, slots, threads, tiles, xa_row;
  int64_t hidden_row, qkv_row, attention_row, up_row, ffn_row, embed_row;
  float *x, *normed, *y, *qkv, *attention, *up, *ffn, *embed;
  float *cosine, *sine;  // [T, pairs]
  float *expert_in, *expert_out, *xa, *router_score;
  float* attention_scratch;         // AttentionScratch of each thread
  float* partials;                  // PartialOutput of each tile, key-value head and split
  int32_t *adapter, *slot_adapter;  // [T], [slots]: adapter of each token, of each slot of the experts
  QueryTile* query_tiles;
  Routing routing;
  void* linear_scratch;
};

// Measures the bytes while there is no memory, and hands them out once there is.
struct Arena {
  char* base;
  int64_t used;

  template <class T>
  T* take(int64_t count) {
    T* found = base ? (T*)(base + used) : nullptr;
    used += round_up(count * (int64_t)sizeof(T), 64);
    return found;
  }
};

INLINE void raise_scratch(const Linear& linear, int64_t rows, int64_t* bytes) {
  if (!linear.data) return;
  int64_t needed = linear_scratch_bytes(rows, linear.in);
  *bytes = needed > *bytes ? needed : *bytes;
}

INLINE void raise_rank(const LoraDelta* deltas, int64_t count, int64_t* rank) {
  for (int64_t i = 0; deltas && i < count; ++i) *rank = deltas[i].rank > *rank ? deltas[i].rank : *rank;
}

// Bytes of the scratch buffer of linears, and the highest LoRA rank.
inline void measure(const Model& m, int64_t tokens, int64_t slots, int64_t* scratch, int64_t* rank) {
  raise_scratch(m.project_in, tokens, scratch);
  raise_scratch(m.project_out, tokens, scratch);
  raise_scratch(m.head, tokens, scratch);
  int64_t experts = m.experts ? m.experts : 1;
  for (int64_t i = 0; i < m.layers; ++i) {
    const Layer& layer = m.layer[i];
    raise_scratch(layer.qkv, tokens, scratch);
    raise_scratch(layer.out, tokens, scratch);
    for (int64_t e = 0; e < experts; ++e) {
      raise_scratch(layer.up[e], slots, scratch);
      raise_scratch(layer.down[e], slots, scratch);
    }
    raise_rank(layer.qkv_lora, m.adapters, rank);
    raise_rank(layer.out_lora, m.adapters, rank);
    raise_rank(layer.up_lora, m.adapters * experts, rank);
    raise_rank(layer.down_lora, m.adapters * experts, rank);
  }
}

inline void lay_out(const Model& m, int64_t tokens, int64_t threads, Workspace& w, Arena& arena) {
  int64_t slots = tokens * (m.experts ? m.top_k : 1), scratch = 64, rank = 0, padded_dim = round_up(m.head_dim, 16);
  measure(m, tokens, slots, &scratch, &rank);
  w.tokens = tokens, w.slots = slots, w.threads = threads;
  w.hidden_row = round_up(m.hidden, 16), w.qkv_row = round_up((m.heads + 2 * m.kv_heads) * m.head_dim, 16);
  w.attention_row = round_up(m.heads * m.head_dim, 16);
  w.up_row = round_up(m.activation == SWIGLU ? 2 * m.ffn : m.ffn, 16);
  w.ffn_row = round_up(m.ffn, 16), w.embed_row = round_up(m.embed_dim, 16), w.xa_row = round_up(rank, 16);
  w.x = arena.take<float>(tokens * w.hidden_row);
  w.normed = arena.take<float>(tokens * w.hidden_row);
  w.y = arena.take<float>(tokens * w.hidden_row);
  w.qkv = arena.take<float>(tokens * w.qkv_row);
  w.attention = arena.take<float>(tokens * w.attention_row);
  w.up = arena.take<float>(slots * w.up_row);
  w.ffn = arena.take<float>(slots * w.ffn_row);
  w.embed = arena.take<float>(tokens * w.embed_row);
  w.cosine = arena.take<float>(tokens * m.rotary_dim / 2);
  w.sine = arena.take<float>(tokens * m.rotary_dim / 2);
  w.xa = arena.take<float>(slots * w.xa_row);
  w.expert_in = arena.take<float>(m.experts ? slots * w.hidden_row : 0);
  w.expert_out = arena.take<float>(m.experts ? slots * w.hidden_row : 0);
  w.router_score = arena.take<float>(threads * round_up(m.experts, 16));
  w.routing.weight = arena.take<float>(m.experts ? slots : 0);
  w.routing.expert = arena.take<int32_t>(m.experts ? slots : 0);
  w.routing.slot = arena.take<int32_t>(m.experts ? slots : 0);
  w.routing.token = arena.take<int32_t>(m.experts ? slots : 0);
  w.routing.start = arena.take<int32_t>(m.experts + 1);
  w.adapter = arena.take<int32_t>(tokens);
  w.slot_adapter = arena.take<int32_t>(m.experts ? slots : 0);
  w.tiles = tokens * (m.heads / m.kv_heads / TILE_ROWS + 1);
  w.query_tiles = arena.take<QueryTile>(w.tiles);
  w.attention_scratch = arena.take<float>(threads * round_up(AttentionScratch::size(padded_dim), 16));
  w.partials = arena.take<float>(MAX_PARTIALS * PartialOutput::size(padded_dim));
  w.linear_scratch = arena.take<char>(scratch);
}

}  // namespace
