// LoRA deltas of a linear, where each row may use another adapter.

#pragma once

#include <stdint.h>

#include "gemm.h"
#include "memory.h"
#include "simd.h"
#include "structs.h"
#include "team.h"

namespace {

const int64_t LORA_ROWS = 12;  // rows of a group

// Calls body(first, count, delta) for groups of consecutive rows that use the same adapter.
template <class Body>
INLINE void for_adapter_groups(const LoraDelta* deltas, const int32_t* adapter, int64_t rows, const Body& body) {
  for (int64_t first = 0, count; first < rows; first += count) {
    for (count = 1; first + count < rows && count < LORA_ROWS && adapter[first + count] == adapter[first];) ++count;
    if (adapter[first] >= 0 && deltas[adapter[first]].a) body(first, count, deltas[adapter[first]]);
  }
}

// y[r] += (x[r] a) b with the matrices of the row's adapter; rows of y must have room for `out` padded to a multiple
// of 16. Called by every thread of the team; ends with team.wait(). xa: [rows, xa_row], shared by the team.
inline void add_lora(Team& team, const LoraDelta* deltas, const int32_t* adapter, const float* x, int64_t in,
                     int64_t rows, int64_t x_row, float* xa, int64_t xa_row, float* y, int64_t out, int64_t y_row) {
  int64_t group = 0;
  for_adapter_groups(deltas, adapter, rows, [&](int64_t first, int64_t count, const LoraDelta& delta) {
    if (group++ % team.threads != team.thread) return;
    int64_t rank = round_up(delta.rank, 16);
    multiply(false, (int)count, (int)rank, (int)in, x + first * x_row, x_row, 1, delta.a, rank, xa + first * xa_row,
             xa_row);
  });
  team.wait();
  int64_t begin, end, padded_out = round_up(out, 16);
  team.range(padded_out, 64, &begin, &end);
  if (begin < end)
    for_adapter_groups(deltas, adapter, rows, [&](int64_t first, int64_t count, const LoraDelta& delta) {
      multiply(true, (int)count, (int)(end - begin), (int)delta.rank, xa + first * xa_row, xa_row, 1, delta.b + begin,
               padded_out, y + first * y_row + begin, y_row);
    });
  team.wait();
}

}  // namespace
