// A decoder step, from token ids to logits in one parallel region.
//
// Every function that takes the team is called by all its threads and ends with a barrier unless it says otherwise.

#pragma once

#include <stdint.h>
#include <string.h>

#include "embedding.h"
#include "kv_cache.h"
#include "linear.h"
#include "lora.h"
#include "memory.h"
#include "moe.h"
#include "paged_attention.h"
#include "row_ops.h"
#include "simd.h"
#include "structs.h"
#include "team.h"
#include "workspace.h"

namespace {

struct Decoder {
  Model model;
  KVCache cache;
  Workspace work;
  char *memory, *blocks;
  TeamSize team_size;
};

// A step in progress; each thread has its own copy.
struct StepRun {
  Decoder& d;
  const Model& m;
  Workspace& w;
  const Step& s;
  int64_t tokens;  // rows that are still computed: all, then those that get logits
  int64_t tiles;   // of queries
  int64_t splits;  // the largest number of key splits of a tile
  bool split_kv;   // whether the key splits of a tile are separate tasks
  bool has_lora;   // whether any token uses an adapter
};

// y = x w + bias, plus the LoRA deltas.
inline void linear_lora(Team& team, const StepRun& run, const Linear& weight, const LoraDelta* deltas,
                        const int32_t* adapter, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row) {
  linear(team, weight, x, rows, x_row, y, y_row, run.w.linear_scratch);
  if (run.has_lora && deltas)
    add_lora(team, deltas, adapter, x, weight.in, rows, x_row, run.w.xa, run.w.xa_row, y, weight.out, y_row);
}

// Token embeddings, learned positions, and the RoPE angles of each token.
inline void embed(Team& team, const StepRun& run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  bool projected = m.project_in.data != nullptr;
  float* to = projected ? w.embed : w.x;
  int64_t row = projected ? w.embed_row : w.hidden_row, pairs = m.rotary_dim / 2, begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    embed_token(m, run.s.ids[t], to + t * row);
    if (m.embed_norm.weight) norm_row(m.embed_norm, m.layer_norm, m.eps, to + t * row, m.embed_dim, to + t * row);
    for (int64_t half = 0; pairs && half < (m.rope_2d ? 2 : 1); ++half) {
      int64_t part = m.rope_2d ? pairs / 2 : pairs, at = (half ? run.s.second_position[t] : run.s.position[t]) * part;
      memcpy(w.cosine + t * pairs + half * part, run.s.cosine + at, (size_t)part * sizeof(float));
      memcpy(w.sine + t * pairs + half * part, run.s.sine + at, (size_t)part * sizeof(float));
    }
  }
  team.wait();
  if (projected) linear(team, m.project_in, w.embed, run.tokens, w.embed_row, w.x, w.hidden_row, w.linear_scratch);
  if (m.positions)
    for (int64_t t = begin; t < end; ++t)
      residual_row(w.x + t * w.hidden_row, 1.0f, m.positions + run.s.position[t] * m.hidden, m.hidden,
                   w.x + t * w.hidden_row);
  team.wait();
}

// Applies norms and RoPE to the queries and keys of each token, and writes keys and values to the cache.
inline void write_kv(Team& team, const StepRun& run, int64_t index) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  const Layer& layer = m.layer[index];
  int64_t group = m.heads / m.kv_heads, pairs = m.rotary_dim / 2, begin, end;
  team.range(run.tokens * m.kv_heads, 1, &begin, &end);
  for (int64_t task = begin; task < end; ++task) {
    int64_t t = task % run.tokens, k = task / run.tokens, position = run.s.kv_position[t];
    float *all = w.qkv + t * w.qkv_row, *key = all + (m.heads + k) * m.head_dim, *value = key + m.kv_heads * m.head_dim;
    const float *cosine = w.cosine + t * pairs, *sine = w.sine + t * pairs;
    for (int64_t n = k * group; n < (k + 1) * group; ++n) {
      float* query = all + n * m.head_dim;
      if (layer.q_norm) norm_row(Norm{layer.q_norm, nullptr}, false, m.eps, query, m.head_dim, query);
      if (pairs) rope_row(query, cosine, sine, pairs);
      if (run.s.query_scale) {
        float scale = run.s.query_scale[run.s.position[t]];
        for (int64_t i = 0; i < m.head_dim; ++i) query[i] *= scale;
      }
    }
    if (layer.k_norm) norm_row(Norm{layer.k_norm, nullptr}, false, m.eps, key, m.head_dim, key);
    if (pairs) rope_row(key, cosine, sine, pairs);
    int64_t block = run.s.block_tables[run.s.sequence[t] * run.s.max_blocks + position / BLOCK];
    store_kv(run.d.cache, run.d.cache.head(index, block, k), position % BLOCK, key, value);
  }
  team.wait();
}

