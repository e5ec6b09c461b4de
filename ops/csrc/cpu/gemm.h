// Products of small matrices that are in cache: the inner loops of attention and LoRA.

#pragma once

#include <stdint.h>

#include "simd.h"

namespace {

#if WIDTH == 16
const int ROWS = 6, COLUMNS = 4;  // 24 of 32 registers hold sums
#else
const int ROWS = 6, COLUMNS = 2;  // 12 of 16 registers hold sums
#endif

// c[R, C * WIDTH] += or = a[R, depth] b[depth, C * WIDTH]; element (r, k) of a is a[r * row + k * step].
template <int R, int C>
INLINE void micro(bool add, int depth, const float* a, int64_t row, int64_t step, const float* b, int64_t b_row,
                  float* c, int64_t c_row) {
  Vec total[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) total[r][j] = add ? load(c + r * c_row + j * WIDTH) : Vec{};
  for (int k = 0; k < depth; ++k) {
    Vec right[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) right[j] = load(b + j * WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec left = broadcast(a[r * row]);
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) total[r][j] += left * right[j];
    }
    a += step;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) store(c + r * c_row + j * WIDTH, total[r][j]);
}

template <int R>
__attribute__((noinline)) void strip(bool add, int columns, int depth, const float* a, int64_t row, int64_t step,
                                     const float* b, int64_t b_row, float* c, int64_t c_row) {
  int j = 0;
  for (; j + COLUMNS * WIDTH <= columns; j += COLUMNS * WIDTH)
    micro<R, COLUMNS>(add, depth, a, row, step, b + j, b_row, c + j, c_row);
#if WIDTH == 16
  if (j + 2 * WIDTH <= columns) {
    micro<R, 2>(add, depth, a, row, step, b + j, b_row, c + j, c_row);
    j += 2 * WIDTH;
  }
#endif
  if (j < columns) micro<R, 1>(add, depth, a, row, step, b + j, b_row, c + j, c_row);
}

// c[rows, columns] += or = a[rows, depth] b[depth, columns]; columns a multiple of WIDTH.
inline void multiply(bool add, int rows, int columns, int depth, const float* a, int64_t row, int64_t step,
                     const float* b, int64_t b_row, float* c, int64_t c_row) {
  int r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    strip<ROWS>(add, columns, depth, a + r * row, row, step, b, b_row, c + r * c_row, c_row);
  a += r * row;
  c += r * c_row;
  switch (rows - r) {
    case 1: strip<1>(add, columns, depth, a, row, step, b, b_row, c, c_row); break;
    case 2: strip<2>(add, columns, depth, a, row, step, b, b_row, c, c_row); break;
    case 3: strip<3>(add, columns, depth, a, row, step, b, b_row, c, c_row); break;
    case 4: strip<4>(add, columns, depth, a, row, step, b, b_row, c, c_row); break;
    case 5: strip<5>(add, columns, depth, a, row, step, b, b_row, c, c_row); break;
    default: break;
  }
}

}  // namespace
