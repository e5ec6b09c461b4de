// Operators of a training step outside the model: cross entropy, AdamW, the sum of squares for the gradient norm.

#pragma once

#include <math.h>

#include "elementwise.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

// log(sum(exp(row))).
INLINE float log_sum_exp(const float* row, int64_t width) {
  Vec max = broadcast(-INFINITY);
  for_vectors(width, [&](int64_t i, int64_t n) {
    max = vec_max(max, n == WIDTH ? load(row + i) : load_partial(row + i, n, -INFINITY));
  });
  float top = reduce_max(max);
  Vec total = {};
  for_vectors(width, [&](int64_t i, int64_t n) {
    total += exp((n == WIDTH ? load(row + i) : load_partial(row + i, n, -INFINITY)) - broadcast(top));
  });
  return top + logf(reduce_sum(total));
}

}  // namespace

// loss[r] = log_sum_exp(row r) - row[label]. Returns 2 if a label is outside 0 .. width - 1.
EXPORT int NAME(cross_entropy_forward)(const float* logits, const int64_t* labels, float* loss, float* log_sum,
                                       int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    if (labels[r] < 0 || labels[r] >= width) return 2;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      log_sum[r] = log_sum_exp(logits + r * width, width);
      loss[r] = log_sum[r] - logits[r * width + labels[r]];
    }
  });
  return 0;
}

// grad = (softmax(logits) - one_hot(label)) * factor.
EXPORT int NAME(cross_entropy_backward)(const float* logits, const int64_t* labels, const float* log_sum, float* grad,
                                        int64_t rows, int64_t width, float factor) {
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = logits + r * width;
      float* to = grad + r * width;
      for_vectors(width, [&](int64_t i, int64_t n) {
        store_n(to + i, exp(load_n(from + i, n) - broadcast(log_sum[r])) * broadcast(factor), n);
      });
      to[labels[r]] -= factor;
    }
  });
  return 0;
}

// One AdamW update in place: weight -= decay * weight + rate * m / (sqrt(v) + eps). The caller has folded the bias
// corrections of the two moments into rate and eps.
EXPORT int NAME(adamw)(const float* grad, float* weight, float* moment1, float* moment2, int64_t size, float beta1,
                       float beta2, float eps, float rate, float decay) {
  float one_minus_beta1 = 1.0f - beta1, one_minus_beta2 = 1.0f - beta2;
  parallel_ranges(size, GRAIN, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t i, int64_t n) {
      i += begin;
      Vec g = load_n(grad + i, n);
      Vec m = broadcast(beta1) * load_n(moment1 + i, n) + broadcast(one_minus_beta1) * g;
      Vec v = broadcast(beta2) * load_n(moment2 + i, n) + broadcast(one_minus_beta2) * g * g;
      Vec root;
      for (int lane = 0; lane < WIDTH; ++lane) root[lane] = sqrtf(v[lane]);
      store_n(moment1 + i, m, n);
      store_n(moment2 + i, v, n);
      // Not w * (1 - decay): the rounding of that factor would be the same in every update and accumulate.
      Vec w = load_n(weight + i, n), delta = broadcast(decay) * w + broadcast(rate) * (m / (root + broadcast(eps)));
      store_n(weight + i, w - delta, n);
    });
  });
  return 0;
}

// Adds the sum of squares of a tensor to `total`, in double precision and in an order that does not depend on the
// threads.
EXPORT int NAME(sum_squares)(const float* x, double* total, int64_t size) {
  const int64_t grains = (size + GRAIN - 1) / GRAIN;
  double* sums = aligned<double>(grains);
  if (!sums) return 1;
  parallel(grains, [&](int64_t grain, int) {
    int64_t begin = grain * GRAIN, count = size - begin < GRAIN ? size - begin : GRAIN;
    double sum = 0.0;
    for (int64_t at = begin; at < begin + count; at += 1024) {
      Vec squares = {};
      for_vectors(begin + count - at < 1024 ? begin + count - at : 1024, [&](int64_t i, int64_t n) {
        Vec v = load_n(x + at + i, n);
        squares += v * v;
      });
      sum += (double)reduce_sum(squares);
    }
    sums[grain] = sum;
  });
  for (int64_t grain = 0; grain < grains; ++grain) *total += sums[grain];
  free(sums);
  return 0;
}
