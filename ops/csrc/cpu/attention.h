// Attention in tiles of keys x queries, forward and backward. No buffer grows with queries x keys.
//
// Scores are kept transposed, a key per row and queries side by side in vectors, so that the softmax over keys needs no
// sums across a vector.

#pragma once

#include "decode.h"

namespace {

// to[h][t] = from[t][h] * factor for t < count, 0 up to QUERIES.
INLINE void transpose(const float* from, int64_t row, int count, int64_t width, float factor, float* to) {
  for (int64_t h = 0; h < width; ++h) {
    for (int t = 0; t < count; ++t) to[h * STRIDE + t] = from[t * row + h] * factor;
    for (int t = count; t < QUERIES; ++t) to[h * STRIDE + t] = 0.0f;
  }
}

// Scores of a tile in units of log 2, transposed: what is not seen is UNSEEN.
INLINE void scores_of(const Head& h, int64_t width, const Tile& tile, int64_t from, const float* query_HT, float* s) {
  multiply(false, tile.keys, tile.end - tile.begin, (int)width, h.k + tile.key * h.k_row, h.k_row, 1,
           query_HT + tile.begin, STRIDE, s + tile.begin, STRIDE);
  if (h.places) {
    for (int j = 0; j < tile.keys; ++j) {
      Vec bias = set(h.slope * h.places[tile.key + j]);
      for (int t = tile.begin; t < tile.end; t += WIDTH) store(s + j * STRIDE + t, load(s + j * STRIDE + t) + bias);
    }
  }
  if (tile.whole) return;
  Int lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
  for (int j = 0; j < tile.keys; ++j) {
    int64_t first = h.first[tile.key + j] - from, last = h.last[tile.key + j] - from;
    // Beyond the tile it does not matter how far.
    Int low = set_int((int32_t)(first < -1 ? -1 : first > QUERIES ? QUERIES : first));
    Int high = set_int((int32_t)(last < -1 ? -1 : last > QUERIES ? QUERIES : last));
    for (int t = tile.begin; t < tile.end; t += WIDTH) {
      Int column = lanes + set_int(t);
      Vec seen = load(s + j * STRIDE + t);
      seen = column >= low ? seen : set(UNSEEN);
      store(s + j * STRIDE + t, column < high ? seen : set(UNSEEN));
    }
  }
}

struct ForwardBuffers {
  alignas(64) float query[WIDEST * STRIDE], mixed[WIDEST * STRIDE], s[KEYS * STRIDE];
  alignas(64) float most[QUERIES], total[QUERIES];
};

// Turns scores into weights relative to the running maximum, and scales down what was summed under an older one.
INLINE void online_softmax(ForwardBuffers& w, const Tile& tile, int64_t width) {
  for (int t = tile.begin; t < tile.end; t += WIDTH) {
    Vec before = load(w.most + t), most = before;
    for (int j = 0; j < tile.keys; ++j) most = larger(most, load(w.s + j * STRIDE + t));
    Int risen = most != before;
    bool rescale = false;
    for (int i = 0; i < WIDTH; ++i) rescale |= risen[i] != 0;
    Vec total = load(w.total + t);
    if (rescale) {
      Vec shrink = exp2(before - most);
      total *= shrink;
      store(w.most + t, most);
      for (int64_t h = 0; h < width; ++h) store(w.mixed + h * STRIDE + t, load(w.mixed + h * STRIDE + t) * shrink);
    }
    for (int j = 0; j < tile.keys; ++j) {
      Vec s = load(w.s + j * STRIDE + t);
      Vec p = exp2(s - most);
      if (!tile.whole) p = s <= set(0.5f * UNSEEN) ? Vec{} : p;
      total += p;
      store(w.s + j * STRIDE + t, p);
    }
    store(w.total + t, total);
  }
}

// One block of queries of one head: the mixed values, and the logarithm (base 2) of the sum of exponentials.
inline void forward_block(const Attention& a, int64_t b, int64_t n, int64_t block, float* out, float* log_sum,
                          ForwardBuffers& w) {
  Head h = head_of(a, b, n);
  int64_t start = block * QUERIES, from = a.past + start;
  int count = (int)(a.queries - start < QUERIES ? a.queries - start : QUERIES);
  transpose(h.q + start * h.q_row, h.q_row, count, a.width, a.scale * LOG2E, w.query);
  for (int64_t i = 0; i < a.width * STRIDE; ++i) w.mixed[i] = 0.0f;
  for (int t = 0; t < QUERIES; ++t) w.most[t] = UNSEEN, w.total[t] = 0.0f;
  Tile tile;
  for (int64_t key = 0; key < a.keys; key += KEYS) {
    if (!find_tile(h, a.keys, key, from, count, &tile)) continue;
    scores_of(h, a.width, tile, from, w.query, w.s);
    online_softmax(w, tile, a.width);
    multiply(true, (int)a.width, tile.end - tile.begin, tile.keys, h.v + key * h.k_row, 1, h.k_row, w.s + tile.begin,
             STRIDE, w.mixed + tile.begin, STRIDE);
  }
  out += (b * a.queries + start) * h.q_row + n * a.width;
  for (int t = 0; t < count; ++t) {
    float factor = w.total[t] == 0.0f ? 0.0f : 1.0f / w.total[t];
    for (int64_t i = 0; i < a.width; ++i) out[t * h.q_row + i] = w.mixed[i * STRIDE + t] * factor;
    if (log_sum)
      log_sum[(b * a.heads + n) * a.queries + start + t] =
          w.total[t] == 0.0f ? NOBODY : w.most[t] + log2f(w.total[t]);
  }
}

struct BackwardBuffers {
  alignas(64) float query[WIDEST * STRIDE], grad[WIDEST * STRIDE], grad_q[WIDEST * STRIDE];
  alignas(64) float p[KEYS * STRIDE], ds[KEYS * STRIDE];
  alignas(64) float log_sum[QUERIES], delta[QUERIES];
};

struct Gradients {
  const float *out, *log_sum, *grad;  // [B, T, N, H], [B, N, T], [B, T, N, H]
  float *q, *k, *v;                   // the results; k and v are added to
};

// Weights from scores, and the gradient of the scores from that of the weights; in place.
INLINE void softmax_gradient(BackwardBuffers& w, const Tile& tile, float scale) {
  for (int j = 0; j < tile.keys; ++j) {
    for (int t = tile.begin; t < tile.end; t += WIDTH) {
      float *p = w.p + j * STRIDE + t, *ds = w.ds + j * STRIDE + t;
      Vec weight = exp2(load(p) - load(w.log_sum + t));
      store(p, weight);
      store(ds, weight * (load(ds) - load(w.delta + t)) * set(scale));
    }
  }
}

// One block of queries of one head: its gradient of q; adds to those of k and v.
inline void backward_block(const Attention& a, const Gradients& g, int64_t b, int64_t n, int64_t block, float* grad_k,
                           float* grad_v, BackwardBuffers& w) {
  Head h = head_of(a, b, n);
  int64_t start = block * QUERIES, from = a.past + start;
  int count = (int)(a.queries - start < QUERIES ? a.queries - start : QUERIES);
  int64_t at = (b * a.queries + start) * h.q_row + n * a.width, width = a.width;
  transpose(h.q + start * h.q_row, h.q_row, count, width, a.scale * LOG2E, w.query);
  transpose(g.grad + at, h.q_row, count, width, 1.0f, w.grad);
  for (int t = 0; t < QUERIES; ++t) {
    float delta = 0.0f;
    if (t < count)
      for (int64_t i = 0; i < width; ++i) delta += g.out[at + t * h.q_row + i] * g.grad[at + t * h.q_row + i];
    w.delta[t] = delta;
    w.log_sum[t] = t < count ? g.log_sum[(b * a.heads + n) * a.queries + start + t] : NOBODY;
  }
  for (int64_t i = 0; i < width * STRIDE; ++i) w.grad_q[i] = 0.0f;
  Tile tile;
  for (int64_t key = 0; key < a.keys; key += KEYS) {
    if (!find_tile(h, a.keys, key, from, count, &tile)) continue;
    int begin = tile.begin, columns = tile.end - begin;
    int seen = (tile.end < count ? tile.end : count) - begin;
    scores_of(h, width, tile, from, w.query, w.p);
    multiply(false, tile.keys, columns, (int)width, h.v + key * h.k_row, h.k_row, 1, w.grad + begin, STRIDE,
             w.ds + begin, STRIDE);
    softmax_gradient(w, tile, a.scale);
    int64_t row = at + begin * h.q_row;
    multiply(true, tile.keys, (int)width, seen, w.p + begin, STRIDE, 1, g.grad + row, h.q_row,
             grad_v + key * h.k_row, h.k_row);
    multiply(true, tile.keys, (int)width, seen, w.ds + begin, STRIDE, 1, h.q + (start + begin) * h.q_row, h.q_row,
             grad_k + key * h.k_row, h.k_row);
    multiply(true, (int)width, columns, tile.keys, h.k + key * h.k_row, 1, h.k_row, w.ds + begin, STRIDE,
             w.grad_q + begin, STRIDE);
  }
  for (int t = 0; t < count; ++t)
    for (int64_t i = 0; i < width; ++i) g.q[at + t * h.q_row + i] = w.grad_q[i * STRIDE + t];
}

inline int forward_all(const Attention& a, float* out, float* log_sum) {
  int64_t blocks = (a.queries + QUERIES - 1) / QUERIES, tasks = a.batch * a.heads * blocks;
  ForwardBuffers* buffers = aligned<ForwardBuffers>(threads_for(tasks));
  if (!buffers) return 1;
  parallel(tasks, [&](int64_t task, int thread) {
    // The last blocks see the most keys under a causal mask: they come first, so that the threads end together.
    int64_t block = blocks - 1 - task / (a.batch * a.heads), head = task % (a.batch * a.heads);
    forward_block(a, head / a.heads, head % a.heads, block, out, log_sum, buffers[thread]);
  });
  free(buffers);
  return 0;
}

// A row of the batch and a key-value head is one task, as the gradients of its keys are sums over queries and heads. With
// fewer of these than threads, each is cut into shares of the query blocks that add into buffers of their own.
inline int backward_all(const Attention& a, const Gradients& g) {
  int64_t blocks = (a.queries + QUERIES - 1) / QUERIES, owners = a.batch * a.groups, group = a.heads / a.groups;
  int64_t threads = threads_for(owners * blocks), size = a.batch * a.keys * a.groups * a.width;
  int64_t shares = owners == 0 || owners >= threads ? 1 : (threads + owners - 1) / owners;
  BackwardBuffers* buffers = aligned<BackwardBuffers>(threads);
  float* more = aligned<float>(2 * size * (shares - 1));
  if (!buffers || !more) return free(buffers), free(more), 1;
  memset(g.k, 0, (size_t)size * sizeof(float));
  memset(g.v, 0, (size_t)size * sizeof(float));
  memset(more, 0, (size_t)(2 * size * (shares - 1)) * sizeof(float));
  parallel(owners * shares, [&](int64_t task, int thread) {
    int64_t share = task % shares, b = task / shares / a.groups, k = task / shares % a.groups;
    int64_t at = b * a.keys * a.groups * a.width + k * a.width;
    float* grad_k = (share ? more + (share - 1) * 2 * size : g.k) + at;
    float* grad_v = (share ? more + (share - 1) * 2 * size + size : g.v) + at;
    for (int64_t n = k * group; n < (k + 1) * group; ++n)
      for (int64_t block = share; block < blocks; block += shares)
        backward_block(a, g, b, n, block, grad_k, grad_v, buffers[thread]);
  });
  for (int64_t share = 0; share < shares - 1; ++share)
    for (int64_t i = 0; i < size; ++i) {
      g.k[i] += more[share * 2 * size + i];
      g.v[i] += more[share * 2 * size + size + i];
    }
  free(buffers);
  free(more);
  return 0;
}

// Copies rows [rows, width] to rows of another width, filled with zeros or cut.
inline void widen(const float* from, int64_t width, float* to, int64_t wide, int64_t rows) {
  int64_t kept = width < wide ? width : wide;
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(to + r * wide, from + r * width, (size_t)kept * sizeof(float));
    memset(to + r * wide + kept, 0, (size_t)(wide - kept) * sizeof(float));
  }
}

