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

// float16 (IEEE binary16).
struct Half {
  uint16_t bits;
};

INLINE Vec to_float(const Half* p) {
#if WIDTH == 16
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#elif WIDTH == 8
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Int bits = {p[0].bits, p[1].bits, p[2].bits, p[3].bits}, magnitude = bits & 0x7fff;
  // Moves the exponent from a bias of 15 to 127; values below 2^-14 are multiples of 2^-24.
  Int normal = (magnitude << 13) + (magnitude >= 0x7c00 ? broadcast_int(224 << 23) : broadcast_int(112 << 23));
  Int small = (Int)(__builtin_convertvector(magnitude, Vec) * broadcast(0x1p-24f));
  return (Vec)((magnitude < 0x400 ? small : normal) | (bits & 0x8000) << 16);
#endif
}

// The nearest float16, ties to even; finite values beyond its range become its largest.
INLINE void to_half(Vec v, Half* to) {
  const Vec largest = broadcast(65504.0f), infinite = broadcast(__builtin_inff());
  Vec magnitude = (Vec)((Int)v & 0x7fffffff);
  Int beyond = (magnitude > largest) & (magnitude < infinite);
  v = beyond ? (Vec)((Int)largest | ((Int)v & (int32_t)0x80000000)) : v;
#if WIDTH == 16
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif WIDTH == 8
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < WIDTH; ++i) {
    uint32_t bits = (uint32_t)((Int)v)[i], sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    uint32_t half = rest > 0x7f800000 ? 0x7e00 : rest >> 13;
    if (rest < 0x38800000) {
      // Adding 1/2 leaves the multiple of 2^-24 in the low bits.
      float shifted = ((Vec)((Int)v & 0x7fffffff))[i] + 0.5f;
      memcpy(&half, &shifted, 4);
      half -= 0x3f000000;
    } else if (rest < 0x7f800000) {
      half = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    } else if (rest == 0x7f800000) {
      half = 0x7c00;
    }
    to[i].bits = (uint16_t)(sign | half);
  }
#endif
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
