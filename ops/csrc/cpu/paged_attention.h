// Attention over the paged KV cache, for decoding and prefill alike: tiles of queries x 64 keys.
//
// The queries of all heads that share a key-value head are rows of one tile, so that keys and values are read once for
// them. Keys are split at fixed KV positions (split-KV); each split gives a partial output with its row max and row
// sum, and splits are merged in order. The result of a row thus depends only on its own query and keys: neither on the
// other rows of the step nor on how the work was divided among threads.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "convert.h"
#include "kv_cache.h"
#include "masking.h"
#include "simd.h"
#include "structs.h"

namespace {

const int TILE_ROWS = 48, TILE_KEYS = 64;
const int64_t SPLIT_KEYS = 512;

// Query rows [first_row, last_row) of a sequence, counted over its tokens and the query heads of one key-value head.
struct QueryTile {
  int64_t sequence, first_token;  // row of the block tables; the sequence's first token in the step
  int64_t first_row, last_row;
  int64_t kv_begin, kv_end;  // the KV positions that any of the rows attends to
};

// The partial output of a tile over one split of the keys, or over several merged ones.
struct PartialOutput {
  float *acc, *row_max, *row_sum;  // [TILE_ROWS, padded_dim], [TILE_ROWS], [TILE_ROWS]

  static int64_t size(int64_t padded_dim) { return TILE_ROWS * (padded_dim + 2); }
  PartialOutput(float* memory, int64_t padded_dim)
      : acc(memory), row_max(acc + TILE_ROWS * padded_dim), row_sum(row_max + TILE_ROWS) {}
};

// Scratch of one thread.
struct AttentionScratch {
  float *query, *score;             // [TILE_ROWS, head_dim], [TILE_ROWS, TILE_KEYS]
  float* lane_sums;                 // [TILE_ROWS, WIDTH]: the running row sums, one per vector lane
  float *split, *merged;            // PartialOutput
  float* slope;                     // [TILE_ROWS]: ALiBi, times log2(e)
  int32_t *begin, *end, *position;  // [TILE_ROWS]: the attention range of each row, and its KV position

