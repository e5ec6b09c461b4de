// Rounding of rows to 8 bits, as they meet integer codes.

#pragma once

#include "linear_weight.h"
#if WIDTH > 4
#include <immintrin.h>
#endif

namespace {

// Rounds to the nearest whole number, the even one of two; what is no number gives any.
INLINE Int nearest(Vec v) {
#if WIDTH == 16
  return (Int)_mm512_maskz_cvtps_epi32(0xffff, (__m512)v);
#elif WIDTH == 8
  return (Int)_mm256_cvtps_epi32((__m256)v);
#else
  Int result;
  for (int lane = 0; lane < WIDTH; ++lane) result[lane] = (int32_t)lrintf(v[lane]);
  return result;
#endif
}

const float LEAST_TOP = 1e-30f;  // a stretch of lesser values is all zeros: 127 / top would not be a number

// Codes of `count` of STRETCH values, the others 0, and their unit: the largest magnitude / 127, or no number if a value
// is none or is infinite.
INLINE float round_stretch(const float* x, int64_t count, int32_t* codes) {
  alignas(64) float part[STRETCH] = {};
  if (count < STRETCH) {
    memcpy(part, x, (size_t)count * sizeof(float));
    x = part;
  }
  const Int magnitude = set_int(0x7fffffff);
  Vec most = {}, lost = {};
  for (int64_t i = 0; i < STRETCH; i += WIDTH) {
    Vec v = load(x + i);
    most = larger(most, (Vec)((Int)v & magnitude));
    lost += v * set(0.0f);
  }
  float top = largest(most), none = sum(lost);
  float inverse = none == 0.0f && top > LEAST_TOP ? 127.0f / top : 0.0f;
  for (int64_t i = 0; i < STRETCH; i += WIDTH) {
    Int code = nearest(load(x + i) * set(inverse));
    memcpy(codes + i, &code, sizeof code);
  }
  return top / 127.0f + none;
}

}  // namespace
