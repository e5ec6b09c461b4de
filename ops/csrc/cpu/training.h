// Operators of a training step beside the model: cross entropy, AdamW, the norm of gradients.

#pragma once

#include <math.h>

#include "elementwise.h"

namespace {

// The logarithm of the sum of exponentials of a row.
INLINE float log_sum_exp(const float* row, int64_t width) {
  Vec most = set(-INFINITY);
  vectors(width, [&](int64_t i, int64_t n) { most = larger(most, n == WIDTH ? load(row + i) : load_part(row + i, n, -INFINITY)); });
  float top = largest(most);
  Vec total = {};
  vectors(width, [&](int64_t i, int64_t n) {
    total += exp((n == WIDTH ? load(row + i) : load_part(row + i, n, -INFINITY)) - set(top));
  });
  return top + logf(sum(total));
}

}  // namespace

// loss[r] = log of the sum of exponentials of row r - its entry at the label; 2 = a label is none of 0 .. width - 1.
EXPORT int NAME(cross_entropy_forward)(const float* logits, const int64_t* labels, float* loss, float* log_sum,
                                       int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r)
    if (labels[r] < 0 || labels[r] >= width) return 2;
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      log_sum[r] = log_sum_exp(logits + r * width, width);
      loss[r] = log_sum[r] - logits[r * width + labels[r]];
    }
  });
  return 0;
}

// grad = (softmax(logits) - one at the label) * factor.
EXPORT int NAME(cross_entropy_backward)(const float* logits, const int64_t* labels, const float* log_sum, float* grad,
                                        int64_t rows, int64_t width, float factor) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = logits + r * width;
      float* to = grad + r * width;
      vectors(width, [&](int64_t i, int64_t n) {
        store_some(to + i, exp(load_some(from + i, n) - set(log_sum[r])) * set(factor), n);
      });
      to[labels[r]] -= factor;
    }
  });
  return 0;
}

// One AdamW update in place: the weight loses decay * weight and rate * m / (sqrt(v) + eps), where the caller has put the
// corrections of the two moments into rate and eps.
EXPORT int NAME(adamw)(float* weight, const float* grad, float* first, float* second, int64_t size, float beta1,
                       float beta2, float eps, float rate, float decay) {
  float rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
  parallel_ranges(size, PIECE, [&](int64_t begin, int64_t end, int) {
    vectors(end - begin, [&](int64_t i, int64_t n) {
      i += begin;
      Vec g = load_some(grad + i, n);
      Vec m = set(beta1) * load_some(first + i, n) + set(rest1) * g;
      Vec v = set(beta2) * load_some(second + i, n) + set(rest2) * g * g;
      Vec root;
      for (int lane = 0; lane < WIDTH; ++lane) root[lane] = sqrtf(v[lane]);
      store_some(first + i, m, n);
      store_some(second + i, v, n);
      // Not times 1 - decay, whose rounding would be the same in every update and add up.
      Vec w = load_some(weight + i, n), lost = set(decay) * w + set(rate) * (m / (root + set(eps)));
      store_some(weight + i, w - lost, n);
    });
  });
  return 0;
}

// Adds the sum of squares of a tensor to `total`, in double precision.
EXPORT int NAME(sum_squares)(const float* x, int64_t size, double* total) {
  const int64_t pieces = (size + PIECE - 1) / PIECE;
  double* sums = aligned<double>(pieces);
  if (!sums) return 1;
  parallel(pieces, [&](int64_t piece, int) {
    int64_t begin = piece * PIECE, count = size - begin < PIECE ? size - begin : PIECE;
    double inner = 0.0;
    for (int64_t at = begin; at < begin + count; at += 1024) {
      Vec squares = {};
      vectors(begin + count - at < 1024 ? begin + count - at : 1024, [&](int64_t i, int64_t n) {
        Vec v = load_some(x + at + i, n);
        squares += v * v;
      });
      inner += (double)sum(squares);
    }
    sums[piece] = inner;
  });
  for (int64_t piece = 0; piece < pieces; ++piece) *total += sums[piece];
  free(sums);
  return 0;
}
