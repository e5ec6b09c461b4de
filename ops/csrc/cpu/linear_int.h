// Products of quantized rows with int8 and int4 weights, summed as integers over each block of QUANT_BLOCK inputs.

#pragma once

#include "simd.h"

#if WIDTH > 4
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "memory.h"
#include "packed_weight.h"
#include "quantize_rows.h"
#include "structs.h"
#include "team.h"

namespace {

#if defined(VNNI)
const int LANES = 16;
#else
const int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float UnalignedFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t UnalignedInts __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// LANES scales or zeros from an index on.
INLINE Floats scales_of(const Linear& w, const void* scales, int64_t at) {
  if (!w.half) return *(const UnalignedFloats*)((const float*)scales + at);
#if defined(VNNI)
  return to_float((const Half*)scales + at);
#else
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)((const Half*)scales + at)));
#endif
}

// Sums over one block for H rows and V vectors of outputs. Without VNNI, an int4 sum has 16 bits, and
// room for its sixteen products of a 4-bit and an 8-bit code.
template <int KIND, int H, int V>
struct BlockSums {
  Ints total[H][V];

  // Adds four inputs: four bytes of codes for each output times four bytes of the row.
#if defined(VNNI)
  INLINE void add(int r, int v, Ints codes, Ints, int32_t x) {
    total[r][v] = (Ints)_mm512_dpbusd_epi32((__m512i)total[r][v], (__m512i)codes, _mm512_set1_epi32(x));
  }
  INLINE Ints done(int r, int v) const { return total[r][v]; }
#else
  // An int8 code of -128 has a magnitude, but no opposite: the row takes the sign of the code.
  INLINE void add(int r, int v, Ints codes, Ints magnitudes, int32_t x) {
    if (KIND == INT4) {
      __m256i products = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x));
      total[r][v] = (Ints)_mm256_add_epi16((__m256i)total[r][v], products);
    } else {
      __m256i signed_row = _mm256_sign_epi8(_mm256_set1_epi32(x), (__m256i)codes);
      __m256i products = _mm256_maddubs_epi16((__m256i)magnitudes, signed_row);
      total[r][v] += (Ints)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
    }
    asm("" : "+x"(total[r][v]));  // add now: the compiler would keep all products live for a tree of sums
  }
  INLINE Ints done(int r, int v) const {
    return KIND == INT4 ? (Ints)_mm256_madd_epi16((__m256i)total[r][v], _mm256_set1_epi16(1)) : total[r][v];
  }
#endif
};

// A band of quantized rows in tiles: words of four codes of a row [tile][in / 4][height]; and for each block
// [tile][in / 32][height] its scale, the sum of its dequantized values (for zeros), and minus the part of a sum of
// products that comes from the offset of the weight codes.
template <int KIND>
struct IntRows {
#if defined(VNNI)
  static const int HEIGHT = 12;
  static const int32_t OFFSET = KIND == INT4 ? 8 : 128;
#else
  static const int HEIGHT = 4;
  static const int32_t OFFSET = KIND == INT4 ? 8 : 0;
#endif
  static const int PANELS = 1, BYTES = 1;
  static const int64_t CHUNK = 1024;
  static const int64_t BITS = KIND == INT4 ? 4 : 8;

  int64_t count, height, in;
  int32_t *words, *offsets;
  float *scales, *sums;

  IntRows(int64_t count_, const Linear& w, void* scratch)
      : count(count_), height(tile_height(count_, HEIGHT)), in(round_up(w.in, QUANT_BLOCK)) {
    int64_t size = round_up(count, height) * in;
    words = (int32_t*)round_up((int64_t)scratch, 64);
    offsets = words + size / 4;
    scales = (float*)offsets + size / QUANT_BLOCK;
    sums = scales + size / QUANT_BLOCK;
  }

