// The paged cache of keys and values: [layer][block][key-value head], and of each head first keys, then values.
//
// Keys lie transposed, [width][BLOCK], so that the scores of a block's keys are sums of whole vectors; values lie [BLOCK][wide],
// wide being the width filled up with zeros to a multiple of 16. With 8 bits a scale for each key and then each value follows.

#pragma once

#include <math.h>

#include "simd.h"

namespace {

const int BLOCK = 16;  // places

struct Cache {
  char* data;
  int64_t blocks, groups, width, layers;
  bool narrow;  // 8 bits

  int64_t wide() const { return (width + 15) / 16 * 16; }
  int64_t unit() const {
    int64_t values = BLOCK * (width + wide());
    return narrow ? values + 2 * BLOCK * (int64_t)sizeof(float) : values * (int64_t)sizeof(float);
  }
  int64_t block_bytes() const { return groups * unit(); }
  char* at(int64_t layer, int64_t block, int64_t group) const {
    return data + ((layer * blocks + block) * groups + group) * unit();
  }
  float* scales(char* unit_of) const { return (float*)(unit_of + BLOCK * (width + wide())); }
};

// The codes of a row in units of its largest magnitude / 127, which is returned; what is no number makes the unit none.
INLINE float narrowed(const float* from, int64_t width, int8_t* to, int64_t step) {
  float most = 0.0f;
  bool number = true;
  for (int64_t i = 0; i < width; ++i) {
    float magnitude = fabsf(from[i]);
    number &= magnitude <= 3e38f;
    most = most < magnitude ? magnitude : most;
  }
  if (!number) {
    for (int64_t i = 0; i < width; ++i) to[i * step] = 1;
    return NAN;
  }
  float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
  for (int64_t i = 0; i < width; ++i) to[i * step] = (int8_t)lrintf(from[i] * inverse);
  return most / 127.0f;
}

// Writes the key and the value of a head at a place of its block.
INLINE void write_place(const Cache& cache, char* unit, int64_t place, const float* key, const float* value) {
  int64_t width = cache.width, wide = cache.wide();
  if (cache.narrow) {
    int8_t *keys = (int8_t*)unit, *values = keys + BLOCK * width + place * wide;
    float* scales = cache.scales(unit);
    scales[place] = narrowed(key, width, keys + place, BLOCK);
    scales[BLOCK + place] = narrowed(value, width, values, 1);
    for (int64_t i = width; i < wide; ++i) values[i] = 0;
    return;
  }
  float *keys = (float*)unit + place, *values = (float*)unit + BLOCK * width + place * wide;
  for (int64_t i = 0; i < width; ++i) keys[i * BLOCK] = key[i];
  memcpy(values, value, (size_t)width * sizeof(float));
  for (int64_t i = width; i < wide; ++i) values[i] = 0.0f;
}

}  // namespace
