// What attention computes on, and which queries see a tile of keys.
//
// The query in column t sees key j if first[j] <= past + t < last[j]; a tile that nobody sees is skipped, and a tile that
// only some queries see is narrowed to them. Letters: B batch, T queries, S keys, N query heads, K key-value heads, H
// head_dim.

#pragma once

#include <math.h>

#include "gemm.h"
#include "memory.h"
#include "parallel.h"

namespace {

const int QUERIES = 64, KEYS = 24;  // of a tile
const int STRIDE = QUERIES + 16;    // of its rows in a buffer: not a power of two, which would crowd the cache
const int WIDEST = 512;             // head_dim
const float UNSEEN = -1e30f, NOBODY = 1e30f;

struct Attention {
  const float *q, *k, *v;        // [B, T, N, H], [B, S, K, H]
  const int32_t *first, *last;   // [B or 1, S]
  const float *slopes, *places;  // [N], [B or 1, S], or null
  int64_t batch, queries, keys, heads, groups, width, mask_rows, place_rows, past;
  float scale;
};

// A tile's part of the keys, and the queries that see any of them: begin a multiple of WIDTH, end may pass the last query.
struct Tile {
  int64_t key;
  int keys, begin, end;
  bool whole;  // every query of the range sees every key
};

// What one query head reads.
struct Head {
  const float *q, *k, *v, *places;
  const int32_t *first, *last;
  float slope;  // in units of log 2
  int64_t q_row, k_row;
};

INLINE Head head_of(const Attention& a, int64_t b, int64_t n) {
  int64_t g = n / (a.heads / a.groups);
  Head h;
  h.q_row = a.heads * a.width;
  h.k_row = a.groups * a.width;
  h.q = a.q + b * a.queries * h.q_row + n * a.width;
  h.k = a.k + b * a.keys * h.k_row + g * a.width;
  h.v = a.v + b * a.keys * h.k_row + g * a.width;
  h.first = a.first + (a.mask_rows == 1 ? 0 : b) * a.keys;
  h.last = a.last + (a.mask_rows == 1 ? 0 : b) * a.keys;
  h.places = a.places ? a.places + (a.place_rows == 1 ? 0 : b) * a.keys : nullptr;
  h.slope = a.slopes ? a.slopes[n] * LOG2E : 0.0f;
  return h;
}

// The tile of keys from `key` on for the queries [from, from + count) of a row; false if none of them sees any.
INLINE bool find_tile(const Head& h, int64_t all_keys, int64_t key, int64_t from, int count, Tile* tile,
                      int most = KEYS) {
  int keys = (int)(all_keys - key < most ? all_keys - key : most);
  int64_t low = INT64_MAX, high = INT64_MIN, latest = INT64_MIN, earliest = INT64_MAX;
  for (int j = 0; j < keys; ++j) {
    int64_t first = h.first[key + j], last = h.last[key + j];
    latest = first > latest ? first : latest;
    earliest = last < earliest ? last : earliest;
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
  tile->whole = latest <= from + tile->begin && earliest >= from + (tile->end < count ? tile->end : count);
  return true;
}

}  // namespace