// Attention of every token, into `w.attention`.
inline void attend(Team& team, const StepRun& run, int64_t index) {
  const Workspace& w = run.w;
  PagedAttention p = {&run.m,    &run.s,          run.d.cache,
                      index,     w.qkv,           w.attention,
                      w.qkv_row, w.attention_row, run.m.layer[index].score_scale};
  int64_t padded_dim = p.cache.padded_dim(), kv_heads = run.m.kv_heads, part = PartialOutput::size(padded_dim),
          tasks = run.tiles * kv_heads;
  AttentionScratch scratch(w.attention_scratch + team.thread * round_up(AttentionScratch::size(padded_dim), 16),
                           padded_dim);
  if (!run.split_kv) {
    // The last tiles of a prompt have the most keys: they run first, so that the threads finish together.
    for (int64_t task; (task = team.take()) < tasks;)
      attend_tile(p, w.query_tiles[run.tiles - 1 - task / kv_heads], task % kv_heads, scratch);
    team.wait();
    return;
  }
  for (int64_t task; (task = team.take()) < tasks * run.splits;) {
    const QueryTile& tile = w.query_tiles[task / run.splits / kv_heads];
    int64_t k = task / run.splits % kv_heads, s = first_split(tile) + task % run.splits;
    if (s >= end_split(tile)) continue;
    load_queries(p, tile, k, scratch);
    attend_split_any(p, tile, k, s, scratch, PartialOutput(w.partials + task * part, padded_dim));
  }
  team.wait();
  int64_t begin, end;
  team.range(tasks, 1, &begin, &end);
  for (int64_t task = begin; task < end; ++task) {
    const QueryTile& tile = w.query_tiles[task / kv_heads];
    PartialOutput merged(w.partials + task * run.splits * part, padded_dim);
    for (int64_t s = 1; s < end_split(tile) - first_split(tile); ++s)
      merge_split(merged, PartialOutput(w.partials + (task * run.splits + s) * part, padded_dim),
                  (int)(tile.last_row - tile.first_row), padded_dim);
    write_output(p, tile, task % kv_heads, merged);
  }
  team.wait();
}

// The feed-forward layer, into `w.y`.
inline void feed_forward(Team& team, const StepRun& run, const Layer& layer, const float* x) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  linear_lora(team, run, layer.up[0], layer.up_lora, w.adapter, x, run.tokens, w.hidden_row, w.up, w.up_row);
  int64_t begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) activate_row(m.activation, w.up + t * w.up_row, m.ffn, w.ffn + t * w.ffn_row);
  team.wait();
  linear_lora(team, run, layer.down[0], layer.down_lora, w.adapter, w.ffn, run.tokens, w.ffn_row, w.y, w.hidden_row);
}

