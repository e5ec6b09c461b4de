// Flash attention in tiles of keys x queries, forward and backward. No buffer grows with queries x keys.
//
// Scores are stored transposed, one key per row with queries along the vector, so that the softmax over keys needs no
// horizontal sums.

#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention_single_query.h"
#include "attention_tiles.h"
#include "gemm.h"
#include "masking.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

// to[h][t] = from[t][h] * factor for t < count, padded with 0 to FLASH_QUERIES.
INLINE void transpose(const float* from, int64_t row, int count, int64_t head_dim, float factor, float* to) {
  for (int64_t h = 0; h < head_dim; ++h) {
    for (int t = 0; t < count; ++t) to[h * FLASH_STRIDE + t] = from[t * row + h] * factor;
    for (int t = count; t < FLASH_QUERIES; ++t) to[h * FLASH_STRIDE + t] = 0.0f;
  }
}

// Scores of a tile times log2(e), transposed; masked ones are MASKED.
INLINE void scores_of(const Head& h, int64_t head_dim, const Tile& tile, int64_t from, const float* query_HT,
                      float* s) {
  multiply(false, tile.keys, tile.end - tile.begin, (int)head_dim, h.k + tile.key * h.kv_stride, h.kv_stride, 1,
           query_HT + tile.begin, FLASH_STRIDE, s + tile.begin, FLASH_STRIDE);
  if (h.key_positions) {
    for (int j = 0; j < tile.keys; ++j) {
      Vec bias = broadcast(h.slope * h.key_positions[tile.key + j]);
      for (int t = tile.begin; t < tile.end; t += WIDTH)
        store(s + j * FLASH_STRIDE + t, load(s + j * FLASH_STRIDE + t) + bias);
    }
  }
  if (tile.unmasked) return;
  Int lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
  for (int j = 0; j < tile.keys; ++j) {
    int64_t first = h.first[tile.key + j] - from, last = h.last[tile.key + j] - from;
    // Clamped to the tile, so that they fit int32.
    Int low = broadcast_int((int32_t)(first < -1 ? -1 : first > FLASH_QUERIES ? FLASH_QUERIES : first));
    Int high = broadcast_int((int32_t)(last < -1 ? -1 : last > FLASH_QUERIES ? FLASH_QUERIES : last));
    for (int t = tile.begin; t < tile.end; t += WIDTH) {
      Int column = lanes + broadcast_int(t);
      Vec score = load(s + j * FLASH_STRIDE + t);
      score = column >= low ? score : broadcast(MASKED);
      store(s + j * FLASH_STRIDE + t, column < high ? score : broadcast(MASKED));
    }
  }
}

struct ForwardBuffers {
  alignas(64) float query[MAX_HEAD_DIM * FLASH_STRIDE], acc[MAX_HEAD_DIM * FLASH_STRIDE], s[FLASH_KEYS * FLASH_STRIDE];
  alignas(64) float row_max[FLASH_QUERIES], row_sum[FLASH_QUERIES];
};

// Scores become weights relative to the running row max; what was accumulated under an older one is rescaled.
INLINE void online_softmax(ForwardBuffers& w, const Tile& tile, int64_t head_dim) {
  for (int t = tile.begin; t < tile.end; t += WIDTH) {
    Vec before = load(w.row_max + t), row_max = before;
    for (int j = 0; j < tile.keys; ++j) row_max = vec_max(row_max, load(w.s + j * FLASH_STRIDE + t));
    Int grew = row_max != before;
    bool rescale = false;
    for (int i = 0; i < WIDTH; ++i) rescale |= grew[i] != 0;
    Vec row_sum = load(w.row_sum + t);
    if (rescale) {
      Vec rescale_by = exp2(before - row_max);
      row_sum *= rescale_by;
      store(w.row_max + t, row_max);
      for (int64_t h = 0; h < head_dim; ++h)
        store(w.acc + h * FLASH_STRIDE + t, load(w.acc + h * FLASH_STRIDE + t) * rescale_by);
    }
    for (int j = 0; j < tile.keys; ++j) {
      Vec s = load(w.s + j * FLASH_STRIDE + t);
      Vec p = exp2(s - row_max);
      if (!tile.unmasked) p = s <= broadcast(0.5f * MASKED) ? Vec{} : p;
      row_sum += p;
      store(w.s + j * FLASH_STRIDE + t, p);
    }
    store(w.row_sum + t, row_sum);
  }
}

