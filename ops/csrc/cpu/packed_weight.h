// Layout constants of packed weights, and where their scales are (see linear.h for the layouts).

#pragma once

#include <stdint.h>

#include "convert.h"
#include "simd.h"
#include "structs.h"

namespace {

const int64_t PANEL = 16;         // outputs of a panel
const int64_t QUANT_BLOCK = 32;   // inputs of a row that are quantized with one scale
const int PREFETCH_AHEAD = 2048;  // bytes

// The index of the first scale (and zero) of a panel.
INLINE int64_t scales_at(const Linear& w, int64_t panel) {
  return panel * PANEL * (w.group ? (w.in + w.group - 1) / w.group : 1);
}

// Whether weights are codes with scales.
INLINE bool has_codes(const Linear& w) { return w.kind == INT8 || w.kind == INT4; }

// WIDTH scales or zeros from an index on.
INLINE Vec scale_vector(const Linear& w, const void* scales, int64_t at) {
  return w.half ? to_float((const Half*)scales + at) : load((const float*)scales + at);
}

// One of them.
INLINE float scale_of(const Linear& w, const void* scales, int64_t at) {
  if (!w.half) return ((const float*)scales)[at];
  Half alone[WIDTH] = {((const Half*)scales)[at]};
  return to_float(alone)[0];
}

// Rows per tile, at most `max_height`, so that all tiles have about the same height.
INLINE int64_t tile_height(int64_t rows, int64_t max_height) {
  int64_t tiles = (rows + max_height - 1) / max_height;
  return tiles ? (rows + tiles - 1) / tiles : 1;
}

}  // namespace
