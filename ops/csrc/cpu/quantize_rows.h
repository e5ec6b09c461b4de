// Dynamic int8 quantization of activation rows, for products with integer weights.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "packed_weight.h"
#include "simd.h"
#include "structs.h"
#if WIDTH > 4
#include <immintrin.h>
#endif

namespace {

// Rounds to the nearest integer, ties to even; the result for NaN is unspecified.
INLINE Int round_even(Vec v) {
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

const float MIN_MAX = 1e-30f;  // a block of smaller values becomes zeros: 127 / max would overflow

// Codes of the `count` values of a block, padded with 0. Returns their scale: max |x| / 127, or NaN if a value is not
// finite.
INLINE float quantize_block(const float* x, int64_t count, int32_t* codes) {
  alignas(64) float part[QUANT_BLOCK] = {};
  if (count < QUANT_BLOCK) {
    memcpy(part, x, (size_t)count * sizeof(float));
    x = part;
  }
  const Int magnitude = broadcast_int(0x7fffffff);
  Vec max = {}, zeros = {};
  for (int64_t i = 0; i < QUANT_BLOCK; i += WIDTH) {
    Vec v = load(x + i);
    max = vec_max(max, (Vec)((Int)v & magnitude));
    zeros += v * broadcast(0.0f);
  }
  float top = reduce_max(max), nan = reduce_sum(zeros);
  if (nan != 0.0f) {
    // The integer that a NaN becomes has no magnitude.
    memset(codes, 0, QUANT_BLOCK * sizeof *codes);
    return nan;
  }
  float inverse = top > MIN_MAX ? 127.0f / top : 0.0f;
  for (int64_t i = 0; i < QUANT_BLOCK; i += WIDTH) {
    Int code = round_even(load(x + i) * broadcast(inverse));
    memcpy(codes + i, &code, sizeof code);
  }
  return top / 127.0f + nan;
}

// Inputs [from, from + n) of the weight in a row, which are in `part` if they have an order or factors.
INLINE const float* inputs_of(const Linear& w, const float* row, int64_t from, int64_t n, float* part) {
  if (!w.order && !w.factors) return row + from;
  for (int64_t i = 0; i < n; ++i) {
    float value = row[w.order ? w.order[from + i] : from + i];
    part[i] = w.factors ? value * w.factors[from + i] : value;
  }
  return part;
}

}  // namespace