// Forward of one block of queries of one head: the output, and the log2-sum-exp of each row for the backward pass.
inline void forward_block(const Attention& a, int64_t b, int64_t n, int64_t block, float* out, float* lse,
                          ForwardBuffers& w) {
  Head h = head_view(a, b, n);
  int64_t start = block * FLASH_QUERIES, from = a.past + start;
  int count = (int)(a.queries - start < FLASH_QUERIES ? a.queries - start : FLASH_QUERIES);
  transpose(h.q + start * h.q_stride, h.q_stride, count, a.head_dim, a.scale * LOG2E, w.query);
  for (int64_t i = 0; i < a.head_dim * FLASH_STRIDE; ++i) w.acc[i] = 0.0f;
  for (int t = 0; t < FLASH_QUERIES; ++t) w.row_max[t] = MASKED, w.row_sum[t] = 0.0f;
  Tile tile;
  for (int64_t key = 0; key < a.keys; key += FLASH_KEYS) {
    if (!find_tile(h, a.keys, key, from, count, &tile)) continue;
    scores_of(h, a.head_dim, tile, from, w.query, w.s);
    online_softmax(w, tile, a.head_dim);
    multiply(true, (int)a.head_dim, tile.end - tile.begin, tile.keys, h.v + key * h.kv_stride, 1, h.kv_stride,
             w.s + tile.begin, FLASH_STRIDE, w.acc + tile.begin, FLASH_STRIDE);
  }
  out += (b * a.queries + start) * h.q_stride + n * a.head_dim;
  for (int t = 0; t < count; ++t) {
    float factor = w.row_sum[t] == 0.0f ? 0.0f : 1.0f / w.row_sum[t];
    for (int64_t i = 0; i < a.head_dim; ++i) out[t * h.q_stride + i] = w.acc[i * FLASH_STRIDE + t] * factor;
    if (lse)
      lse[(b * a.heads + n) * a.queries + start + t] =
          w.row_sum[t] == 0.0f ? EMPTY_LSE : w.row_max[t] + log2f(w.row_sum[t]);
  }
}

struct BackwardBuffers {
  alignas(64) float query[MAX_HEAD_DIM * FLASH_STRIDE], grad[MAX_HEAD_DIM * FLASH_STRIDE],
      grad_q[MAX_HEAD_DIM * FLASH_STRIDE];
  alignas(64) float p[FLASH_KEYS * FLASH_STRIDE], ds[FLASH_KEYS * FLASH_STRIDE];
  alignas(64) float lse[FLASH_QUERIES], delta[FLASH_QUERIES];
};

struct Gradients {
  const float *out, *lse, *grad;  // [B, T, N, H], [B, N, T], [B, T, N, H]
  float *q, *k, *v;               // results; k and v are accumulated
};

// In place: scores become weights, and the gradient of the weights becomes that of the scores.
INLINE void softmax_gradient(BackwardBuffers& w, const Tile& tile, float scale) {
  for (int j = 0; j < tile.keys; ++j) {
    for (int t = tile.begin; t < tile.end; t += WIDTH) {
      float *p = w.p + j * FLASH_STRIDE + t, *ds = w.ds + j * FLASH_STRIDE + t;
      Vec weight = exp2(load(p) - load(w.lse + t));
      store(p, weight);
      store(ds, weight * (load(ds) - load(w.delta + t)) * broadcast(scale));
    }
  }
}

