// Products with packed weights, which lie in panels of 16 outputs (llmctl_ops/packed.py); the layout is the same for every
// instruction set.
//
// float32 and bfloat16: [panel][in][16]. int8: [panel][in / 4][16][4]. int4: [panel][in / 8][16][4], where the low halves of
// four bytes are the codes + 8 of the first four of eight inputs and the high halves those of the others. Inputs of the
// integer kinds are filled up with codes 0 to a multiple of 32. Scales and zeros: [panel][group][16].
//
// Rows meet integer codes as integers: each stretch of 32 values is rounded to 8 bits in units of its largest one / 127.

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
const int64_t BAND = 256;    // rows of a pass over the weight

INLINE int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Bytes of the buffer that `linear` needs for so many rows.
INLINE int64_t linear_scratch(int64_t rows, int64_t in) {
  return 8 * whole(rows < BAND ? rows : BAND, 16) * whole(in, STRETCH) + 64;
}

// The weight of an output's code at input i of its panel.
INLINE float weight_at(const Linear& w, int64_t panel, int64_t i, int64_t lane) {
  if (w.kind == F32) return ((const float*)w.data)[(panel * w.in + i) * PANEL + lane];
  if (w.kind == BF16) {
    uint32_t bits = (uint32_t)((const uint16_t*)w.data)[(panel * w.in + i) * PANEL + lane] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  int64_t in = whole(w.in, STRETCH), groups = w.group ? (w.in + w.group - 1) / w.group : 1;
  int code;
  if (w.kind == INT8) {
    code = ((const int8_t*)w.data)[((panel * in + i / 4 * 4) * PANEL + lane * 4) + i % 4];
  } else {
    uint8_t pair = ((const uint8_t*)w.data)[(panel * in / 2 + i / 8 * 4) * PANEL + lane * 4 + i % 4];
    code = (i % 8 < 4 ? pair & 15 : pair >> 4) - 8;
  }
  int64_t at = (panel * groups + (w.group ? i / w.group : 0)) * PANEL + lane;
  return ((float)code + (w.zeros ? w.zeros[at] : 0.0f)) * w.scales[at];
}

// y[rows, out] = x[rows, in] w + bias. Called by every thread of the team with the same arguments; ends with team.wait().
// scratch: linear_scratch(rows, in) bytes that the team shares.
inline void linear(Team& team, const Linear& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row,
                   void* scratch) {
  float* rounded = (float*)scratch;
  for (int64_t first = 0; first < rows; first += BAND) {
    int64_t band = rows - first < BAND ? rows - first : BAND, begin, end;
    team.part(band, 1, &begin, &end);
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = 0; i < w.in; i += STRETCH) {
        const float* from = x + (first + r) * x_row + i;
        int64_t n = w.in - i < STRETCH ? w.in - i : STRETCH;
        float most = 0.0f, lost = 0.0f;  // lost: not a number if a value is none or is infinite
        for (int64_t j = 0; j < n; ++j) most = most < fabsf(from[j]) ? fabsf(from[j]) : most, lost += from[j] * 0.0f;
        float inverse = lost == 0.0f && most > 0.0f ? 127.0f / most : 0.0f, unit = most / 127.0f + lost;
        for (int64_t j = 0; j < n; ++j)
          rounded[r * w.in + i + j] = w.kind < INT8 ? from[j] : (float)lrintf(from[j] * inverse) * unit;
      }
    team.wait();
    int64_t panels = (w.out + PANEL - 1) / PANEL;
    for (int64_t panel; (panel = team.take()) < panels;)
      for (int64_t lane = 0; lane < PANEL && panel * PANEL + lane < w.out; ++lane) {
        int64_t o = panel * PANEL + lane;
        for (int64_t r = 0; r < band; ++r) {
          float total = w.bias ? w.bias[o] : 0.0f;
          for (int64_t i = 0; i < w.in; ++i) total += rounded[r * w.in + i] * weight_at(w, panel, i, lane);
          y[(first + r) * y_row + o] = total;
        }
      }
    team.wait();
  }
}

}  // namespace
