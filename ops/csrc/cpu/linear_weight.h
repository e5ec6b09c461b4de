// What a packed weight is to the kernels (see linear.h for the layouts).

#pragma once

#include <math.h>

#include "memory.h"
#include "simd.h"
#include "team.h"

namespace {

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

// A packed weight. `group` inputs share a scale; 0 = all of an output share one. A weight is (code + zero) * scale.
struct Linear {
  const void* data;
  const float* scales;  // of integer kinds
  const float* zeros;   // or null
  const float* bias;    // or null
  int64_t in, out, group;
  int32_t kind;
};

const int64_t PANEL = 16;    // outputs
const int64_t STRETCH = 32;  // inputs that are rounded together
const int AHEAD = 2048;      // bytes that are fetched before they are needed

INLINE int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Where the scales and zeros of a panel begin.
INLINE int64_t scales_at(const Linear& w, int64_t panel) {
  return panel * PANEL * (w.group ? (w.in + w.group - 1) / w.group : 1);
}

// Rows of a tile, so that all tiles are about as high.
INLINE int64_t tile_height(int64_t rows, int64_t most) {
  int64_t tiles = (rows + most - 1) / most;
  return tiles ? (rows + tiles - 1) / tiles : 1;
}

}  // namespace
