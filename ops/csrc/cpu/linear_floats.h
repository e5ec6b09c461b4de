// Products with weights as floats: float32, bfloat16, and where there are no kernels for integer codes, these too.

#pragma once

#include "linear_rounding.h"

namespace {

const int SPLIT = (int)PANEL / WIDTH;  // vectors of a panel

INLINE Vec widen(const float* p) { return load(p); }
INLINE Vec widen(const uint16_t* p) {
  typedef uint16_t Loose __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(4 * WIDTH)));
  return (Vec)(__builtin_convertvector(*(const Loose*)p, Wide) << 16);
}

// One row: each weight is read once, and the time is that of reading. An output is summed in the order in which many rows
// sum it, so panels stand side by side where others would cut the sum into several.
template <class T>
__attribute__((noinline)) void single(Team& team, const Linear& w, const float* x, float* y) {
  const int SIDE = WIDTH == 16 ? 4 : 2;
  int64_t panels = (w.out + PANEL - 1) / PANEL, size = w.in * PANEL;
  for (int64_t panel; (panel = team.take() * SIDE) < panels;) {
    const T* data = (const T*)w.data + panel * size;
    const T* from[SIDE];
    Vec total[SIDE][SPLIT];
    for (int p = 0; p < SIDE; ++p) {
      from[p] = panel + p < panels ? data + p * size : data;
      for (int v = 0; v < SPLIT; ++v) {
        int64_t o = (panel + p) * PANEL + v * WIDTH, n = w.out - o < WIDTH ? w.out - o : WIDTH;
        total[p][v] = w.bias && n > 0 ? load_some(w.bias + o, n) : Vec{};
      }
    }
    for (int64_t i = 0; i < w.in; ++i) {
      Vec left = set(x[i]);
#pragma GCC unroll 4
      for (int p = 0; p < SIDE; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < SPLIT; ++v) total[p][v] += left * widen(from[p] + i * PANEL + v * WIDTH);
      }
    }
    for (int p = 0; p < SIDE; ++p)
      for (int v = 0; v < SPLIT; ++v) {
        int64_t o = (panel + p) * PANEL + v * WIDTH, n = w.out - o < WIDTH ? w.out - o : WIDTH;
        if (n > 0) store_some(y + o, total[p][v], n);
      }
  }
}

// Four or, of 4 bits, eight inputs of a vector of outputs: their codes lie in one word for each output.
template <int KIND>
INLINE void widen_word(Int word, Vec zero, Vec scale, float* to) {
#pragma GCC unroll 8
  for (int j = 0; j < (KIND == INT4 ? 8 : 4); ++j) {
    Int code = KIND == INT4 ? (word >> (j % 4 * 8 + j / 4 * 4) & 15) - 8 : word << (24 - 8 * j) >> 24;
    store(to + j * PANEL, (__builtin_convertvector(code, Vec) + zero) * scale);
  }
}

// Inputs [from, from + n) of a panel as floats [n][16]; of integer kinds, n is filled up to a multiple of STRETCH.
INLINE void widen_panel(const Linear& w, int64_t panel, int64_t from, int64_t n, float* to) {
  if (w.kind == BF16) {
    const uint16_t* data = (const uint16_t*)w.data + (panel * w.in + from) * PANEL;
    for (int64_t i = 0; i < n * PANEL; i += WIDTH) store(to + i, widen(data + i));
    return;
  }
  int64_t each = w.kind == INT4 ? 8 : 4, in = whole(w.in, STRETCH);
  for (int64_t i = from; i < from + n; i += each, to += each * PANEL) {
    const int32_t* words = (const int32_t*)w.data + (panel * in + i) / each * PANEL;
    int64_t at = scales_at(w, panel) + (w.group ? i / w.group * PANEL : 0);
    for (int64_t lane = 0; lane < PANEL; lane += WIDTH) {
      Vec scale = load(w.scales + at + lane), zero = w.zeros ? load(w.zeros + at + lane) : Vec{};
      if (w.kind == INT4)
        widen_word<INT4>(load_int(words + lane), zero, scale, to + lane);
      else
        widen_word<INT8>(load_int(words + lane), zero, scale, to + lane);
    }
  }
}

// A band of rows in tiles [tile][in][height].
struct FloatRows {
#if WIDTH == 16
  static const int HEIGHT = 12, PANELS = 2;  // of 32 registers 24 hold sums
#elif WIDTH == 8
  static const int HEIGHT = 6, PANELS = 1;  // of 16 registers 12 hold sums
#else
  static const int HEIGHT = 3, PANELS = 1;
#endif
  static const int BYTES = 4;
  static const int64_t CHUNK = 256 / PANELS;  // inputs whose weights stay in the nearest cache

  int64_t count, height, in;
  bool rounding;
  float* tiles;

  FloatRows(int64_t count_, const Linear& w, void* scratch)
      : count(count_),
        height(tile_height(count_, HEIGHT)),
        in(w.in),
        rounding(w.kind >= INT8),
        tiles((float*)whole((int64_t)scratch, 64)) {}

