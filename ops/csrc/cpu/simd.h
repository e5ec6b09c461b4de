// Vectors of WIDTH floats as compiler vector types, and the few functions on them that the kernels use.
//
// Included once per translation unit, after the unit has chosen its instruction set and WIDTH; units share nothing
// here.

#pragma once

#include <stdint.h>
#include <string.h>

namespace {

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
typedef float UnalignedVec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t UnalignedInt __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Vec load(const float* p) { return *(const UnalignedVec*)p; }
INLINE Int load_int(const int32_t* p) { return *(const UnalignedInt*)p; }
INLINE void store(float* p, Vec v) { *(UnalignedVec*)p = v; }
INLINE Vec broadcast(float x) { return x - Vec{}; }
INLINE Int broadcast_int(int32_t x) { return x - Int{}; }

// Loads the first n of WIDTH elements; the others are `fill`.
INLINE Vec load_partial(const float* p, int64_t n, float fill = 0.0f) {
  Vec v = broadcast(fill);
  memcpy(&v, p, (size_t)n * sizeof(float));
  return v;
}
INLINE void store_partial(float* p, Vec v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

// Loads or stores all WIDTH elements, or the first n.
INLINE Vec load_n(const float* p, int64_t n) { return n == WIDTH ? load(p) : load_partial(p, n); }
INLINE void store_n(float* p, Vec v, int64_t n) {
  if (n == WIDTH)
    store(p, v);
  else
    store_partial(p, v, n);
}

// Calls body(i, n) for each vector of `count` elements; n is WIDTH, or less for the last one.
template <class Body>
INLINE void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) body(i, (int64_t)WIDTH);
  if (i < count) body(i, count - i);
}

// Elementwise maximum; NaN propagates: comparisons are ordered so that a NaN in `a` is kept.
INLINE Vec vec_max(Vec a, Vec b) { return a < b ? b : a; }

INLINE float reduce_sum(Vec v) {
  typedef float Quad __attribute__((vector_size(16)));
  union {
    Vec whole;
    Quad quads[WIDTH / 4];
  } parts = {v};
  Quad total = parts.quads[0];
#pragma GCC unroll 4
  for (int i = 1; i < WIDTH / 4; ++i) total += parts.quads[i];
  return (total[0] + total[2]) + (total[1] + total[3]);
}
INLINE float reduce_max(Vec v) {
  float max = v[0];
#pragma GCC unroll 16
  for (int i = 1; i < WIDTH; ++i) max = max < v[i] ? v[i] : max;
  return max;
}

// 2^x to 1 ulp; 0 below -126, at most 2^127.
INLINE Vec exp2(Vec x) {
  const Vec tiny = broadcast(-126.0f), huge = broadcast(127.0f);
  Int below = x < tiny;
  x = x < tiny ? tiny : x;
  x = x > huge ? huge : x;
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec shifted = x + magic;
  Vec f = x - (shifted - magic);
  Int exponent = (Int)shifted << 23;  // the low bits of the sum are the integer
  Vec p = broadcast(1.535336188319500e-4f);
  p = p * f + broadcast(1.339887440266574e-3f);
  p = p * f + broadcast(9.618437357674640e-3f);
  p = p * f + broadcast(5.550332471162809e-2f);
  p = p * f + broadcast(2.402264791363012e-1f);
  p = p * f + broadcast(6.931472028550421e-1f);
  p = p * f + broadcast(1.0f);
  Vec result = (Vec)((Int)p + exponent);
  return below ? Vec{} : result;
}

const float LOG2E = 1.44269504088896341f, LN2 = 0.69314718055994531f;

// e^x; the rounding error of x * LOG2E is added back where the instruction set fuses the subtraction.
INLINE Vec exp(Vec x) {
  Vec y = x * broadcast(LOG2E);
  Vec error = x * broadcast(LOG2E) - y + x * broadcast(1.925963033e-8f);
  error = y < broadcast(-126.0f) ? Vec{} : error;
  return exp2(y) * (broadcast(1.0f) + error * broadcast(LN2));
}

}  // namespace
