// Attention with one query per row, as in decoding: bound by reading keys and values once.
//
// A key-value head with all query heads that share it is one task. With fewer tasks than threads the keys are split
// (split-KV), and the partial results are merged by their row maxima and row sums.

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention_tiles.h"
#include "gemm.h"
#include "masking.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

const int SINGLE_TILE = 64;  // keys of a tile

// Partial result of one split of the keys for a group of query heads: for each head the scores of a tile, the
// accumulated values, the row max and the row sum.
struct SplitKV {
  float *scores, *acc, *row_max, *row_sum;

  static int64_t size(int64_t heads, int64_t head_dim) { return heads * (SINGLE_TILE + head_dim + 2) / 16 * 16 + 16; }
  SplitKV(float* memory, int64_t heads, int64_t head_dim)
      : scores(memory), acc(scores + heads * SINGLE_TILE), row_max(acc + heads * head_dim), row_sum(row_max + heads) {}
};

INLINE float dot(const float* a, const float* b, int64_t head_dim) {
  Vec total = {};
  for (int64_t i = 0; i < head_dim; i += WIDTH) total += load(a + i) * load(b + i);
  return reduce_sum(total);
}

// Scores of a group's heads at a tile of keys, times log2(e); rows of SINGLE_TILE, padded with MASKED.
INLINE void single_scores(const Attention& a, const Head& h, int64_t b, int64_t n, int64_t group, int64_t key, int keys,
                          SplitKV& split) {
  const float* q = a.q + b * h.q_stride + n * a.head_dim;
  for (int j = 0; j < SINGLE_TILE; ++j) {
    bool visible = j < keys && h.first[key + j] <= a.past && a.past < h.last[key + j];
    for (int64_t g = 0; g < group; ++g) {
      float score = MASKED;
      if (visible) {
        score = dot(q + g * a.head_dim, h.k + (key + j) * h.kv_stride, a.head_dim) * a.scale;
        if (h.key_positions) score += a.slopes[n + g] * h.key_positions[key + j];
        score *= LOG2E;
      }
      split.scores[g * SINGLE_TILE + j] = score;
    }
  }
}

// Online softmax of a head: scores become weights under the new row max; what was accumulated is rescaled to it.
INLINE void single_softmax(float* scores, float* acc, float& row_max, float& row_sum, int64_t head_dim) {
  Vec max = broadcast(row_max);
  for (int j = 0; j < SINGLE_TILE; j += WIDTH) max = vec_max(max, load(scores + j));
  float top = reduce_max(max), rescale = (exp2(broadcast(row_max - top)))[0];
  Vec added = {};
  for (int j = 0; j < SINGLE_TILE; j += WIDTH) {
    Vec s = load(scores + j), p = exp2(s - broadcast(top));
    p = s <= broadcast(0.5f * MASKED) ? Vec{} : p;
    added += p;
    store(scores + j, p);
  }
  if (rescale != 1.0f)
    for (int64_t i = 0; i < head_dim; i += WIDTH) store(acc + i, load(acc + i) * broadcast(rescale));
  row_max = top;
  row_sum = row_sum * rescale + reduce_sum(added);
}

INLINE void single_split(const Attention& a, int64_t b, int64_t k, int64_t begin, int64_t end, SplitKV split) {
  int64_t group = a.heads / a.kv_heads, n = k * group;
  Head h = head_view(a, b, n);
  memset(split.acc, 0, (size_t)(group * a.head_dim) * sizeof(float));
  for (int64_t g = 0; g < group; ++g) split.row_max[g] = MASKED, split.row_sum[g] = 0.0f;
  Tile tile;
  for (int64_t key = begin; key < end; key += SINGLE_TILE) {
    int keys = (int)(end - key < SINGLE_TILE ? end - key : SINGLE_TILE);
    if (!find_tile(h, end, key, a.past, 1, &tile, SINGLE_TILE)) continue;
    single_scores(a, h, b, n, group, key, keys, split);
    for (int64_t g = 0; g < group; ++g)
      single_softmax(split.scores + g * SINGLE_TILE, split.acc + g * a.head_dim, split.row_max[g], split.row_sum[g],
                     a.head_dim);
    multiply(true, (int)group, (int)a.head_dim, keys, split.scores, SINGLE_TILE, 1, h.v + key * h.kv_stride,
             h.kv_stride, split.acc, a.head_dim);
  }
}

// Merges the splits of one head into its output.
INLINE void single_merge(float* memory, int64_t step, int64_t splits, int64_t g, int64_t group, int64_t head_dim,
                         float* out) {
  float row_max = MASKED, row_sum = 0.0f;
  for (int64_t s = 0; s < splits; ++s) {
    float other = SplitKV(memory + s * step, group, head_dim).row_max[g];
    row_max = row_max < other || other != other ? other : row_max;
  }
  memset(out, 0, (size_t)head_dim * sizeof(float));
  for (int64_t s = 0; s < splits; ++s) {
    SplitKV split(memory + s * step, group, head_dim);
    float factor = (exp2(broadcast(split.row_max[g] - row_max)))[0];
    row_sum += split.row_sum[g] * factor;
    for (int64_t i = 0; i < head_dim; i += WIDTH)
      store(out + i, load(out + i) + broadcast(factor) * load(split.acc + g * head_dim + i));
  }
  Vec scale = broadcast(row_sum == 0.0f ? 0.0f : 1.0f / row_sum);
  for (int64_t i = 0; i < head_dim; i += WIDTH) store(out + i, load(out + i) * scale);
}

// Needs one query per row and a head_dim that is a multiple of WIDTH. 0 = done, 1 = no memory.
inline int forward_single_query(const Attention& a, float* out) {
  int64_t kv_rows = a.batch * a.kv_heads, group = a.heads / a.kv_heads, step = SplitKV::size(group, a.head_dim);
  int64_t threads = threads_for(kv_rows * ((a.keys + 4 * SINGLE_TILE - 1) / (4 * SINGLE_TILE)));
  int64_t splits = kv_rows == 0 || kv_rows >= threads ? 1 : (threads + kv_rows - 1) / kv_rows;
  int64_t split_size = ((a.keys + splits - 1) / splits + SINGLE_TILE - 1) / SINGLE_TILE * SINGLE_TILE;
  float* memory = aligned<float>(kv_rows * splits * step);
  if (!memory) return 1;
  auto work = [&](int64_t task, int) {
    int64_t kv_row = task / splits, begin = task % splits * split_size;
    int64_t end = begin + split_size < a.keys ? begin + split_size : a.keys;
    single_split(a, kv_row / a.kv_heads, kv_row % a.kv_heads, begin, end,
                 SplitKV(memory + task * step, group, a.head_dim));
  };
  // Waking other threads costs more than a short context.
  if (a.batch * a.keys * a.heads * a.head_dim < GRAIN)
    for (int64_t task = 0; task < kv_rows * splits; ++task) work(task, 0);
  else
    parallel(kv_rows * splits, work);
  for (int64_t kv_row = 0; kv_row < kv_rows; ++kv_row)
    for (int64_t g = 0; g < group; ++g)
      single_merge(memory + kv_row * splits * step, step, splits, g, group, a.head_dim,
                   out + (kv_row * group + g) * a.head_dim);
  free(memory);
  return 0;
}

}  // namespace
