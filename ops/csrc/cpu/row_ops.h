// Operations of a decoder step on single rows: norms, activations, RoPE, residual.

#pragma once

#include <math.h>

#include "gelu.h"
#include "simd.h"
#include "structs.h"

namespace {

// to = norm(from); `to` may be `from`.
INLINE void norm_row(const Norm& norm, bool layer_norm, float eps, const float* from, int64_t width, float* to) {
  Vec total = {}, squares = {};
  float mean = 0.0f;
  if (layer_norm) {
    for_vectors(width, [&](int64_t i, int64_t n) { total += load_n(from + i, n); });
    mean = reduce_sum(total) / (float)width;
  }
  for_vectors(width, [&](int64_t i, int64_t n) {
    Vec centered = n == WIDTH ? load(from + i) - broadcast(mean) : load_partial(from + i, n, mean) - broadcast(mean);
    squares += centered * centered;
  });
  Vec factor = broadcast(1.0f / sqrtf(reduce_sum(squares) / (float)width + eps));
  for_vectors(width, [&](int64_t i, int64_t n) {
    Vec unit = (load_n(from + i, n) - broadcast(mean)) * factor * load_n(norm.weight + i, n);
    if (norm.bias) unit += load_n(norm.bias + i, n);
    store_n(to + i, unit, n);
  });
}

// x = residual * scale + y
INLINE void residual_row(const float* residual, float scale, const float* y, int64_t width, float* x) {
  for_vectors(width, [&](int64_t i, int64_t n) {
    Vec scaled = scale == 1.0f ? load_n(residual + i, n) : load_n(residual + i, n) * broadcast(scale);
    store_n(x + i, scaled + load_n(y + i, n), n);
  });
}

// 1 - erf(x) for x >= 0 as t P(t) exp(-x^2), t = 1 / (1 + x / 2): a fit of degree 9, relative error at most 4e-6.
INLINE Vec erfc_positive(Vec x) {
  const float terms[] = {1.353464928e-02f,  -1.296140552e-01f, 4.428111315e-01f, -6.870458126e-01f, 4.341518879e-01f,
                         -1.045284793e-01f, 2.274455130e-01f,  2.382882237e-01f, 2.828940153e-01f,  2.820628881e-01f};
  Vec t = broadcast(1.0f) / (broadcast(1.0f) + broadcast(0.5f) * x), p = broadcast(terms[0]);
#pragma GCC unroll 9
  for (int i = 1; i < 10; ++i) p = p * t + broadcast(terms[i]);
  return t * p * exp(-(x * x));
}

// The activation between up and down projection, `width` outputs; a gated row holds gate and then up. `to` may be
// `from`.
INLINE void activate_row(int32_t activation, const float* from, int64_t width, float* to) {
  for_vectors(width, [&](int64_t i, int64_t n) {
    Vec x = load_n(from + i, n);
    if (activation == SWIGLU) {
      x = x / (broadcast(1.0f) + exp(-x)) * load_n(from + width + i, n);
    } else if (activation == GELU_TANH) {
      x = x / (broadcast(1.0f) + exp(-(x * (broadcast(GELU_SLOPE) + broadcast(GELU_SLOPE * GELU_CUBE) * x * x))));
    } else if (activation == GELU) {
      Vec z = x * broadcast(0.70710678118654752f);
      Int below = z < Vec{};
      Vec tail = erfc_positive(below ? -z : z);
      x = x * broadcast(0.5f) * (below ? tail : broadcast(2.0f) - tail);
    } else {
      x = x < Vec{} ? Vec{} : x;
    }
    store_n(to + i, x, n);
  });
}

// RoPE of a head in place, neox layout: pairs of elements i and i + pairs.
INLINE void rope_row(float* x, const float* cosine, const float* sine, int64_t pairs) {
  for_vectors(pairs, [&](int64_t i, int64_t n) {
    Vec low = load_n(x + i, n), high = load_n(x + pairs + i, n);
    Vec c = load_n(cosine + i, n), s = load_n(sine + i, n);
    store_n(x + i, low * c - high * s, n);
    store_n(x + pairs + i, high * c + low * s, n);
  });
}

}  // namespace
