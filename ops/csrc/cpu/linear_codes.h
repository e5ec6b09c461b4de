// Products of rounded rows with int8 and int4 codes, summed as integers over each stretch of inputs.

#pragma once

#include "linear_rounding.h"

#if WIDTH > 4
namespace {

#if defined(VNNI)
const int LANES = 16;
#else
const int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float LooseFloats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t LooseInts __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Sums over a stretch for H rows and V vectors of outputs. `pairs` are of 16 bits: 8 products of a code of 4 bits with
// two of 8 bits do not pass them.
template <int KIND, int H, int V>
struct StretchSums {
  Ints total[H][V];

  // Four inputs: codes of four bytes for each output, and the rows' four bytes.
#if defined(VNNI)
  INLINE void add(int r, int v, Ints codes, int32_t x, int32_t) {
    total[r][v] = (Ints)_mm512_dpbusd_epi32((__m512i)total[r][v], (__m512i)codes, _mm512_set1_epi32(x));
  }
  INLINE Ints done(int r, int v) const { return total[r][v]; }
#else
  INLINE void add(int r, int v, Ints codes, int32_t x, int32_t magnitude) {
    if (KIND == INT4) {
      __m256i products = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x));
      total[r][v] = (Ints)_mm256_add_epi16((__m256i)total[r][v], products);
    } else {
      __m256i turned = _mm256_sign_epi8((__m256i)codes, _mm256_set1_epi32(x));
      __m256i products = _mm256_maddubs_epi16(_mm256_set1_epi32(magnitude), turned);
      total[r][v] += (Ints)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
    }
    asm("" : "+x"(total[r][v]));  // summed at once: the compiler would keep all products for a tree of sums
  }
  INLINE Ints done(int r, int v) const {
    return KIND == INT4 ? (Ints)_mm256_madd_epi16((__m256i)total[r][v], _mm256_set1_epi16(1)) : total[r][v];
  }
#endif
};

// A band of rows in tiles: four codes of a row in a word [tile][in / 4][height], and for each stretch [tile][in / 32][height]
// its unit, its sum in these units, and what the offset of the codes adds to a sum of products.
template <int KIND>
struct CodeRows {
#if defined(VNNI)
  static const int HEIGHT = 12;
  static const int32_t OFFSET = KIND == INT4 ? 8 : 128;
#else
  static const int HEIGHT = 4;
  static const int32_t OFFSET = KIND == INT4 ? 8 : 0;
#endif
  static const bool MAGNITUDES = OFFSET == 0;
  static const int PANELS = 1, BYTES = 1;
  static const int64_t CHUNK = 1024;
  static const int64_t BITS = KIND == INT4 ? 4 : 8;

  int64_t count, height, in;
  int32_t *words, *magnitudes, *starts;
  float *units, *sums;

  CodeRows(int64_t count_, const Linear& w, void* scratch)
      : count(count_), height(tile_height(count_, HEIGHT)), in(whole(w.in, STRETCH)) {
    int64_t size = whole(count, height) * in;
    words = (int32_t*)whole((int64_t)scratch, 64);
    magnitudes = words + size / 4;
    starts = magnitudes + size / 4;
    units = (float*)starts + size / STRETCH;
    sums = units + size / STRETCH;
  }

  // Stretches of all rows are shared among the threads.
  void fill(Team& team, const float* x, int64_t x_row, int64_t width) const {
    int64_t stretches = in / STRETCH, begin, end;
    team.part(whole(count, height) * stretches, 8, &begin, &end);
    for (int64_t at = begin; at < end; ++at) {
      int64_t r = at / stretches, s = at % stretches, from = s * STRETCH;
      int64_t place = (r / height * stretches + s) * height + r % height;
      alignas(64) int32_t codes[STRETCH] = {};
      float unit = 0.0f;
      if (r < count) unit = round_stretch(x + r * x_row + from, width - from < STRETCH ? width - from : STRETCH, codes);
      alignas(32) int8_t bytes[STRETCH], sizes[STRETCH];
      int32_t sum = 0;
      for (int i = 0; i < STRETCH; ++i) {
        sum += codes[i];
        bytes[i] = (int8_t)codes[i];
        sizes[i] = (int8_t)(codes[i] < 0 ? -codes[i] : codes[i]);
      }
      int64_t word = (r / height * stretches + s) * 8 * height + r % height;
      for (int k = 0; k < 8; ++k, word += height) {
        memcpy(words + word, bytes + 4 * k, 4);
        if (MAGNITUDES) memcpy(magnitudes + word, sizes + 4 * k, 4);
      }
      units[place] = unit;
      sums[place] = unit * (float)sum;
      starts[place] = -OFFSET * sum;
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
      lanes<H, V>(w, panel, tile, from, whole(n, STRETCH), half * LANES, y + half * LANES, y_row);
  }

  template <int H, int V>
  INLINE void lanes(const Linear& w, int64_t panel, int64_t tile, int64_t from, int64_t n, int64_t lane, float* y,
                    int64_t y_row) const {
    const char* data = (const char*)w.data + (panel * in + from) * PANEL * BITS / 8 + lane * 4;
    int64_t place = (tile * in + from) / STRETCH * H, left = w.group ? w.group - from % w.group : INT64_MAX;
    int64_t scale_at = scales_at(w, panel) + (w.group ? from / w.group * PANEL : 0) + lane;
    Floats out[H][V] = {};
    for (int64_t i = 0; i < n; i += STRETCH, place += H, data += STRETCH * PANEL * BITS / 8) {
      StretchSums<KIND, H, V> inner = {};
#if defined(VNNI)
#pragma GCC unroll 16
      for (int r = 0; r < H; ++r) inner.total[r][0] = starts[place + r] - Ints{};
#endif
      stretch<H, V>(inner, data, place * 8, tile == 0);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Floats scale = *(const LooseFloats*)(w.scales + scale_at + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < H; ++r) {
          Ints total = inner.done(r, v);
#if !defined(VNNI)
          if (OFFSET) total += starts[place + r] - Ints{};
#endif
          out[r][v] += __builtin_convertvector(total, Floats) * (units[place + r] * scale);
        }
        if (w.zeros) {
          Floats shift = scale * *(const LooseFloats*)(w.zeros + scale_at + v * LANES);
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) out[r][v] += sums[place + r] * shift;
        }
      }
      left -= STRETCH;
      if (left == 0) {
        left = w.group;
        scale_at += PANEL;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        LooseFloats* to = (LooseFloats*)(y + r * y_row + v * LANES);
        *to = *to + out[r][v];
      }
  }

  template <int H, int V>
  INLINE void stretch(StretchSums<KIND, H, V>& inner, const char* data, int64_t word, bool first) const {
#pragma GCC unroll 4
    for (int step = 0; step < STRETCH * BITS / 32; ++step, data += 64) {
      // Where only reading takes time, the processor's own prefetching does better.
      if (first && (KIND == INT4 || H > 4)) __builtin_prefetch(data + AHEAD);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Ints bytes = *(const LooseInts*)(data + v * 4 * LANES);
        if (KIND == INT4) {
          Ints low = bytes & 0x0f0f0f0f, high = (bytes >> 4) & 0x0f0f0f0f;
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, low, words[word + r], 0);
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, high, words[word + H + r], 0);
        } else {
#if defined(VNNI)
          bytes ^= (int32_t)0x80808080;
#endif
#pragma GCC unroll 16
          for (int r = 0; r < H; ++r) inner.add(r, v, bytes, words[word + r], magnitudes[word + r]);
        }
      }
      word += KIND == INT4 ? 2 * H : H;
    }
  }
};

}  // namespace
#endif
