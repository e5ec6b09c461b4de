// The arguments of attention, and which queries attend to a tile of keys.
//
// Query t attends to key j if first[j] <= past + t < last[j] (FlashMask). A tile of keys to which no query attends is
// skipped; one to which only some queries attend is narrowed to them. Shape suffixes: B batch, T queries, S keys, N query
// heads, K key-value heads, H head_dim.

#pragma once

#include <stdint.h>

#include "simd.h"

namespace {

const int FLASH_QUERIES = 64, FLASH_KEYS = 24;  // of a tile
const int FLASH_STRIDE =
    FLASH_QUERIES + 16;  // row stride of tile buffers; a power of two would cause cache set conflicts
const int MAX_HEAD_DIM = 512;
const float EMPTY_LSE = 1e30f;  // log-sum-exp of a query that attends to no key: its weights become 0

struct Attention {
  const float *q, *k, *v;               // [B, T, N, H], [B, S, K, H]
  const int32_t *first, *last;          // [B or 1, S]
  const float *slopes, *key_positions;  // ALiBi: [N], [B or 1, S]; null = none
  int64_t batch, queries, keys, heads, kv_heads, head_dim, mask_batch, position_batch, past;
  float scale;
};

// A tile of keys, and the queries that attend to any of them: `begin` is a multiple of WIDTH, `end` may pass the last
// query.
struct Tile {
  int64_t key;
  int keys, begin, end;
  bool unmasked;  // every query of the range attends to every key
};

// The arguments of one query head.
struct Head {
  const float *q, *k, *v, *key_positions;
  const int32_t *first, *last;
  float slope;  // times log2(e)
  int64_t q_stride, kv_stride;
};

INLINE Head head_view(const Attention &a, int64_t b, int64_t n) {
  int64_t k = n / (a.heads / a.kv_heads);
  Head h;
  h.q_stride = a.heads * a.head_dim;
  h.kv_stride = a.kv_heads * a.head_dim;
  h.q = a.q + b * a.queries * h.q_stride + n * a.head_dim;
  h.k = a.k + b * a.keys * h.kv_stride + k * a.head_dim;
  h.v = a.v + b * a.keys * h.kv_stride + k * a.head_dim;
  h.first = a.first + (a.mask_batch == 1 ? 0 : b) * a.keys;
  h.last = a.last + (a.mask_batch == 1 ? 0 : b) * a.keys;
  h.key_positions = a.key_positions ? a.key_positions + (a.position_batch == 1 ? 0 : b) * a.keys : nullptr;
  h.slope = a.slopes ? a.slopes[n] * LOG2E : 0.0f;
  return h;
}

// The tile of keys from `key` on, for the queries [from, from + count) of a row; false if no query attends to any.
INLINE bool find_tile(const Head &h, int64_t all_keys, int64_t key, int64_t from, int count, Tile *tile,
                      int max_keys = FLASH_KEYS) {
  int keys = (int)(all_keys - key < max_keys ? all_keys - key : max_keys);
  int64_t low = INT64_MAX, high = INT64_MIN, max_first = INT64_MIN, min_last = INT64_MAX;
  for (int j = 0; j < keys; ++j) {
    int64_t first = h.first[key + j], last = h.last[key + j];
    max_first = first > max_first ? first : max_first;
    min_last = last < min_last ? last : min_last;
    if (first >= last) continue;
    low = first < low ? first : low;
    high = last > high ? last : high;
  }
  if (low >= from + count || high <= from) return false;
  int begin = low > from ? (int)(low - from) : 0;
  int end = high < from + count ? (int)(high - from) : count;
  tile->key = key;
  tile->keys = keys;
  tile->begin = begin / WIDTH * WIDTH;
  tile->end = (end + WIDTH - 1) / WIDTH * WIDTH;
  tile->unmasked = max_first <= from + tile->begin && min_last >= from + (tile->end < count ? tile->end : count);
  return true;
}

}  // namespace
