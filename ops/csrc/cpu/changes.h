// Low-rank changes of linears, row by row of another adapter.

#pragma once

#include "gemm.h"
#include "model.h"

namespace {

const int64_t TOGETHER = 12;  // rows of a piece

// Calls body(first, count, change) for pieces of neighbouring rows that have one adapter.
template <class Body>
INLINE void pieces_of_rows(const Change* changes, const int32_t* adapter, int64_t rows, const Body& body) {
  for (int64_t first = 0, count; first < rows; first += count) {
    for (count = 1; first + count < rows && count < TOGETHER && adapter[first + count] == adapter[first];) ++count;
    if (adapter[first] >= 0 && changes[adapter[first]].a) body(first, count, changes[adapter[first]]);
  }
}

// y[r] += (x[r] a) b with the matrices of the row's adapter; y's rows have room for `out` filled up to a multiple of 16.
// Called by every thread of the team; ends with team.wait(). inner: [rows, inner_row], shared.
inline void add_changes(Team& team, const Change* changes, const int32_t* adapter, const float* x, int64_t in,
                        int64_t rows, int64_t x_row, float* inner, int64_t inner_row, float* y, int64_t out,
                        int64_t y_row) {
  int64_t turn = 0;
  pieces_of_rows(changes, adapter, rows, [&](int64_t first, int64_t count, const Change& change) {
    if (turn++ % team.threads != team.thread) return;
    int64_t wide = whole(change.rank, 16);
    multiply(false, (int)count, (int)wide, (int)in, x + first * x_row, x_row, 1, change.a, wide,
             inner + first * inner_row, inner_row);
  });
  team.wait();
  int64_t begin, end, wide = whole(out, 16);
  team.part(wide, 64, &begin, &end);
  if (begin < end)
    pieces_of_rows(changes, adapter, rows, [&](int64_t first, int64_t count, const Change& change) {
      multiply(true, (int)count, (int)(end - begin), (int)change.rank, inner + first * inner_row, inner_row, 1,
               change.b + begin, wide, y + first * y_row + begin, y_row);
    });
  team.wait();
}

}  // namespace