// Routes the tokens, and gathers the input rows of each expert into its slots.
inline void gather_experts(Team& team, const StepRun& run, const Layer& layer, const float* x) {
  const Model& m = run.m;
  Workspace& w = run.w;
  int64_t begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t)
    route_token(m, layer.router, x + t * w.hidden_row, t, w.router_score + team.thread * round_up(m.experts, 16),
                w.routing);
  team.wait();
  if (team.thread == 0) sort_by_expert(m, run.tokens, w.routing);
  team.wait();
  team.range(run.tokens * m.top_k, 1, &begin, &end);
  for (int64_t slot = begin; slot < end; ++slot) {
    int64_t t = w.routing.token[slot];
    memcpy(w.expert_in + slot * w.hidden_row, x + t * w.hidden_row, (size_t)m.hidden * sizeof(float));
    w.slot_adapter[slot] = w.adapter[t];
  }
  team.wait();
}

// Sums the expert outputs of each token by their routing weights, in the order of its experts.
inline void combine_experts(Team& team, const StepRun& run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  int64_t begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    float* to = w.y + t * w.hidden_row;
    memset(to, 0, (size_t)m.hidden * sizeof(float));
    for (int64_t k = 0; k < m.top_k; ++k) {
      const float* from = w.expert_out + w.routing.slot[t * m.top_k + k] * w.hidden_row;
      Vec weight = broadcast(w.routing.weight[t * m.top_k + k]);
      for_vectors(m.hidden,
                  [&](int64_t i, int64_t n) { store_n(to + i, load_n(to + i, n) + weight * load_n(from + i, n), n); });
    }
  }
  team.wait();
}

// A mixture of experts, into `w.y`: the rows routed to an expert are contiguous, so that it computes one product.
inline void mixture_of_experts(Team& team, const StepRun& run, const Layer& layer, const float* x) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  gather_experts(team, run, layer, x);
  const int32_t* start = w.routing.start;
  auto per_expert = [&](const Linear* linears, const LoraDelta* deltas, const float* from, int64_t from_row, float* to,
                        int64_t to_row) {
    for (int64_t e = 0; e < m.experts; ++e)
      if (start[e + 1] > start[e])
        linear_lora(team, run, linears[e], deltas ? deltas + e * m.adapters : nullptr, w.slot_adapter + start[e],
                    from + start[e] * from_row, start[e + 1] - start[e], from_row, to + start[e] * to_row, to_row);
  };
  per_expert(layer.up, layer.up_lora, w.expert_in, w.hidden_row, w.up, w.up_row);
  int64_t begin, end;
  team.range(run.tokens * m.top_k, 1, &begin, &end);
  for (int64_t slot = begin; slot < end; ++slot)
    activate_row(m.activation, w.up + slot * w.up_row, m.ffn, w.ffn + slot * w.ffn_row);
  team.wait();
  per_expert(layer.down, layer.down_lora, w.ffn, w.ffn_row, w.expert_out, w.hidden_row);
  combine_experts(team, run);
}

// The input of a block: the norm of x, or x itself if norms follow the blocks.
inline const float* norm_input(Team& team, const StepRun& run, const Norm& norm) {
  if (run.m.norm_after) return run.w.x;
  int64_t begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t)
    norm_row(norm, run.m.layer_norm, run.m.eps, run.w.x + t * run.w.hidden_row, run.m.hidden,
             run.w.normed + t * run.w.hidden_row);
  team.wait();
  return run.w.normed;
}

// Adds the output `w.y` of a block to the residual. Rows are divided among the threads as in `norm_input`, so that no
// barrier is needed between the two; ends with a barrier only if norms follow the blocks.
inline void add_residual(Team& team, const StepRun& run, const Norm& norm) {
  const Model& m = run.m;
  int64_t begin, end;
  team.range(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    float* x = run.w.x + t * run.w.hidden_row;
    const float* residual = m.residual_after_norm ? run.w.normed + t * run.w.hidden_row : x;
    residual_row(residual, m.residual_scale, run.w.y + t * run.w.hidden_row, m.hidden, x);
    if (m.norm_after) norm_row(norm, m.layer_norm, m.eps, x, m.hidden, x);
  }
  if (m.norm_after) team.wait();
}

