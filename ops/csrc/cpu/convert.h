// Loads of WIDTH values of a storage type as floats.

#pragma once

#include <stdint.h>

#include "simd.h"
#if WIDTH > 4
#include <immintrin.h>
#endif

namespace {

INLINE Vec to_float(const float* p) { return load(p); }

// bfloat16: the upper half of a float.
INLINE Vec to_float(const uint16_t* p) {
  typedef uint16_t Unaligned __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(4 * WIDTH)));
  return (Vec)(__builtin_convertvector(*(const Unaligned*)p, Wide) << 16);
}

INLINE Vec to_float(const int8_t* p) {
#if WIDTH == 16
  Int integers = (Int)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
#elif WIDTH == 8
  Int integers = (Int)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  Int integers = {p[0], p[1], p[2], p[3]};
#endif
  return __builtin_convertvector(integers, Vec);
}

}  // namespace