  // Quantizes the rows; their blocks are divided among the threads.
  void fill(Team& team, const float* x, int64_t x_row, const Linear& w) const {
    int64_t blocks = in / QUANT_BLOCK, begin, end;
    team.range(round_up(count, height) * blocks, 8, &begin, &end);
    for (int64_t at = begin; at < end; ++at) {
      int64_t r = at / blocks, b = at % blocks, from = b * QUANT_BLOCK;
      int64_t index = (r / height * blocks + b) * height + r % height;
      alignas(64) int32_t codes[QUANT_BLOCK] = {};
      float scale = 0.0f;
      if (r < count) {
        float part[QUANT_BLOCK];
        int64_t n = w.in - from < QUANT_BLOCK ? w.in - from : QUANT_BLOCK;
        scale = quantize_block(inputs_of(w, x + r * x_row, from, n, part), n, codes);
      }
      alignas(32) int8_t bytes[QUANT_BLOCK];
      int32_t sum = 0;
      for (int i = 0; i < QUANT_BLOCK; ++i) {
        sum += codes[i];
        bytes[i] = (int8_t)codes[i];
      }
      int64_t word = (r / height * blocks + b) * 8 * height + r % height;
      for (int k = 0; k < 8; ++k, word += height) memcpy(words + word, bytes + 4 * k, 4);
      scales[index] = scale;
      sums[index] = scale * (float)sum;
      offsets[index] = -OFFSET * sum;
    }
  }

  struct Chunk {};
  int64_t inputs_of_chunk(const Linear&) const { return CHUNK; }
  INLINE void read(const Linear&, int64_t, int64_t, int64_t, Chunk*) const {}

  template <int H>
  INLINE void multiply(const Linear& w, const Chunk&, int64_t panel, int64_t tile, int64_t from, int64_t n, float* y,
                       int64_t y_row) const {
    const int V = H <= 4 ? (int)PANEL / LANES : 1;
    for (int half = 0; half < PANEL / LANES; half += V)
      lanes<H, V>(w, panel, tile, from, round_up(n, QUANT_BLOCK), half * LANES, y + half * LANES, y_row);
  }

  template <int H, int V>
  INLINE void lanes(const Linear& w, int64_t panel, int64_t tile, int64_t from, int64_t n, int64_t lane, float* y,
                    int64_t y_row) const {
    const char* data = (const char*)w.data + (panel * in + from) * PANEL * BITS / 8 + lane * 4;
    int64_t index = (tile * in + from) / QUANT_BLOCK * H, group_left = w.group ? w.group - from % w.group : INT64_MAX;
    int64_t scale_at = scales_at(w, panel) + (w.group ? from / w.group * PANEL : 0) + lane;
    Floats out[H][V] = {};
    for (int64_t i = 0; i < n; i += QUANT_BLOCK, index += H, data += QUANT_BLOCK * PANEL * BITS / 8) {
      BlockSums<KIND, H, V> inner = {};
#if defined(VNNI)
#pragma GCC unroll 16
      for (int r = 0; r < H; ++r) inner.total[r][0] = offsets[index + r] - Ints{};
#endif
      block<H, V>(inner, data, index * 8, tile == 0);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Floats scale = scales_of(w, w.scales, scale_at + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < H; ++r) {
          Ints total = inner.done(r, v);
#if !defined(VNNI)
          if (OFFSET) total += offsets[index + r] - Ints{};
#endif
          out[r][v] += __builtin_convertvector(total, Floats) * (scales[index + r] * scale);
        }
        if (w.zeros) {
          Floats shift = scale * scales_of(w, w.zeros, scale_at + v * LANES);
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) out[r][v] += sums[index + r] * shift;
        }
      }
      group_left -= QUANT_BLOCK;
      if (group_left == 0) {
        group_left = w.group;
        scale_at += PANEL;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        UnalignedFloats* to = (UnalignedFloats*)(y + r * y_row + v * LANES);
        *to = *to + out[r][v];
      }
  }

  template <int H, int V>
  INLINE void block(BlockSums<KIND, H, V>& inner, const char* data, int64_t word, bool first) const {
#pragma GCC unroll 4
    for (int step = 0; step < QUANT_BLOCK * BITS / 32; ++step, data += 64) {
      // For a few int8 rows, which are bound by reading memory, the hardware prefetcher does better.
      if (first && (KIND == INT4 || H > 4)) __builtin_prefetch(data + PREFETCH_AHEAD);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Ints bytes = *(const UnalignedInts*)(data + v * 4 * LANES);
        if (KIND == INT4) {
          Ints low = bytes & 0x0f0f0f0f, high = (bytes >> 4) & 0x0f0f0f0f;
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, low, low, words[word + r]);
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, high, high, words[word + H + r]);
        } else {
#if defined(VNNI)
          bytes ^= (int32_t)0x80808080;
          Ints magnitudes = bytes;
#else
          Ints magnitudes = (Ints)_mm256_abs_epi8((__m256i)bytes);
#endif
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, bytes, magnitudes, words[word + r]);
        }
      }
      word += KIND == INT4 ? 2 * H : H;
    }
  }
};

}  // namespace
#endif
