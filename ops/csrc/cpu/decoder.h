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

enum Fault : int { NONE = 0, NO_MEMORY = 1, TOKENS, IDS, ROWS_OF, PLACES, SEEN, BLOCKS_OF, POSITIONS, ADAPTERS, WANTED };

// What of a step would be read or written past the end of something; `where` gets its index.
inline Fault fault_of(const Decoder& d, const Step& s, int64_t* where) {
  const Model& m = d.model;
  int64_t room = s.most_blocks * BLOCK;
  if (s.tokens < 1 || s.tokens > d.work.tokens || s.wanted_count < 0 || s.wanted_count > s.tokens) return TOKENS;
  for (int64_t t = 0; t < s.tokens; ++t) {
    *where = t;
    if (s.ids[t] < 0 || s.ids[t] >= m.vocab) return IDS;
    if (s.row[t] < 0 || s.row[t] >= s.rows) return ROWS_OF;
    if (s.place[t] < 0 || s.place[t] >= room) return PLACES;
    if (s.begin[t] < 0 || s.begin[t] >= s.end[t] || s.end[t] > room) return SEEN;
    if (m.positions && (s.position[t] < 0 || s.position[t] >= m.position_rows)) return POSITIONS;
    if ((m.turned || s.query_scale) && (s.position[t] < 0 || s.position[t] >= s.angle_rows)) return POSITIONS;
    if (m.halves && (s.second[t] < 0 || s.second[t] >= s.angle_rows)) return POSITIONS;
    // Neighbours of a sequence see much the same: only what the one before did not see is looked up.
    bool known = t > 0 && s.row[t - 1] == s.row[t] && s.begin[t] >= s.begin[t - 1];
    int64_t first = known && s.end[t - 1] > s.begin[t] ? (s.end[t - 1] - 1) / BLOCK : s.begin[t] / BLOCK;
    const int32_t* table = s.blocks + s.row[t] * s.most_blocks;
    for (int64_t b = first; b <= (s.end[t] - 1) / BLOCK; ++b)
      if (table[b] < 0 || table[b] >= d.cache.blocks) return BLOCKS_OF;
    if (table[s.place[t] / BLOCK] < 0 || table[s.place[t] / BLOCK] >= d.cache.blocks) return BLOCKS_OF;
  }
  for (int64_t r = 0; r < s.rows; ++r)
    if (*where = r, s.adapter[r] < -1 || s.adapter[r] >= m.adapters) return ADAPTERS;
  for (int64_t i = 0; i < s.wanted_count; ++i)
    if (*where = i, s.wanted[i] < (i ? s.wanted[i - 1] + 1 : 0) || s.wanted[i] >= s.tokens) return WANTED;
  return NONE;
}

}  // namespace

// Opens a decoder of a Model, whose arrays must outlive it. 0 = done, 1 = no memory.
EXPORT int NAME(decoder_open)(const void* described, int64_t tokens, void** opened) {
  const Model* model = (const Model*)described;
  Decoder* d = (Decoder*)calloc(1, sizeof(Decoder));
  if (!d) return NO_MEMORY;
  d->model = *model;
  d->cache = Cache{nullptr, 0, model->groups, model->width, model->layers, model->cache_int8 != 0};
  int64_t threads = threads_for(INT64_MAX);
  Arena arena = {nullptr, 0};
  lay_out(d->model, tokens, threads, d->work, arena);
  arena = {d->memory = aligned<char>(arena.used), 0};
  if (!d->memory) return free(d), NO_MEMORY;
  lay_out(d->model, tokens, threads, d->work, arena);
  *opened = d;
  return NONE;
}

EXPORT int NAME(decoder_close)(void* decoder) {
  Decoder* d = (Decoder*)decoder;
  free(d->blocks);
  free(d->memory);
  free(d);
  return 0;
}

// Bytes of a block over all layers.
EXPORT int NAME(decoder_block_bytes)(const void* decoder, int64_t* bytes) {
  const Decoder* d = (const Decoder*)decoder;
  *bytes = d->cache.block_bytes() * d->cache.layers;
  return 0;
}

// Makes room for so many blocks; the cache is empty afterwards. Memory is taken when a block is written.
EXPORT int NAME(decoder_allocate)(void* decoder, int64_t blocks) {
  Decoder* d = (Decoder*)decoder;
  free(d->blocks);
  d->blocks = (char*)calloc(1, (size_t)(d->cache.block_bytes() * d->cache.layers * blocks + 64));
  d->cache.data = d->blocks + (64 - (uintptr_t)d->blocks % 64) % 64;
  d->cache.blocks = d->blocks ? blocks : 0;
  return d->blocks ? NONE : NO_MEMORY;
}

// Copies a block; 1 = it is none of the cache.
EXPORT int NAME(decoder_copy)(void* decoder, int64_t source, int64_t target) {
  Decoder* d = (Decoder*)decoder;
  if (source < 0 || source >= d->cache.blocks || target < 0 || target >= d->cache.blocks) return 1;
  for (int64_t layer = 0; layer < d->cache.layers; ++layer)
    memcpy(d->cache.at(layer, target, 0), d->cache.at(layer, source, 0), (size_t)d->cache.block_bytes());
  return 0;
}

// Writes keys and values [layers, 2, places, groups, width] to places 0 on of a sequence with these blocks; 1 = a block is
// none of the cache.
EXPORT int NAME(decoder_put)(void* decoder, const int32_t* blocks, const float* pairs, int64_t places) {
  Decoder* d = (Decoder*)decoder;
  const Cache& cache = d->cache;
  for (int64_t b = 0; b * BLOCK < places; ++b)
    if (blocks[b] < 0 || blocks[b] >= cache.blocks) return 1;
  int64_t row = cache.groups * cache.width;
  for (int64_t layer = 0; layer < cache.layers; ++layer)
    for (int64_t place = 0; place < places; ++place)
      for (int64_t k = 0; k < cache.groups; ++k) {
        const float* key = pairs + (layer * 2 * places + place) * row + k * cache.width;
        write_place(cache, cache.at(layer, blocks[place / BLOCK], k), place % BLOCK, key, key + places * row);
      }
  return 0;
}

// Computes a Step; gives a Fault, and where it is.
EXPORT int NAME(decoder_step)(void* decoder, const void* asked, int64_t* where) {
  Decoder* d = (Decoder*)decoder;
  const Step* step = (const Step*)asked;
  Fault fault = fault_of(*d, *step, where);
  if (fault) return fault;
  Run run = {*d, d->model, d->work, *step, step->tokens, 0, 0, false, false};
  for (int64_t t = 0; t < step->tokens; ++t) {
    d->work.adapter[t] = step->adapter[step->row[t]];
    run.adapted |= d->work.adapter[t] >= 0;
  }
  cut_rows(run);
  int64_t tasks = run.tiles * d->model.groups;
  run.apart = run.spans > 1 && tasks < 4 * d->work.threads && tasks * run.spans <= MOST_PARTS;
  gather(d->work.threads, [&](Team& team) { compute(team, run); });
  return NONE;
}