// Moves the rows of the tokens that get logits to the front; the others are not needed after the last attention.
inline void keep_logits_rows(Team& team, StepRun& run) {
  Workspace& w = run.w;
  if (team.thread == 0)
    for (int64_t i = 0; i < run.s.logits_count; ++i) {
      int64_t t = run.s.logits_indices[i];
      if (t == i) continue;
      memcpy(w.attention + i * w.attention_row, w.attention + t * w.attention_row,
             (size_t)w.attention_row * sizeof(float));
      memcpy(w.x + i * w.hidden_row, w.x + t * w.hidden_row, (size_t)w.hidden_row * sizeof(float));
      memcpy(w.normed + i * w.hidden_row, w.normed + t * w.hidden_row, (size_t)w.hidden_row * sizeof(float));
      w.adapter[i] = w.adapter[t];
    }
  run.tokens = run.s.logits_count;
  team.wait();
}

// Final norm and logits.
inline void compute_logits(Team& team, const StepRun& run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  const float* x = w.x;
  if (m.final_norm.weight) {
    int64_t begin, end;
    team.range(run.tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; ++t)
      norm_row(m.final_norm, m.layer_norm, m.eps, w.x + t * w.hidden_row, m.hidden, w.normed + t * w.hidden_row);
    x = w.normed;
  }
  team.wait();
  int64_t row = w.hidden_row;
  if (m.project_out.data) {
    linear(team, m.project_out, x, run.tokens, row, w.embed, w.embed_row, w.linear_scratch);
    x = w.embed, row = w.embed_row;
  }
  linear(team, m.head, x, run.tokens, row, run.s.logits, m.vocab, w.linear_scratch);
}

inline void compute(Team& team, StepRun run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  embed(team, run);
  for (int64_t i = 0; i < m.layers; ++i) {
    const Layer& layer = m.layer[i];
    const float* x = norm_input(team, run, layer.norm);
    linear_lora(team, run, layer.qkv, layer.qkv_lora, w.adapter, x, run.tokens, w.hidden_row, w.qkv, w.qkv_row);
    write_kv(team, run, i);
    bool last = i + 1 == m.layers;
    if (last && !run.s.logits_count) return;
    attend(team, run, i);
    if (last && run.s.logits_count < run.tokens) keep_logits_rows(team, run);
    linear_lora(team, run, layer.out, layer.out_lora, w.adapter, w.attention, run.tokens, w.attention_row, w.y,
                w.hidden_row);
    add_residual(team, run, layer.norm);
    x = norm_input(team, run, layer.ffn_norm);
    if (m.experts)
      mixture_of_experts(team, run, layer, x);
    else
      feed_forward(team, run, layer, x);
    add_residual(team, run, layer.ffn_norm);
  }
  compute_logits(team, run);
}

// Divides the tokens of the step into query tiles.
inline void make_query_tiles(StepRun& run) {
  const Step& s = run.s;
  int64_t group = run.m.heads / run.m.kv_heads;
  for (int64_t first = 0, next; first < s.tokens; first = next) {
    for (next = first + 1; next < s.tokens && s.sequence[next] == s.sequence[first];) ++next;
    for (int64_t row = 0, rows = (next - first) * group; row < rows; row += TILE_ROWS) {
      int64_t end = row + TILE_ROWS < rows ? row + TILE_ROWS : rows;
      QueryTile tile = {s.sequence[first], first, row, end, INT64_MAX, 0};
      for (int64_t t = first + row / group; t <= first + (end - 1) / group; ++t) {
        if (s.attend_begin[t] < tile.kv_begin) tile.kv_begin = s.attend_begin[t];
        if (s.attend_end[t] > tile.kv_end) tile.kv_end = s.attend_end[t];
      }
      int64_t splits = end_split(tile) - first_split(tile);
      run.splits = splits > run.splits ? splits : run.splits;
      run.w.query_tiles[run.tiles++] = tile;
    }
  }
}

}  // namespace