// Backward for a head_dim that is no multiple of WIDTH, on copies that are.
inline int backward_widened(const Attention& a, const Gradients& g) {
  int64_t wide = (a.width + WIDTH - 1) / WIDTH * WIDTH;
  int64_t q_rows = a.batch * a.queries * a.heads, k_rows = a.batch * a.keys * a.groups;
  float* memory = aligned<float>((4 * q_rows + 4 * k_rows) * wide);
  if (!memory) return 1;
  float *q = memory, *out = q + q_rows * wide, *grad = out + q_rows * wide, *grad_q = grad + q_rows * wide;
  float *k = grad_q + q_rows * wide, *v = k + k_rows * wide, *grad_k = v + k_rows * wide, *grad_v = grad_k + k_rows * wide;
  widen(a.q, a.width, q, wide, q_rows);
  widen(g.out, a.width, out, wide, q_rows);
  widen(g.grad, a.width, grad, wide, q_rows);
  widen(a.k, a.width, k, wide, k_rows);
  widen(a.v, a.width, v, wide, k_rows);
  Attention inner = a;
  inner.q = q, inner.k = k, inner.v = v, inner.width = wide;
  int failed = backward_all(inner, Gradients{out, g.log_sum, grad, grad_q, grad_k, grad_v});
  widen(grad_q, wide, g.q, a.width, q_rows);
  widen(grad_k, wide, g.k, a.width, k_rows);
  widen(grad_v, wide, g.v, a.width, k_rows);
  free(memory);
  return failed;
}

}  // namespace

