// Everything that a step writes to, laid out once for the most tokens that a step may have.

#pragma once

#include "experts.h"
#include "memory.h"
#include "paged.h"

namespace {

const int64_t MOST_PARTS = 1024;  // spans that are kept apart

struct Workspace {
  int64_t tokens, slots, threads, tiles, inner_row;
  int64_t hidden_row, qkv_row, mixed_row, up_row, ffn_row, embed_row;
  float *x, *normed, *y, *qkv, *mixed, *up, *ffn, *embed;
  float *cosine, *sine;  // [T, pairs]
  float *gathered, *returned, *inner, *score;
  float *desks, *parts;
  int32_t* adapter;  // [slots]
  Rows* rows;
  Routing routing;
  void* scratch;
};

// Counts bytes where there is no memory yet, and hands them out where there is.
struct Arena {
  char* base;
  int64_t used;

  template <class T>
  T* room(int64_t count) {
    T* found = base ? (T*)(base + used) : nullptr;
    used += whole(count * (int64_t)sizeof(T), 64);
    return found;
  }
};

INLINE void widest(const Linear& linear, int64_t rows, int64_t* bytes) {
  if (!linear.data) return;
  int64_t needed = linear_scratch(rows, linear.in);
  *bytes = needed > *bytes ? needed : *bytes;
}

INLINE void widest(const Change* changes, int64_t count, int64_t* rank) {
  for (int64_t i = 0; changes && i < count; ++i) *rank = changes[i].rank > *rank ? changes[i].rank : *rank;
}

// Bytes of the scratch buffer of products, and the highest rank of a change.
inline void needs(const Model& m, int64_t tokens, int64_t slots, int64_t* scratch, int64_t* rank) {
  widest(m.project_in, tokens, scratch);
  widest(m.project_out, tokens, scratch);
  widest(m.head, tokens, scratch);
  int64_t experts = m.experts ? m.experts : 1;
  for (int64_t i = 0; i < m.layers; ++i) {
    const Layer& layer = m.layer[i];
    widest(layer.qkv, tokens, scratch);
    widest(layer.out, tokens, scratch);
    for (int64_t e = 0; e < experts; ++e) {
      widest(layer.up[e], slots, scratch);
      widest(layer.down[e], slots, scratch);
    }
    widest(layer.qkv_changes, m.adapters, rank);
    widest(layer.out_changes, m.adapters, rank);
    widest(layer.up_changes, m.adapters * experts, rank);
    widest(layer.down_changes, m.adapters * experts, rank);
  }
}

inline void lay_out(const Model& m, int64_t tokens, int64_t threads, Workspace& w, Arena& arena) {
  int64_t slots = tokens * (m.experts ? m.top_k : 1), scratch = 64, rank = 0, wide = whole(m.width, 16);
  needs(m, tokens, slots, &scratch, &rank);
  w.tokens = tokens, w.slots = slots, w.threads = threads;
  w.hidden_row = whole(m.hidden, 16), w.qkv_row = whole((m.heads + 2 * m.groups) * m.width, 16);
  w.mixed_row = whole(m.heads * m.width, 16), w.up_row = whole(m.activation == SWIGLU ? 2 * m.ffn : m.ffn, 16);
  w.ffn_row = whole(m.ffn, 16), w.embed_row = whole(m.embed_width, 16), w.inner_row = whole(rank, 16);
  w.x = arena.room<float>(tokens * w.hidden_row);
  w.normed = arena.room<float>(tokens * w.hidden_row);
  w.y = arena.room<float>(tokens * w.hidden_row);
  w.qkv = arena.room<float>(tokens * w.qkv_row);
  w.mixed = arena.room<float>(tokens * w.mixed_row);
  w.up = arena.room<float>(slots * w.up_row);
  w.ffn = arena.room<float>(slots * w.ffn_row);
  w.embed = arena.room<float>(tokens * w.embed_row);
  w.cosine = arena.room<float>(tokens * m.turned / 2);
  w.sine = arena.room<float>(tokens * m.turned / 2);
  w.inner = arena.room<float>(slots * w.inner_row);
  w.gathered = arena.room<float>(m.experts ? slots * w.hidden_row : 0);
  w.returned = arena.room<float>(m.experts ? slots * w.hidden_row : 0);
  w.score = arena.room<float>(threads * whole(m.experts, 16));
  w.routing.weight = arena.room<float>(m.experts ? slots : 0);
  w.routing.expert = arena.room<int32_t>(m.experts ? slots : 0);
  w.routing.slot = arena.room<int32_t>(m.experts ? slots : 0);
  w.routing.token = arena.room<int32_t>(m.experts ? slots : 0);
  w.routing.start = arena.room<int32_t>(m.experts + 1);
  w.adapter = arena.room<int32_t>(2 * slots);
  w.tiles = tokens * (m.heads / m.groups / TILE_ROWS + 1);
  w.rows = arena.room<Rows>(w.tiles);
  w.desks = arena.room<float>(threads * whole(Desk::size(wide), 16));
  w.parts = arena.room<float>(MOST_PARTS * Mixed::size(wide));
  w.scratch = arena.room<char>(scratch);
}

}  // namespace