  static int64_t size(int64_t padded_dim) {
    return TILE_ROWS * (padded_dim + TILE_KEYS + WIDTH + 4) + 2 * PartialOutput::size(padded_dim) + 64;
  }
  AttentionScratch(float* memory, int64_t padded_dim) {
    query = memory;
    score = query + TILE_ROWS * padded_dim;
    lane_sums = score + TILE_ROWS * TILE_KEYS;
    split = lane_sums + TILE_ROWS * WIDTH;
    merged = split + PartialOutput::size(padded_dim);
    slope = merged + PartialOutput::size(padded_dim);
    begin = (int32_t*)(slope + TILE_ROWS);
    end = begin + TILE_ROWS;
    position = end + TILE_ROWS;
  }
};

// Prefetches what is read next, since blocks are scattered and the hardware prefetcher cannot predict the next one.
// Called for consecutive vectors `index`; each cache line is prefetched once.
template <class T>
INLINE void prefetch(const T* p, int64_t index) {
  if (index * (int64_t)sizeof(T) * WIDTH % 64 == 0) __builtin_prefetch(p, 0, 2);
}

// score[R, C vectors] = query[R, head_dim] keys. Prefetches the values of the block, which follow its keys.
template <int R, int C, class T>
INLINE void qk_micro(const float* query, int64_t head_dim, const T* const* keys, float* score) {
  Vec total[R][C] = {};
  for (int64_t h = 0; h < head_dim; ++h) {
    Vec right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      right[c] = to_float(keys[c] + h * BLOCK);
      prefetch(keys[c] + (head_dim + h) * BLOCK, h);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec left = broadcast(query[r * head_dim + h]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(score + r * TILE_KEYS + c * WIDTH, total[r][c]);
}

// acc[R, C vectors] += weight[R, count] values. Prefetches `next`, the keys of the next tile.
template <int R, int C, class T>
INLINE void pv_micro(const float* weight, int count, const T* const* values, const T* const* next, int64_t padded_dim,
                     float* acc) {
  Vec total[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) total[r][c] = load(acc + r * padded_dim + c * WIDTH);
  for (int j = 0; j < count; ++j) {
    const T *value = values[j / BLOCK] + j % BLOCK * padded_dim, *next_value = next[j / BLOCK] + j % BLOCK * padded_dim;
    Vec right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      right[c] = to_float(value + c * WIDTH);
      prefetch(next_value + c * WIDTH, c);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec left = broadcast(weight[r * TILE_KEYS + j]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(acc + r * padded_dim + c * WIDTH, total[r][c]);
}

// Vectors per row of a micro kernel, as many as fit the registers; their number does not change the order of a sum.
#if WIDTH == 16
const int VECTORS = 4;
#else
const int VECTORS = 2;
#endif

template <int R, class T>
__attribute__((noinline)) void qk_strip(const float* query, int64_t head_dim, const T* const* blocks, int count,
                                        float* score) {
  int vectors = (count + WIDTH - 1) / WIDTH;
  const T* keys[TILE_KEYS / WIDTH];
  for (int v = 0; v < vectors; ++v) keys[v] = blocks[v * WIDTH / BLOCK] + v * WIDTH % BLOCK;
  int v = 0;
  for (; v + VECTORS <= vectors; v += VECTORS) qk_micro<R, VECTORS, T>(query, head_dim, keys + v, score + v * WIDTH);
  for (; v < vectors; ++v) qk_micro<R, 1, T>(query, head_dim, keys + v, score + v * WIDTH);
}

template <int R, class T>
__attribute__((noinline)) void pv_strip(const float* weight, int count, const T* const* blocks, const T* const* next,
                                        int64_t padded_dim, float* acc) {
  const T *values[TILE_KEYS / BLOCK], *next_value[TILE_KEYS / BLOCK];
  int64_t i = 0;
  auto advance = [&](int64_t vectors) {
    for (int b = 0; b * BLOCK < count; ++b) values[b] = blocks[b] + i, next_value[b] = next[b] + i;
    i += vectors * WIDTH;
  };
  while (i + VECTORS * WIDTH <= padded_dim) {
    float* to = acc + i;
    advance(VECTORS);
    pv_micro<R, VECTORS, T>(weight, count, values, next_value, padded_dim, to);
  }
  while (i < padded_dim) {
    float* to = acc + i;
    advance(1);
    pv_micro<R, 1, T>(weight, count, values, next_value, padded_dim, to);
  }
}

// Calls call(R) for strips of at most 6 of `rows` rows; `r` is the first row of a strip.
#define STRIPS(rows, call)                   \
  {                                          \
    int r = 0;                               \
    for (; r + 6 <= (rows); r += 6) call(6); \
    switch ((rows) - r) {                    \
      case 1: call(1); break;                \
      case 2: call(2); break;                \
      case 3: call(3); break;                \
      case 4: call(4); break;                \
      case 5: call(5); break;                \
      default: break;                        \
    }                                        \
  }

struct PagedAttention {
  const Model* model;
  const Step* step;
  KVCache cache;
  int64_t layer;
  const float* qkv;  // [T, qkv_row]
  float* out;        // [T, out_row]
  int64_t qkv_row, out_row;
  float scale;

  int64_t group() const { return model->heads / model->kv_heads; }
};

// Copies the scaled queries of a tile, and the attention range of each row.
INLINE void load_queries(const PagedAttention& p, const QueryTile& tile, int64_t k, AttentionScratch& scratch) {
  int64_t head_dim = p.model->head_dim, group = p.group();
  for (int64_t row = tile.first_row; row < tile.last_row; ++row) {
    int64_t t = tile.first_token + row / group, head = k * group + row % group, r = row - tile.first_row;
    const float* from = p.qkv + t * p.qkv_row + head * head_dim;
    float* to = scratch.query + r * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) to[i] = from[i] * (p.scale * LOG2E);
    scratch.begin[r] = p.step->attend_begin[t];
    scratch.end[r] = p.step->attend_end[t];
    scratch.position[r] = p.step->kv_position[t];
    scratch.slope[r] = p.model->alibi_slopes ? p.model->alibi_slopes[head] * LOG2E : 0.0f;
  }
}

// Online softmax of one row over `count` keys from a KV position on: scores become weights under the new row max; what
// was accumulated is rescaled to it.
INLINE void online_softmax_row(const AttentionScratch& scratch, int r, int64_t position, int count,
                               const float* key_scales, const float* value_scales, bool alibi, PartialOutput& split,
                               int64_t padded_dim) {
  float* score = scratch.score + r * TILE_KEYS;
  Int lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
  bool unmasked = scratch.begin[r] <= position && scratch.end[r] >= position + count && count % WIDTH == 0;
  int32_t last = scratch.end[r] < position + count ? scratch.end[r] : (int32_t)(position + count);
  Vec max = broadcast(split.row_max[r]);
  for (int j = 0; j < count; j += WIDTH) {
    Vec s = load(score + j);
    if (key_scales) s *= load(key_scales + j);
    Int at = lanes + broadcast_int((int32_t)position + j);
    if (alibi) s += broadcast(scratch.slope[r]) * __builtin_convertvector(at - broadcast_int(scratch.position[r]), Vec);
    if (!unmasked) {
      s = at >= broadcast_int(scratch.begin[r]) ? s : broadcast(MASKED);
      s = at < broadcast_int(last) ? s : broadcast(MASKED);
    }
    max = vec_max(max, s);
    store(score + j, s);
  }
  float top = reduce_max(max), rescale = exp2(broadcast(split.row_max[r] - top))[0];
  Vec total = load(scratch.lane_sums + r * WIDTH) * broadcast(rescale);
  for (int j = 0; j < count; j += WIDTH) {
    Vec s = load(score + j), weight = exp2(s - broadcast(top));
    if (!unmasked) weight = s <= broadcast(0.5f * MASKED) ? Vec{} : weight;
    total += weight;
    store(score + j, value_scales ? weight * load(value_scales + j) : weight);
  }
  store(scratch.lane_sums + r * WIDTH, total);
  if (rescale != 1.0f)
    for (int64_t i = 0; i < padded_dim; i += WIDTH)
      store(split.acc + r * padded_dim + i, load(split.acc + r * padded_dim + i) * broadcast(rescale));
  split.row_max[r] = top;
}

// Attention of a tile, whose queries are in the scratch, over the KV positions [from, to) of one split.
template <class T>
inline void attend_split(const PagedAttention& p, const QueryTile& tile, int64_t k, int64_t from, int64_t to,
                         AttentionScratch& scratch, PartialOutput split) {
  int count = (int)(tile.last_row - tile.first_row);
  int64_t head_dim = p.model->head_dim, padded_dim = p.cache.padded_dim();
  const bool int8 = sizeof(T) == 1;
  memset(split.acc, 0, (size_t)(count * padded_dim) * sizeof(float));
  memset(scratch.lane_sums, 0, (size_t)(count * WIDTH) * sizeof(float));
  for (int r = 0; r < count; ++r) split.row_max[r] = MASKED;
  const int32_t* table = p.step->block_tables + tile.sequence * p.step->max_blocks;
  alignas(64) float key_scales[TILE_KEYS], value_scales[TILE_KEYS];
  for (int64_t position = from / TILE_KEYS * TILE_KEYS; position < to; position += TILE_KEYS) {
    // Blocks before the first visible key may be freed; those past the last one belong to other sequences or to none.
    int64_t start = position < from ? from / BLOCK * BLOCK : position;
    int tile_keys = (int)(position + TILE_KEYS < to ? position + TILE_KEYS - start : to - start);
    const T *keys[TILE_KEYS / BLOCK], *values[TILE_KEYS / BLOCK], *next[TILE_KEYS / BLOCK];
    for (int b = 0; b * BLOCK < tile_keys; ++b) {
      char* head = p.cache.head(p.layer, table[start / BLOCK + b], k);
      int64_t next_position = position + TILE_KEYS + b * BLOCK;
      next[b] = next_position < to ? (const T*)p.cache.head(p.layer, table[next_position / BLOCK], k) : (const T*)head;
      keys[b] = (const T*)head;
      values[b] = (const T*)head + BLOCK * head_dim;
      if (int8) {
        const float* scales = p.cache.scales(head);
        memcpy(key_scales + b * BLOCK, scales, BLOCK * sizeof(float));
        memcpy(value_scales + b * BLOCK, scales + BLOCK, BLOCK * sizeof(float));
      }
    }
#define QK(R) qk_strip<R, T>(scratch.query + r * head_dim, head_dim, keys, tile_keys, scratch.score + r * TILE_KEYS)
    STRIPS(count, QK)
#undef QK
    for (int r = 0; r < count; ++r)
      online_softmax_row(scratch, r, start, tile_keys, int8 ? key_scales : nullptr, int8 ? value_scales : nullptr,
                         p.model->alibi_slopes != nullptr, split, padded_dim);
#define PV(R) \
  pv_strip<R, T>(scratch.score + r * TILE_KEYS, tile_keys, values, next, padded_dim, split.acc + r * padded_dim)
    STRIPS(count, PV)
#undef PV
  }
  for (int r = 0; r < count; ++r) split.row_sum[r] = reduce_sum(load(scratch.lane_sums + r * WIDTH));
}

// Merges a split into those before it.
INLINE void merge_split(PartialOutput merged, PartialOutput split, int count, int64_t padded_dim) {
  for (int r = 0; r < count; ++r) {
    // NaN propagates: a comparison with it is false, so it is tested for.
    float before = merged.row_max[r], other = split.row_max[r];
    float row_max = before < other || other != other ? other : before;
    float old_scale = exp2(broadcast(before - row_max))[0], new_scale = exp2(broadcast(other - row_max))[0];
    for (int64_t i = r * padded_dim; i < (r + 1) * padded_dim; i += WIDTH)
      store(merged.acc + i, load(merged.acc + i) * broadcast(old_scale) + load(split.acc + i) * broadcast(new_scale));
    merged.row_sum[r] = merged.row_sum[r] * old_scale + split.row_sum[r] * new_scale;
    merged.row_max[r] = row_max;
  }
}

// Writes the rows of a tile, divided by their row sums; a row that attends to no key is 0.
INLINE void write_output(const PagedAttention& p, const QueryTile& tile, int64_t k, PartialOutput merged) {
  int64_t head_dim = p.model->head_dim, padded_dim = p.cache.padded_dim(), group = p.group();
  for (int64_t row = tile.first_row; row < tile.last_row; ++row) {
    int64_t r = row - tile.first_row;
    float* to = p.out + (tile.first_token + row / group) * p.out_row + (k * group + row % group) * head_dim;
    Vec factor = broadcast(merged.row_sum[r] == 0.0f ? 0.0f : 1.0f / merged.row_sum[r]);
    for_vectors(head_dim,
                [&](int64_t i, int64_t n) { store_n(to + i, load_n(merged.acc + r * padded_dim + i, n) * factor, n); });
  }
}

INLINE void attend_split_any(const PagedAttention& p, const QueryTile& tile, int64_t k, int64_t s,
                             AttentionScratch& scratch, PartialOutput split) {
  int64_t from = s * SPLIT_KEYS, to = from + SPLIT_KEYS;
  from = from < tile.kv_begin ? tile.kv_begin : from;
  to = to > tile.kv_end ? tile.kv_end : to;
  if (p.cache.kind == CACHE_INT8)
    attend_split<int8_t>(p, tile, k, from, to, scratch, split);
  else if (p.cache.kind == CACHE_F16)
    attend_split<Half>(p, tile, k, from, to, scratch, split);
  else
    attend_split<float>(p, tile, k, from, to, scratch, split);
}

INLINE int64_t first_split(const QueryTile& tile) { return tile.kv_begin / SPLIT_KEYS; }
INLINE int64_t end_split(const QueryTile& tile) { return (tile.kv_end + SPLIT_KEYS - 1) / SPLIT_KEYS; }

// Attention of a tile for one key-value head, split after split.
inline void attend_tile(const PagedAttention& p, const QueryTile& tile, int64_t k, AttentionScratch& scratch) {
  int64_t padded_dim = p.cache.padded_dim();
  int count = (int)(tile.last_row - tile.first_row);
  load_queries(p, tile, k, scratch);
  PartialOutput merged(scratch.merged, padded_dim), split(scratch.split, padded_dim);
  for (int64_t s = first_split(tile); s < end_split(tile); ++s) {
    bool first = s == first_split(tile);
    attend_split_any(p, tile, k, s, scratch, first ? merged : split);
    if (!first) merge_split(merged, split, count, padded_dim);
  }
  write_output(p, tile, k, merged);
}

}  // namespace
