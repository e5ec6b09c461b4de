// The vector of a token: a row of a table, or an output of a packed weight, such as that of a tied head.

#pragma once

#include <stdint.h>
#include <string.h>

#include "convert.h"
#include "packed_weight.h"
#include "simd.h"
#include "structs.h"

namespace {

// `count` values of a type that `to_float` converts, `step` apart.
template <class T>
INLINE void widen(const T* from, int64_t step, int64_t count, float* to) {
  for_vectors(count, [&](int64_t i, int64_t n) {
    T values[WIDTH] = {};
    for (int64_t j = 0; j < n; ++j) values[j] = from[(i + j) * step];
    store_n(to + i, to_float(values), n);
  });
}

INLINE void widen_kind(int32_t kind, const void* from, int64_t at, int64_t step, int64_t count, float* to) {
  if (kind == BF16)
    widen((const uint16_t*)from + at, step, count, to);
  else if (kind == F16)
    widen((const Half*)from + at, step, count, to);
  else
    widen((const float*)from + at, step, count, to);
}

// All weights of one output, in the order of the weight's inputs.
INLINE void weights_of_output(const Linear& w, int64_t output, float* to) {
  int64_t panel = output / PANEL, lane = output % PANEL;
  if (!has_codes(w)) return widen_kind(w.kind, w.data, panel * w.in * PANEL + lane, PANEL, w.in, to);
  int64_t each = w.kind == INT4 ? 8 : 4, words = round_up(w.in, QUANT_BLOCK) / each;
  const int32_t* word = (const int32_t*)w.data + panel * words * PANEL + lane;
  for (int64_t i = 0; i < w.in; i += each, word += PANEL) {
    int64_t at = scales_at(w, panel) + (w.group ? i / w.group * PANEL : 0);
    float scale = scale_of(w, w.scales, at + lane), zero = w.zeros ? scale_of(w, w.zeros, at + lane) : 0.0f;
    for (int64_t j = 0; j < each && i + j < w.in; ++j) {
      uint32_t bits = (uint32_t)*word;
      int32_t code = w.kind == INT4 ? (int32_t)(bits >> (j % 4 * 8 + j / 4 * 4) & 15) - 8
                                    : (int32_t)(int8_t)(uint8_t)(bits >> 8 * j);
      to[i + j] = ((float)code + zero) * scale;
    }
  }
}

INLINE void embed_token(const Model& m, int64_t id, float* to) {
  if (!m.embed)
    weights_of_output(m.embed_linear, id, to);
  else if (m.embed_kind == F32)
    memcpy(to, (const float*)m.embed + id * m.embed_dim, (size_t)m.embed_dim * sizeof(float));
  else
    widen_kind(m.embed_kind, m.embed, id * m.embed_dim, 1, m.embed_dim, to);
}

}  // namespace
