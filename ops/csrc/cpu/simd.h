// Vectors of WIDTH floats in the compiler's own vector types, and the few functions that the kernels need of them.
//
// Included once in each unit, after the unit has chosen its instruction set and WIDTH; nothing here is shared by units.

#pragma once

#include <stdint.h>
#include <string.h>

namespace {

typedef float Vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Int __attribute__((vector_size(4 * WIDTH)));
typedef float LooseVec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t LooseInt __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Vec load(const float* p) { return *(const LooseVec*)p; }
INLINE Int load_int(const int32_t* p) { return *(const LooseInt*)p; }
INLINE void store(float* p, Vec v) { *(LooseVec*)p = v; }
INLINE Vec set(float x) { return x - Vec{}; }
INLINE Int set_int(int32_t x) { return x - Int{}; }

// The first n of WIDTH elements; the others are `fill`.
INLINE Vec load_part(const float* p, int64_t n, float fill = 0.0f) {
  Vec v = set(fill);
  memcpy(&v, p, (size_t)n * sizeof(float));
  return v;
}
INLINE void store_part(float* p, Vec v, int64_t n) { memcpy(p, &v, (size_t)n * sizeof(float)); }

// All WIDTH elements, or the first n.
INLINE Vec load_some(const float* p, int64_t n) { return n == WIDTH ? load(p) : load_part(p, n); }
INLINE void store_some(float* p, Vec v, int64_t n) {
  if (n == WIDTH)
    store(p, v);
  else
    store_part(p, v, n);
}

// Calls body(i, n) for each vector of `count` elements: n is WIDTH but for the last one.
template <class Body>
INLINE void vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + WIDTH <= count; i += WIDTH) body(i, (int64_t)WIDTH);
  if (i < count) body(i, count - i);
}

// A number that is not one stays: comparisons are written so that it is never replaced.
INLINE Vec larger(Vec a, Vec b) { return a < b ? b : a; }

INLINE float sum(Vec v) {
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
INLINE float largest(Vec v) {
  float most = v[0];
#pragma GCC unroll 16
  for (int i = 1; i < WIDTH; ++i) most = most < v[i] ? v[i] : most;
  return most;
}

// 2^x to 1 unit in the last place; 0 below -126, and 2^127 at most.
INLINE Vec exp2(Vec x) {
  const Vec tiny = set(-126.0f), huge = set(127.0f);
  Int below = x < tiny;
  x = x < tiny ? tiny : x;
  x = x > huge ? huge : x;
  const Vec magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  Vec shifted = x + magic;
  Vec f = x - (shifted - magic);
  Int whole = (Int)shifted << 23;  // the low bits of the sum are the whole number
  Vec p = set(1.535336188319500e-4f);
  p = p * f + set(1.339887440266574e-3f);
  p = p * f + set(9.618437357674640e-3f);
  p = p * f + set(5.550332471162809e-2f);
  p = p * f + set(2.402264791363012e-1f);
  p = p * f + set(6.931472028550421e-1f);
  p = p * f + set(1.0f);
  Vec result = (Vec)((Int)p + whole);
  return below ? Vec{} : result;
}

const float LOG2E = 1.44269504088896341f, LN2 = 0.69314718055994531f;

// e^x; what rounding takes from the exponent's product is put back where the instruction set fuses the subtraction.
INLINE Vec exp(Vec x) {
  Vec y = x * set(LOG2E);
  Vec lost = x * set(LOG2E) - y + x * set(1.925963033e-8f);
  lost = y < set(-126.0f) ? Vec{} : lost;
  return exp2(y) * (set(1.0f) + lost * set(LN2));
}

}  // namespace
