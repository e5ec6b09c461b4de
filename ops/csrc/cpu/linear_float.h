// Products with weights as floats: float32, bfloat16, float16, and the integer kinds where there are no integer kernels.

#pragma once

#include <stdint.h>
#include <string.h>

#include "convert.h"
#include "memory.h"
#include "packed_weight.h"
#include "quantize_rows.h"
#include "simd.h"
#include "structs.h"
#include "team.h"

namespace {

const int PANEL_VECTORS = (int)PANEL / WIDTH;  // vectors of a panel

// One row, bound by reading each weight once. Each output is summed in the same order as for many rows, so that results
// are bit-identical: several panels at once, rather than several partial sums, hide the latency.
template <class T>
__attribute__((noinline)) void linear_row(Team& team, const Linear& w, const float* x, float* y) {
  const int PANELS_AT_ONCE = WIDTH == 16 ? 4 : 2;
  int64_t panels = (w.out + PANEL - 1) / PANEL, size = w.in * PANEL;
  for (int64_t panel; (panel = team.take() * PANELS_AT_ONCE) < panels;) {
    const T* data = (const T*)w.data + panel * size;
    const T* from[PANELS_AT_ONCE];
    Vec total[PANELS_AT_ONCE][PANEL_VECTORS];
    for (int p = 0; p < PANELS_AT_ONCE; ++p) {
      from[p] = panel + p < panels ? data + p * size : data;
      for (int v = 0; v < PANEL_VECTORS; ++v) {
        int64_t o = (panel + p) * PANEL + v * WIDTH, n = w.out - o < WIDTH ? w.out - o : WIDTH;
        total[p][v] = w.bias && n > 0 ? load_n(w.bias + o, n) : Vec{};
      }
    }
    for (int64_t i = 0; i < w.in; ++i) {
      Vec x_i = broadcast(x[i]);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS_AT_ONCE; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECTORS; ++v) total[p][v] += x_i * to_float(from[p] + i * PANEL + v * WIDTH);
      }
    }
    for (int p = 0; p < PANELS_AT_ONCE; ++p)
      for (int v = 0; v < PANEL_VECTORS; ++v) {
        int64_t o = (panel + p) * PANEL + v * WIDTH, n = w.out - o < WIDTH ? w.out - o : WIDTH;
        if (n > 0) store_n(y + o, total[p][v], n);
      }
  }
}

// Four inputs (int4: eight) of a vector of outputs; each output has their codes in one word.
template <int KIND>
INLINE void dequantize_word(Int word, Vec zero, Vec scale, float* to) {
#pragma GCC unroll 8
  for (int j = 0; j < (KIND == INT4 ? 8 : 4); ++j) {
    Int code = KIND == INT4 ? (word >> (j % 4 * 8 + j / 4 * 4) & 15) - 8 : word << (24 - 8 * j) >> 24;
    store(to + j * PANEL, (__builtin_convertvector(code, Vec) + zero) * scale);
  }
}

// Inputs [from, from + n) of a panel of 16 bits or codes as floats [n][16]; for integer kinds n is rounded up to a multiple of QUANT_BLOCK.
INLINE void dequantize_panel(const Linear& w, int64_t panel, int64_t from, int64_t n, float* to) {
  if (!has_codes(w)) {
    const uint16_t* data = (const uint16_t*)w.data + (panel * w.in + from) * PANEL;
    for (int64_t i = 0; i < n * PANEL; i += WIDTH)
      store(to + i, w.kind == BF16 ? to_float(data + i) : to_float((const Half*)(data + i)));
    return;
  }
  int64_t each = w.kind == INT4 ? 8 : 4, in = round_up(w.in, QUANT_BLOCK);
  for (int64_t i = from; i < from + n; i += each, to += each * PANEL) {
    const int32_t* words = (const int32_t*)w.data + (panel * in + i) / each * PANEL;
    int64_t at = scales_at(w, panel) + (w.group ? i / w.group * PANEL : 0);
    for (int64_t lane = 0; lane < PANEL; lane += WIDTH) {
      Vec scale = scale_vector(w, w.scales, at + lane), zero = w.zeros ? scale_vector(w, w.zeros, at + lane) : Vec{};
      if (w.kind == INT4)
        dequantize_word<INT4>(load_int(words + lane), zero, scale, to + lane);
      else
        dequantize_word<INT8>(load_int(words + lane), zero, scale, to + lane);
    }
  }
}

// A band of rows in tiles [tile][in][height].
struct FloatRows {
#if WIDTH == 16
  static const int HEIGHT = 12, PANELS = 2;  // 24 of 32 registers hold sums
#elif WIDTH == 8
  static const int HEIGHT = 6, PANELS = 1;  // 12 of 16 registers hold sums
#else
  static const int HEIGHT = 3, PANELS = 1;
#endif
  static const int BYTES = 4;
  static const int64_t CHUNK = 256 / PANELS;  // inputs whose weights stay in the L1 cache

  int64_t count, height, in;
  bool quantize;
  float* tiles;

  FloatRows(int64_t count_, const Linear& w, void* scratch)
      : count(count_),
        height(tile_height(count_, HEIGHT)),
        in(w.in),
        quantize(has_codes(w)),
        tiles((float*)round_up((int64_t)scratch, 64)) {}