// 0 = done, 1 = no memory. `log_sum` [B, N, T] is for the backward pass; null where none follows.
EXPORT int NAME(attention_forward)(const float* q, const float* k, const float* v, const int32_t* first,
                                   const int32_t* last, const float* slopes, const float* places, float* out,
                                   float* log_sum, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                   int64_t groups, int64_t width, int64_t mask_rows, int64_t place_rows, int64_t past,
                                   float scale) {
  Attention a = {q,     k,      v,     first,     last,       slopes, places, batch, queries, keys,
                 heads, groups, width, mask_rows, place_rows, past,   scale};
  bool single = queries == 1 && !log_sum && width % WIDTH == 0;
  return single ? forward_single(a, out) : forward_all(a, out, log_sum);
}

EXPORT int NAME(attention_backward)(const float* q, const float* k, const float* v, const int32_t* first,
                                    const int32_t* last, const float* slopes, const float* places, const float* out,
                                    const float* log_sum, const float* grad, float* grad_q, float* grad_k,
                                    float* grad_v, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                    int64_t groups, int64_t width, int64_t mask_rows, int64_t place_rows,
                                    int64_t past, float scale) {
  Attention a = {q,     k,      v,     first,     last,       slopes, places, batch, queries, keys,
                 heads, groups, width, mask_rows, place_rows, past,   scale};
  Gradients g = {out, log_sum, grad, grad_q, grad_k, grad_v};
  return width % WIDTH ? backward_widened(a, g) : backward_all(a, g);
}