// Backward of one block of queries of one head: writes the gradient of q, adds to those of k and v.
inline void backward_block(const Attention& a, const Gradients& g, int64_t b, int64_t n, int64_t block, float* grad_k,
                           float* grad_v, BackwardBuffers& w) {
  Head h = head_view(a, b, n);
  int64_t start = block * FLASH_QUERIES, from = a.past + start;
  int count = (int)(a.queries - start < FLASH_QUERIES ? a.queries - start : FLASH_QUERIES);
  int64_t at = (b * a.queries + start) * h.q_stride + n * a.head_dim, head_dim = a.head_dim;
  transpose(h.q + start * h.q_stride, h.q_stride, count, head_dim, a.scale * LOG2E, w.query);
  transpose(g.grad + at, h.q_stride, count, head_dim, 1.0f, w.grad);
  for (int t = 0; t < FLASH_QUERIES; ++t) {
    float delta = 0.0f;
    if (t < count)
      for (int64_t i = 0; i < head_dim; ++i) delta += g.out[at + t * h.q_stride + i] * g.grad[at + t * h.q_stride + i];
    w.delta[t] = delta;
    w.lse[t] = t < count ? g.lse[(b * a.heads + n) * a.queries + start + t] : EMPTY_LSE;
  }
  for (int64_t i = 0; i < head_dim * FLASH_STRIDE; ++i) w.grad_q[i] = 0.0f;
  Tile tile;
  for (int64_t key = 0; key < a.keys; key += FLASH_KEYS) {
    if (!find_tile(h, a.keys, key, from, count, &tile)) continue;
    int begin = tile.begin, columns = tile.end - begin;
    int rows = (tile.end < count ? tile.end : count) - begin;
    scores_of(h, head_dim, tile, from, w.query, w.p);
    multiply(false, tile.keys, columns, (int)head_dim, h.v + key * h.kv_stride, h.kv_stride, 1, w.grad + begin,
             FLASH_STRIDE, w.ds + begin, FLASH_STRIDE);
    softmax_gradient(w, tile, a.scale);
    int64_t row = at + begin * h.q_stride;
    multiply(true, tile.keys, (int)head_dim, rows, w.p + begin, FLASH_STRIDE, 1, g.grad + row, h.q_stride,
             grad_v + key * h.kv_stride, h.kv_stride);
    multiply(true, tile.keys, (int)head_dim, rows, w.ds + begin, FLASH_STRIDE, 1, h.q + (start + begin) * h.q_stride,
             h.q_stride, grad_k + key * h.kv_stride, h.kv_stride);
    multiply(true, (int)head_dim, columns, tile.keys, h.k + key * h.kv_stride, 1, h.kv_stride, w.ds + begin,
             FLASH_STRIDE, w.grad_q + begin, FLASH_STRIDE);
  }
  for (int t = 0; t < count; ++t)
    for (int64_t i = 0; i < head_dim; ++i) g.q[at + t * h.q_stride + i] = w.grad_q[i * FLASH_STRIDE + t];
}

inline int forward_all(const Attention& a, float* out, float* lse) {
  int64_t blocks = (a.queries + FLASH_QUERIES - 1) / FLASH_QUERIES, tasks = a.batch * a.heads * blocks;
  ForwardBuffers* buffers = aligned<ForwardBuffers>(threads_for(tasks));
  if (!buffers) return 1;
  parallel(tasks, [&](int64_t task, int thread) {
    // Under a causal mask the last blocks have the most keys: they run first, so that the threads finish together.
    int64_t block = blocks - 1 - task / (a.batch * a.heads), head = task % (a.batch * a.heads);
    forward_block(a, head / a.heads, head % a.heads, block, out, lse, buffers[thread]);
  });
  free(buffers);
  return 0;
}

// One task is a batch row and a key-value head, since the gradients of its keys are sums over queries and heads. With
// fewer tasks than threads, the query blocks of each are split, and every split accumulates into a buffer of its own.
inline int backward_all(const Attention& a, const Gradients& g) {
  int64_t blocks = (a.queries + FLASH_QUERIES - 1) / FLASH_QUERIES, kv_rows = a.batch * a.kv_heads,
          group = a.heads / a.kv_heads;
  int64_t threads = threads_for(kv_rows * blocks), size = a.batch * a.keys * a.kv_heads * a.head_dim;
  int64_t splits = kv_rows == 0 || kv_rows >= threads ? 1 : (threads + kv_rows - 1) / kv_rows;
  BackwardBuffers* buffers = aligned<BackwardBuffers>(threads);
  float* split_grads = aligned<float>(2 * size * (splits - 1));
  if (!buffers || !split_grads) return free(buffers), free(split_grads), 1;
  if (size) memset(g.k, 0, (size_t)size * sizeof(float)), memset(g.v, 0, (size_t)size * sizeof(float));
  memset(split_grads, 0, (size_t)(2 * size * (splits - 1)) * sizeof(float));
  parallel(kv_rows * splits, [&](int64_t task, int thread) {
    int64_t split = task % splits, b = task / splits / a.kv_heads, k = task / splits % a.kv_heads;
    int64_t at = b * a.keys * a.kv_heads * a.head_dim + k * a.head_dim;
    float* grad_k = (split ? split_grads + (split - 1) * 2 * size : g.k) + at;
    float* grad_v = (split ? split_grads + (split - 1) * 2 * size + size : g.v) + at;
    for (int64_t n = k * group; n < (k + 1) * group; ++n)
      for (int64_t block = split; block < blocks; block += splits)
        backward_block(a, g, b, n, block, grad_k, grad_v, buffers[thread]);
  });
  for (int64_t split = 0; split < splits - 1; ++split)
    for (int64_t i = 0; i < size; ++i) {
      g.k[i] += split_grads[split * 2 * size + i];
      g.v[i] += split_grads[split * 2 * size + size + i];
    }
  free(buffers);
  free(split_grads);
  return 0;
}