  void fill(Team& team, const float* x, int64_t x_row, const Linear& w) const {
    int64_t begin, end;
    team.range(round_up(count, height), 1, &begin, &end);
    for (int64_t r = begin; r < end; ++r) {
      float* to = tiles + r / height * height * in + r % height;
      if (r < count && quantize)
        for (int64_t i = 0; i < in; i += QUANT_BLOCK) {
          int32_t codes[QUANT_BLOCK];
          float part[QUANT_BLOCK];
          int64_t n = in - i < QUANT_BLOCK ? in - i : QUANT_BLOCK;
          float scale = quantize_block(inputs_of(w, x + r * x_row, i, n, part), n, codes);
          for (int64_t j = 0; j < n; ++j) to[(i + j) * height] = (float)codes[j] * scale;
        }
      else if (r < count)
        for (int64_t i = 0; i < in; ++i) to[i * height] = x[r * x_row + i];
      else
        for (int64_t i = 0; i < in; ++i) to[i * height] = 0.0f;
    }
  }

  // Weights of PANELS panels; if there is no second panel it repeats the first.
  struct Chunk {
    const void *first, *second;
    bool direct;  // points into a weight of 16 bits, which a single tile converts only once; otherwise floats
    // What to prefetch, and how many bytes with each input: every tile prefetches an equal share of the next chunk. For
    // a single tile, which is bound by reading memory, this is the current chunk: the hardware prefetcher does better.
    const char *next, *next_second;
    int64_t step;
    alignas(64) float floats[CHUNK * PANEL * PANELS];
  };

  int64_t inputs_of_chunk(const Linear& w) const { return !has_codes(w) && count <= height ? w.in : CHUNK; }

  INLINE void read(const Linear& w, int64_t panel, int64_t from, int64_t n, Chunk* chunk) const {
    bool pair = PANELS == 2 && (panel + 1) * PANEL < w.out;
    int64_t bytes = w.kind == F32 ? 4 : has_codes(w) ? 0 : 2, tiles = (count + height - 1) / height;
    const char* data = (const char*)w.data + (panel * in + from) * PANEL * bytes;
    chunk->direct = bytes == 2 && tiles == 1;
    chunk->next = data + (tiles == 1 ? 0 : n * PANEL * bytes);
    chunk->next_second = pair ? chunk->next + in * PANEL * bytes : chunk->next;
    chunk->step = PANEL * bytes / tiles;
    if (w.kind == F32 || chunk->direct) {
      chunk->first = data;
      chunk->second = pair ? data + in * PANEL * bytes : data;
      return;
    }
    chunk->first = chunk->second = chunk->floats;
    dequantize_panel(w, panel, from, n, chunk->floats);
    if (!pair) return;
    chunk->second = chunk->floats + (PANELS - 1) * CHUNK * PANEL;
    dequantize_panel(w, panel + 1, from, n, chunk->floats + (PANELS - 1) * CHUNK * PANEL);
  }

  template <int H>
  INLINE void multiply(const Linear& w, const Chunk& chunk, int64_t, int64_t tile, int64_t from, int64_t n, float* y,
                       int64_t y_row) const {
    const float* x = tiles + (tile * in + from) * H;
    int64_t skipped = tile * n * chunk.step, step = chunk.step;
    const char *next = chunk.next + skipped, *next_second = chunk.next_second + skipped;
    if (chunk.direct && w.kind == BF16)
      accumulate<H>(x, (const uint16_t*)chunk.first, (const uint16_t*)chunk.second, n, next, next_second, step, y,
                    y_row);
    else if (chunk.direct)
      accumulate<H>(x, (const Half*)chunk.first, (const Half*)chunk.second, n, next, next_second, step, y, y_row);
    else
      accumulate<H>(x, (const float*)chunk.first, (const float*)chunk.second, n, next, next_second, step, y, y_row);
  }

  template <int H, class T>
  INLINE void accumulate(const float* x, const T* first, const T* second, int64_t n, const char* next,
                         const char* next_second, int64_t step, float* y, int64_t y_row) const {
    Vec total[H][PANELS * PANEL_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PANELS * PANEL_VECTORS; ++v) total[r][v] = load(y + r * y_row + v * WIDTH);
    for (int64_t i = 0; i < n; ++i, x += H, first += PANEL, second += PANEL) {
      __builtin_prefetch(next + i * step, 0, 2);
      if (PANELS == 2) __builtin_prefetch(next_second + i * step, 0, 2);
      Vec w_i[PANELS * PANEL_VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < PANEL_VECTORS; ++v) w_i[v] = to_float(first + v * WIDTH);
      if (PANELS == 2)
#pragma GCC unroll 4
        for (int v = 0; v < PANEL_VECTORS; ++v) w_i[PANEL_VECTORS * (PANELS - 1) + v] = to_float(second + v * WIDTH);
#pragma GCC unroll 16
      for (int r = 0; r < H; ++r) {
        Vec x_i = broadcast(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < PANELS * PANEL_VECTORS; ++v) total[r][v] += x_i * w_i[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PANELS * PANEL_VECTORS; ++v) store(y + r * y_row + v * WIDTH, total[r][v]);
  }
};

}  // namespace