  void fill(Team& team, const float* x, int64_t x_row, int64_t) const {
    int64_t begin, end;
    team.part(whole(count, height), 1, &begin, &end);
    for (int64_t r = begin; r < end; ++r) {
      float* to = tiles + r / height * height * in + r % height;
      if (r < count && rounding)
        for (int64_t i = 0; i < in; i += STRETCH) {
          int32_t codes[STRETCH];
          int64_t n = in - i < STRETCH ? in - i : STRETCH;
          float unit = round_stretch(x + r * x_row + i, n, codes);
          for (int64_t j = 0; j < n; ++j) to[(i + j) * height] = (float)codes[j] * unit;
        }
      else if (r < count)
        for (int64_t i = 0; i < in; ++i) to[i * height] = x[r * x_row + i];
      else
        for (int64_t i = 0; i < in; ++i) to[i * height] = 0.0f;
    }
  }

  // Weights of PANELS panels; the second is the first again where there is none.
  struct Chunk {
    const void *first, *second;
    bool narrow;  // bfloat16 as they lie in the weight, which few rows widen as often
    // Where what comes next is fetched from, and how much of it with each input: a tile's even part of the next chunk. A
    // single tile leaves it to the processor, which does better where only reading takes time.
    const char *next, *next_second;
    int64_t step;
    alignas(64) float wide[CHUNK * PANEL * PANELS];
  };

  int64_t inputs_of_chunk(const Linear& w) const { return w.kind <= BF16 && count <= height ? w.in : CHUNK; }

  INLINE void read(const Linear& w, int64_t panel, int64_t from, int64_t n, Chunk* chunk) const {
    bool pair = PANELS == 2 && (panel + 1) * PANEL < w.out;
    int64_t bytes = w.kind == F32 ? 4 : w.kind == BF16 ? 2 : 0, tiles = (count + height - 1) / height;
    const char* data = (const char*)w.data + (panel * in + from) * PANEL * bytes;
    chunk->narrow = w.kind == BF16 && tiles == 1;
    chunk->next = data + (tiles == 1 ? 0 : n * PANEL * bytes);
    chunk->next_second = pair ? chunk->next + in * PANEL * bytes : chunk->next;
    chunk->step = PANEL * bytes / tiles;
    if (w.kind == F32 || chunk->narrow) {
      chunk->first = data;
      chunk->second = pair ? data + in * PANEL * bytes : data;
      return;
    }
    chunk->first = chunk->second = chunk->wide;
    widen_panel(w, panel, from, n, chunk->wide);
    if (!pair) return;
    chunk->second = chunk->wide + (PANELS - 1) * CHUNK * PANEL;
    widen_panel(w, panel + 1, from, n, chunk->wide + (PANELS - 1) * CHUNK * PANEL);
  }

  template <int H>
  INLINE void multiply(const Linear&, const Chunk& chunk, int64_t, int64_t tile, int64_t from, int64_t n, float* y,
                       int64_t y_row) const {
    const float* x = tiles + (tile * in + from) * H;
    int64_t skipped = tile * n * chunk.step, step = chunk.step;
    const char *next = chunk.next + skipped, *next_second = chunk.next_second + skipped;
    if (chunk.narrow)
      sum_up<H>(x, (const uint16_t*)chunk.first, (const uint16_t*)chunk.second, n, next, next_second, step, y, y_row);
    else
      sum_up<H>(x, (const float*)chunk.first, (const float*)chunk.second, n, next, next_second, step, y, y_row);
  }

  template <int H, class T>
  INLINE void sum_up(const float* x, const T* first, const T* second, int64_t n, const char* next,
                     const char* next_second, int64_t step, float* y, int64_t y_row) const {
    Vec total[H][PANELS * SPLIT];
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PANELS * SPLIT; ++v) total[r][v] = load(y + r * y_row + v * WIDTH);
    for (int64_t i = 0; i < n; ++i, x += H, first += PANEL, second += PANEL) {
      __builtin_prefetch(next + i * step, 0, 2);
      if (PANELS == 2) __builtin_prefetch(next_second + i * step, 0, 2);
      Vec right[PANELS * SPLIT];
#pragma GCC unroll 4
      for (int v = 0; v < SPLIT; ++v) right[v] = widen(first + v * WIDTH);
      if (PANELS == 2)
#pragma GCC unroll 4
        for (int v = 0; v < SPLIT; ++v) right[SPLIT * (PANELS - 1) + v] = widen(second + v * WIDTH);
#pragma GCC unroll 16
      for (int r = 0; r < H; ++r) {
        Vec left = set(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < PANELS * SPLIT; ++v) total[r][v] += left * right[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < H; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < PANELS * SPLIT; ++v) store(y + r * y_row + v * WIDTH, total[r][v]);
  }
};

}  // namespace
