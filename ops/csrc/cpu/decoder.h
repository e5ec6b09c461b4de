// A whole step of a decoder: one parallel region from token ids to logits.
//
// Every function that takes the team is called by all its threads and ends with a barrier.

#pragma once

#include "changes.h"
#include "rows.h"
#include "workspace.h"

namespace {

struct Decoder {
  Model model;
  Cache cache;
  Workspace work;
  char *memory, *blocks;
};

// What a step computes on.
struct Run {
  Decoder& d;
  const Model& m;
  Workspace& w;
  const Step& s;
  int64_t tokens;   // rows that are still computed
  int64_t tiles;
  int64_t spans;    // most of any tile
  bool apart;       // whether spans of keys are tasks of their own
  bool adapted;     // whether any token has an adapter
};

// y = x w + bias, and the changes of adapters.
inline void apply(Team& team, const Run& run, const Linear& linear_of, const Change* changes, const int32_t* adapter,
                  const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row) {
  linear(team, linear_of, x, rows, x_row, y, y_row, run.w.scratch);
  if (run.adapted && changes)
    add_changes(team, changes, adapter, x, linear_of.in, rows, x_row, run.w.inner, run.w.inner_row, y, linear_of.out,
                y_row);
}

// Token vectors, and the rotation of each token.
inline void embed(Team& team, const Run& run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  bool projected = m.project_in.data != nullptr;
  float* to = projected ? w.embed : w.x;
  int64_t row = projected ? w.embed_row : w.hidden_row, pairs = m.turned / 2, begin, end;
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    int64_t from = run.s.ids[t] * m.embed_width;
    if (m.embed_bf16)
      for (int64_t i = 0; i < m.embed_width; ++i) {
        uint32_t bits = (uint32_t)((const uint16_t*)m.embed)[from + i] << 16;
        memcpy(to + t * row + i, &bits, 4);
      }
    else
      memcpy(to + t * row, (const float*)m.embed + from, (size_t)m.embed_width * sizeof(float));
    if (m.embed_norm.weight)
      norm_row(m.embed_norm, m.layer_norm, m.eps, to + t * row, m.embed_width, to + t * row);
    for (int64_t half = 0; pairs && half < (m.halves ? 2 : 1); ++half) {
      int64_t part = m.halves ? pairs / 2 : pairs, at = (half ? run.s.second[t] : run.s.position[t]) * part;
      memcpy(w.cosine + t * pairs + half * part, run.s.cosine + at, (size_t)part * sizeof(float));
      memcpy(w.sine + t * pairs + half * part, run.s.sine + at, (size_t)part * sizeof(float));
    }
  }
  team.wait();
  if (projected) linear(team, m.project_in, w.embed, run.tokens, w.embed_row, w.x, w.hidden_row, w.scratch);
  if (m.positions)
    for (int64_t t = begin; t < end; ++t)
      residual_row(w.x + t * w.hidden_row, 1.0f, m.positions + run.s.position[t] * m.hidden, m.hidden,
                   w.x + t * w.hidden_row);
  team.wait();
}

// Norms and turns queries and keys of each token, and writes keys and values to the cache.
inline void remember(Team& team, const Run& run, int64_t index) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  const Layer& layer = m.layer[index];
  int64_t group = m.heads / m.groups, pairs = m.turned / 2, begin, end;
  team.part(run.tokens * m.groups, 1, &begin, &end);
  for (int64_t task = begin; task < end; ++task) {
    int64_t t = task % run.tokens, k = task / run.tokens, place = run.s.place[t];
    float *all = w.qkv + t * w.qkv_row, *key = all + (m.heads + k) * m.width, *value = key + m.groups * m.width;
    const float *cosine = w.cosine + t * pairs, *sine = w.sine + t * pairs;
    for (int64_t n = k * group; n < (k + 1) * group; ++n) {
      float* query = all + n * m.width;
      if (layer.q_norm) norm_row(Norm{layer.q_norm, nullptr}, false, m.eps, query, m.width, query);
      if (pairs) turn_row(query, cosine, sine, pairs);
      if (run.s.query_scale) {
        float scale = run.s.query_scale[run.s.position[t]];
        for (int64_t i = 0; i < m.width; ++i) query[i] *= scale;
      }
    }
    if (layer.k_norm) norm_row(Norm{layer.k_norm, nullptr}, false, m.eps, key, m.width, key);
    if (pairs) turn_row(key, cosine, sine, pairs);
    int64_t block = run.s.blocks[run.s.row[t] * run.s.most_blocks + place / BLOCK];
    write_place(run.d.cache, run.d.cache.at(index, block, k), place % BLOCK, key, value);
  }
  team.wait();
}

