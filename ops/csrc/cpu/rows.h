// What a step does to single rows: norms, activations, rotation, the residual.

#pragma once

#include <math.h>

#include "elementwise.h"
#include "model.h"

namespace {

// to = norm(from); `to` may be `from`.
INLINE void norm_row(const Norm& norm, bool layer_norm, float eps, const float* from, int64_t width, float* to) {
  Vec total = {}, squares = {};
  float mean = 0.0f;
  if (layer_norm) {
    vectors(width, [&](int64_t i, int64_t n) { total += load_some(from + i, n); });
    mean = sum(total) / (float)width;
  }
  vectors(width, [&](int64_t i, int64_t n) {
    Vec apart = n == WIDTH ? load(from + i) - set(mean) : load_part(from + i, n, mean) - set(mean);
    squares += apart * apart;
  });
  Vec factor = set(1.0f / sqrtf(sum(squares) / (float)width + eps));
  vectors(width, [&](int64_t i, int64_t n) {
    Vec unit = (load_some(from + i, n) - set(mean)) * factor * load_some(norm.weight + i, n);
    if (norm.bias) unit += load_some(norm.bias + i, n);
    store_some(to + i, unit, n);
  });
}

// x = carried * scale + y
INLINE void residual_row(const float* carried, float scale, const float* y, int64_t width, float* x) {
  vectors(width, [&](int64_t i, int64_t n) {
    Vec kept = scale == 1.0f ? load_some(carried + i, n) : load_some(carried + i, n) * set(scale);
    store_some(x + i, kept + load_some(y + i, n), n);
  });
}

// 1 - erf(x) for x >= 0 as t P(t) exp(-x^2), t = 1 / (1 + x / 2): a fit of degree 9, off by 4e-6 of the result at most.
INLINE Vec error_tail(Vec x) {
  const float terms[] = {1.353464928e-02f, -1.296140552e-01f, 4.428111315e-01f, -6.870458126e-01f, 4.341518879e-01f,
                         -1.045284793e-01f, 2.274455130e-01f, 2.382882237e-01f, 2.828940153e-01f, 2.820628881e-01f};
  Vec t = set(1.0f) / (set(1.0f) + set(0.5f) * x), p = set(terms[0]);
#pragma GCC unroll 9
  for (int i = 1; i < 10; ++i) p = p * t + set(terms[i]);
  return t * p * exp(-(x * x));
}

// What lies between up and down: of a gated layer rows of gate and up become rows half as wide; `to` may be `from`.
INLINE void activate_row(int32_t activation, const float* from, int64_t width, float* to) {
  vectors(width, [&](int64_t i, int64_t n) {
    Vec x = load_some(from + i, n);
    if (activation == SWIGLU) {
      x = x / (set(1.0f) + exp(-x)) * load_some(from + width + i, n);
    } else if (activation == GELU_TANH) {
      x = x / (set(1.0f) + exp(-(x * (set(GELU_SLOPE) + set(GELU_SLOPE * GELU_CUBE) * x * x))));
    } else if (activation == GELU) {
      Vec z = x * set(0.70710678118654752f);
      Int below = z < Vec{};
      Vec tail = error_tail(below ? -z : z);
      x = x * set(0.5f) * (below ? tail : set(2.0f) - tail);
    } else {
      x = x < Vec{} ? Vec{} : x;
    }
    store_some(to + i, x, n);
  });
}

// Turns a head in place: pairs of element i and i + pairs.
INLINE void turn_row(float* x, const float* cosine, const float* sine, int64_t pairs) {
  vectors(pairs, [&](int64_t i, int64_t n) {
    Vec low = load_some(x + i, n), high = load_some(x + pairs + i, n);
    Vec c = load_some(cosine + i, n), s = load_some(sine + i, n);
    store_some(x + i, low * c - high * s, n);
    store_some(x + pairs + i, high * c + low * s, n);
  });
}

}  // namespace
