// The paged KV cache: [layer][block][key-value head]; the data of a head are its keys, then its values.
//
// Keys are stored transposed, [head_dim][BLOCK], so that the scores of a block's keys are sums of whole vectors. Values
// are [BLOCK][padded head_dim], padded with zeros to a multiple of 16. In int8 a scale for each key and then each value
// follows.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "convert.h"
#include "simd.h"
#include "structs.h"

namespace {

const int BLOCK = 16;  // KV positions

struct KVCache {
  char* data;
  int64_t blocks, kv_heads, head_dim, layers;
  int32_t kind;  // CacheKind

  int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t head_bytes() const {
    int64_t values = BLOCK * (head_dim + padded_dim());
    if (kind == CACHE_INT8) return values + 2 * BLOCK * (int64_t)sizeof(float);
    return values * (int64_t)(kind == CACHE_F16 ? sizeof(Half) : sizeof(float));
  }
  int64_t block_bytes() const { return kv_heads * head_bytes(); }
  char* head(int64_t layer, int64_t block, int64_t kv_head) const {
    return data + ((layer * blocks + block) * kv_heads + kv_head) * head_bytes();
  }
  float* scales(char* head) const { return (float*)(head + BLOCK * (head_dim + padded_dim())); }
};

// Quantizes a row to int8 codes `stride` apart; returns the scale, max |x| / 127. If a value is not finite the scale is
// NaN.
INLINE float quantize_int8(const float* from, int64_t head_dim, int8_t* to, int64_t stride) {
  float max = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < head_dim; ++i) {
    float magnitude = fabsf(from[i]);
    finite &= magnitude <= 3e38f;
    max = max < magnitude ? magnitude : max;
  }
  if (!finite) {
    for (int64_t i = 0; i < head_dim; ++i) to[i * stride] = 1;
    return NAN;
  }
  float inverse = max > 1e-30f ? 127.0f / max : 0.0f;
  for (int64_t i = 0; i < head_dim; ++i) to[i * stride] = (int8_t)lrintf(from[i] * inverse);
  return max / 127.0f;
}

// Writes the key and value of one head at a position of its block.
INLINE void store_kv(const KVCache& cache, char* head, int64_t position, const float* key, const float* value) {
  int64_t head_dim = cache.head_dim, padded_dim = cache.padded_dim();
  if (cache.kind == CACHE_INT8) {
    int8_t *keys = (int8_t*)head, *values = keys + BLOCK * head_dim + position * padded_dim;
    float* scales = cache.scales(head);
    scales[position] = quantize_int8(key, head_dim, keys + position, BLOCK);
    scales[BLOCK + position] = quantize_int8(value, head_dim, values, 1);
    for (int64_t i = head_dim; i < padded_dim; ++i) values[i] = 0;
    return;
  }
  if (cache.kind == CACHE_F16) {
    Half *keys = (Half*)head + position, *values = (Half*)head + BLOCK * head_dim + position * padded_dim;
    for_vectors(head_dim, [&](int64_t i, int64_t n) {
      Half row[WIDTH];
      to_half(load_n(key + i, n), row);
      for (int64_t j = 0; j < n; ++j) keys[(i + j) * BLOCK] = row[j];
      to_half(load_n(value + i, n), row);
      memcpy(values + i, row, (size_t)n * sizeof(Half));
    });
    for (int64_t i = head_dim; i < padded_dim; ++i) values[i] = Half{0};
    return;
  }
  float *keys = (float*)head + position, *values = (float*)head + BLOCK * head_dim + position * padded_dim;
  for (int64_t i = 0; i < head_dim; ++i) keys[i * BLOCK] = key[i];
  memcpy(values, value, (size_t)head_dim * sizeof(float));
  for (int64_t i = head_dim; i < padded_dim; ++i) values[i] = 0.0f;
}

}  // namespace