// Attention of every token into `mixed`.
inline void attend(Team& team, const Run& run, int64_t index) {
  const Workspace& w = run.w;
  Paged p = {&run.m, &run.s, run.d.cache, index, w.qkv, w.mixed, w.qkv_row, w.mixed_row, run.m.layer[index].score_scale};
  int64_t wide = p.cache.wide(), groups = run.m.groups, part = Mixed::size(wide), tasks = run.tiles * groups;
  Desk desk(w.desks + team.thread * whole(Desk::size(wide), 16), wide);
  if (!run.apart) {
    // The last tiles of a prompt see the most keys: they come first, so that the threads end together.
    for (int64_t task; (task = team.take()) < tasks;)
      attend_rows(p, w.rows[run.tiles - 1 - task / groups], task % groups, desk);
    team.wait();
    return;
  }
  for (int64_t task; (task = team.take()) < tasks * run.spans;) {
    const Rows& rows = w.rows[task / run.spans / groups];
    int64_t k = task / run.spans % groups, s = first_span(rows) + task % run.spans;
    if (s >= past_span(rows)) continue;
    take_queries(p, rows, k, desk);
    mix_any(p, rows, k, s, desk, Mixed(w.parts + task * part, wide));
  }
  team.wait();
  int64_t begin, end;
  team.part(tasks, 1, &begin, &end);
  for (int64_t task = begin; task < end; ++task) {
    const Rows& rows = w.rows[task / groups];
    Mixed joined(w.parts + task * run.spans * part, wide);
    for (int64_t s = 1; s < past_span(rows) - first_span(rows); ++s)
      join_span(joined, Mixed(w.parts + (task * run.spans + s) * part, wide), (int)(rows.last - rows.first), wide);
    finish_rows(p, rows, task % groups, joined);
  }
  team.wait();
}

// The feed-forward layer, into `y`.
inline void feed_forward(Team& team, const Run& run, const Layer& layer, const float* x) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  apply(team, run, layer.up[0], layer.up_changes, w.adapter, x, run.tokens, w.hidden_row, w.up, w.up_row);
  int64_t begin, end;
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t)
    activate_row(m.activation, w.up + t * w.up_row, m.ffn, w.ffn + t * w.ffn_row);
  team.wait();
  apply(team, run, layer.down[0], layer.down_changes, w.adapter, w.ffn, run.tokens, w.ffn_row, w.y, w.hidden_row);
}

// A mixture of experts, into `y`: each expert meets the rows that chose it, side by side.
inline void mixture(Team& team, Run& run, const Layer& layer, const float* x) {
  const Model& m = run.m;
  Workspace& w = run.w;
  int64_t slots = run.tokens * m.top_k, begin, end;
  int32_t* adapter = w.adapter + w.slots;
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t)
    route_token(m, layer.router, x + t * w.hidden_row, t, w.score + team.thread * whole(m.experts, 16), w.routing);
  team.wait();
  if (team.thread == 0) sort_choices(m, run.tokens, w.routing);
  team.wait();
  const int32_t* start = w.routing.start;
  team.part(slots, 1, &begin, &end);
  for (int64_t slot = begin; slot < end; ++slot) {
    int64_t t = w.routing.token[slot];
    memcpy(w.gathered + slot * w.hidden_row, x + t * w.hidden_row, (size_t)m.hidden * sizeof(float));
    adapter[slot] = w.adapter[t];
  }
  team.wait();
  auto each = [&](const Linear* linears, const Change* changes, const float* from, int64_t from_row, float* to,
                  int64_t to_row) {
    for (int64_t e = 0; e < m.experts; ++e)
      if (start[e + 1] > start[e])
        apply(team, run, linears[e], changes ? changes + e * m.adapters : nullptr, adapter + start[e],
              from + start[e] * from_row, start[e + 1] - start[e], from_row, to + start[e] * to_row, to_row);
  };
  each(layer.up, layer.up_changes, w.gathered, w.hidden_row, w.up, w.up_row);
  for (int64_t slot = begin; slot < end; ++slot)
    activate_row(m.activation, w.up + slot * w.up_row, m.ffn, w.ffn + slot * w.ffn_row);
  team.wait();
  each(layer.down, layer.down_changes, w.ffn, w.ffn_row, w.returned, w.hidden_row);
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    float* to = w.y + t * w.hidden_row;
    memset(to, 0, (size_t)m.hidden * sizeof(float));
    for (int64_t k = 0; k < m.top_k; ++k) {
      const float* from = w.returned + w.routing.slot[t * m.top_k + k] * w.hidden_row;
      Vec weight = set(w.routing.weight[t * m.top_k + k]);
      vectors(m.hidden, [&](int64_t i, int64_t n) {
        store_some(to + i, load_some(to + i, n) + weight * load_some(from + i, n), n);
      });
    }
  }
  team.wait();
}

// What a part reads: its norm of x, or x itself where norms come after.
inline const float* before(Team& team, const Run& run, const Norm& norm) {
  if (run.m.norm_after) return run.w.x;
  int64_t begin, end;
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t)
    norm_row(norm, run.m.layer_norm, run.m.eps, run.w.x + t * run.w.hidden_row, run.m.hidden,
             run.w.normed + t * run.w.hidden_row);
  team.wait();
  return run.w.normed;
}