// Copies rows [rows, width] to rows of another width, padded with zeros or cut.
inline void pad_rows(const float* from, int64_t width, float* to, int64_t padded, int64_t rows) {
  int64_t copied = width < padded ? width : padded;
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(to + r * padded, from + r * width, (size_t)copied * sizeof(float));
    memset(to + r * padded + copied, 0, (size_t)(padded - copied) * sizeof(float));
  }
}

// Backward for a head_dim that is not a multiple of WIDTH, on padded copies.
inline int backward_padded(const Attention& a, const Gradients& g) {
  int64_t padded = (a.head_dim + WIDTH - 1) / WIDTH * WIDTH;
  int64_t q_rows = a.batch * a.queries * a.heads, k_rows = a.batch * a.keys * a.kv_heads;
  float* memory = aligned<float>((4 * q_rows + 4 * k_rows) * padded);
  if (!memory) return 1;
  float *q = memory, *out = q + q_rows * padded, *grad = out + q_rows * padded, *grad_q = grad + q_rows * padded;
  float *k = grad_q + q_rows * padded, *v = k + k_rows * padded, *grad_k = v + k_rows * padded,
        *grad_v = grad_k + k_rows * padded;
  pad_rows(a.q, a.head_dim, q, padded, q_rows);
  pad_rows(g.out, a.head_dim, out, padded, q_rows);
  pad_rows(g.grad, a.head_dim, grad, padded, q_rows);
  pad_rows(a.k, a.head_dim, k, padded, k_rows);
  pad_rows(a.v, a.head_dim, v, padded, k_rows);
  Attention inner = a;
  inner.q = q, inner.k = k, inner.v = v, inner.head_dim = padded;
  int failed = backward_all(inner, Gradients{out, g.lse, grad, grad_q, grad_k, grad_v});
  pad_rows(grad_q, padded, g.q, a.head_dim, q_rows);
  pad_rows(grad_k, padded, g.k, a.head_dim, k_rows);
  pad_rows(grad_v, padded, g.v, a.head_dim, k_rows);
  free(memory);
  return failed;
}

}  // namespace

// 0 = done, 1 = no memory. `lse` [B, N, T] is for the backward pass; null if none follows.
EXPORT int NAME(attention_forward)(const float* q, const float* k, const float* v, const int32_t* first,
                                   const int32_t* last, const float* slopes, const float* key_positions, float* out,
                                   float* lse, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                   int64_t kv_heads, int64_t head_dim, int64_t mask_batch, int64_t position_batch,
                                   int64_t past, float scale) {
  Attention a = {q,    k,     v,        first,    last,       slopes,         key_positions, batch, queries,
                 keys, heads, kv_heads, head_dim, mask_batch, position_batch, past,          scale};
  bool single = queries == 1 && !lse && head_dim % WIDTH == 0;
  return single ? forward_single_query(a, out) : forward_all(a, out, lse);
}

EXPORT int NAME(attention_backward)(const float* q, const float* k, const float* v, const int32_t* first,
                                    const int32_t* last, const float* slopes, const float* key_positions,
                                    const float* out, const float* lse, const float* grad, float* grad_q, float* grad_k,
                                    float* grad_v, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                    int64_t kv_heads, int64_t head_dim, int64_t mask_batch, int64_t position_batch,
                                    int64_t past, float scale) {
  Attention a = {q,    k,     v,        first,    last,       slopes,         key_positions, batch, queries,
                 keys, heads, kv_heads, head_dim, mask_batch, position_batch, past,          scale};
  Gradients g = {out, lse, grad, grad_q, grad_k, grad_v};
  return head_dim % WIDTH ? backward_padded(a, g) : backward_all(a, g);
}