// Adds what a part gave in `y`. Rows are divided among the threads as in `before`, so that no barrier is needed between.
inline void after(Team& team, const Run& run, const Norm& norm) {
  const Model& m = run.m;
  int64_t begin, end;
  team.part(run.tokens, 1, &begin, &end);
  for (int64_t t = begin; t < end; ++t) {
    float* x = run.w.x + t * run.w.hidden_row;
    const float* carried = m.carry_normed ? run.w.normed + t * run.w.hidden_row : x;
    residual_row(carried, m.carry_scale, run.w.y + t * run.w.hidden_row, m.hidden, x);
    if (m.norm_after) norm_row(norm, m.layer_norm, m.eps, x, m.hidden, x);
  }
  if (m.norm_after) team.wait();
}

// Keeps the rows of the tokens whose logits are wanted, in front; the others are of no use past the last attention.
inline void keep_wanted(Team& team, Run& run) {
  Workspace& w = run.w;
  if (team.thread == 0)
    for (int64_t i = 0; i < run.s.wanted_count; ++i) {
      int64_t t = run.s.wanted[i];
      if (t == i) continue;
      memcpy(w.mixed + i * w.mixed_row, w.mixed + t * w.mixed_row, (size_t)w.mixed_row * sizeof(float));
      memcpy(w.x + i * w.hidden_row, w.x + t * w.hidden_row, (size_t)w.hidden_row * sizeof(float));
      memcpy(w.normed + i * w.hidden_row, w.normed + t * w.hidden_row, (size_t)w.hidden_row * sizeof(float));
      w.adapter[i] = w.adapter[t];
    }
  run.tokens = run.s.wanted_count;
  team.wait();
}

// Final norm and logits of the wanted tokens.
inline void read_out(Team& team, const Run& run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  const float* x = w.x;
  if (m.final_norm.weight) {
    int64_t begin, end;
    team.part(run.tokens, 1, &begin, &end);
    for (int64_t t = begin; t < end; ++t)
      norm_row(m.final_norm, m.layer_norm, m.eps, w.x + t * w.hidden_row, m.hidden, w.normed + t * w.hidden_row);
    x = w.normed;
  }
  team.wait();
  int64_t row = w.hidden_row;
  if (m.project_out.data) {
    linear(team, m.project_out, x, run.tokens, row, w.embed, w.embed_row, w.scratch);
    x = w.embed, row = w.embed_row;
  }
  linear(team, m.head, x, run.tokens, row, run.s.logits, m.vocab, w.scratch);
}

inline void compute(Team& team, Run run) {
  const Model& m = run.m;
  const Workspace& w = run.w;
  embed(team, run);
  for (int64_t i = 0; i < m.layers; ++i) {
    const Layer& layer = m.layer[i];
    const float* x = before(team, run, layer.norm);
    apply(team, run, layer.qkv, layer.qkv_changes, w.adapter, x, run.tokens, w.hidden_row, w.qkv, w.qkv_row);
    remember(team, run, i);
    bool last = i + 1 == m.layers;
    if (last && !run.s.wanted_count) return;
    attend(team, run, i);
    if (last && run.s.wanted_count < run.tokens) keep_wanted(team, run);
    apply(team, run, layer.out, layer.out_changes, w.adapter, w.mixed, run.tokens, w.mixed_row, w.y, w.hidden_row);
    after(team, run, layer.norm);
    x = before(team, run, layer.ffn_norm);
    if (m.experts)
      mixture(team, run, layer, x);
    else
      feed_forward(team, run, layer, x);
    after(team, run, layer.ffn_norm);
  }
  read_out(team, run);
}

// Cuts the tokens of the step into tiles of queries.
inline void cut_rows(Run& run) {
  const Step& s = run.s;
  int64_t group = run.m.heads / run.m.groups;
  for (int64_t first = 0, next; first < s.tokens; first = next) {
    for (next = first + 1; next < s.tokens && s.row[next] == s.row[first];) ++next;
    for (int64_t row = 0, rows = (next - first) * group; row < rows; row += TILE_ROWS) {
      int64_t end = row + TILE_ROWS < rows ? row + TILE_ROWS : rows;
      Rows tile = {s.row[first], first, row, end, INT64_MAX, 0};
      for (int64_t t = first + row / group; t <= first + (end - 1) / group; ++t) {
        if (s.begin[t] < tile.low) tile.low = s.begin[t];
        if (s.end[t] > tile.high) tile.high = s.end[t];
      }
      int64_t spans = past_span(tile) - first_span(tile);
      run.spans = spans > run.spans ? spans : run.spans;
      run.w.rows[run.tiles++] = tile;
    }
  }
}

}  // namespace
