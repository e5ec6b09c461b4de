// A decoder and its steps as functions of the library.

#pragma once

#include "decoder_faults.h"

// Opens a decoder of a Model, whose arrays must outlive it. 0 = done, 1 = no memory.
EXPORT int NAME(decoder_open)(const void* described, int64_t tokens, void** opened) {
  const Model* model = (const Model*)described;
  Decoder* d = (Decoder*)calloc(1, sizeof(Decoder));
  if (!d) return NO_MEMORY;
  d->model = *model;
  d->cache = Cache{nullptr, 0, model->groups, model->width, model->layers, model->cache_int8 != 0};
  int64_t threads = threads_for(INT64_MAX);
  Arena arena = {nullptr, 0};
  lay_out(d->model, tokens, threads, d->work, arena);
  arena = {d->memory = aligned<char>(arena.used), 0};
  if (!d->memory) return free(d), NO_MEMORY;
  lay_out(d->model, tokens, threads, d->work, arena);
  *opened = d;
  return NONE;
}

EXPORT int NAME(decoder_close)(void* decoder) {
  Decoder* d = (Decoder*)decoder;
  free(d->blocks);
  free(d->memory);
  free(d);
  return 0;
}

// Bytes of a block over all layers.
EXPORT int NAME(decoder_block_bytes)(const void* decoder, int64_t* bytes) {
  const Decoder* d = (const Decoder*)decoder;
  *bytes = d->cache.block_bytes() * d->cache.layers;
  return 0;
}

// Makes room for so many blocks; the cache is empty afterwards. Memory is taken when a block is written.
EXPORT int NAME(decoder_allocate)(void* decoder, int64_t blocks) {
  Decoder* d = (Decoder*)decoder;
  free(d->blocks);
  d->blocks = nullptr, d->cache.blocks = 0;
  int64_t bytes;
  if (__builtin_mul_overflow(d->cache.block_bytes() * d->cache.layers, blocks, &bytes) || bytes > INT64_MAX - 64)
    return NO_MEMORY;
  d->blocks = (char*)calloc(1, (size_t)bytes + 64);
  if (!d->blocks) return NO_MEMORY;
  d->cache.data = d->blocks + (64 - (uintptr_t)d->blocks % 64) % 64;
  d->cache.blocks = blocks;
  return NONE;
}

// Copies a block; 1 = it is none of the cache.
EXPORT int NAME(decoder_copy)(void* decoder, int64_t source, int64_t target) {
  Decoder* d = (Decoder*)decoder;
  if (source < 0 || source >= d->cache.blocks || target < 0 || target >= d->cache.blocks) return 1;
  for (int64_t layer = 0; layer < d->cache.layers; ++layer)
    memcpy(d->cache.at(layer, target, 0), d->cache.at(layer, source, 0), (size_t)d->cache.block_bytes());
  return 0;
}

// Writes keys and values [layers, 2, places, groups, width] to places 0 on of a sequence with these blocks; 1 = a block is
// none of the cache.
EXPORT int NAME(decoder_put)(void* decoder, const int32_t* blocks, const float* pairs, int64_t places) {
  Decoder* d = (Decoder*)decoder;
  const Cache& cache = d->cache;
  for (int64_t b = 0; b * BLOCK < places; ++b)
    if (blocks[b] < 0 || blocks[b] >= cache.blocks) return 1;
  int64_t row = cache.groups * cache.width;
  for (int64_t layer = 0; layer < cache.layers; ++layer)
    for (int64_t place = 0; place < places; ++place)
      for (int64_t k = 0; k < cache.groups; ++k) {
        const float* key = pairs + (layer * 2 * places + place) * row + k * cache.width;
        write_place(cache, cache.at(layer, blocks[place / BLOCK], k), place % BLOCK, key, key + places * row);
      }
  return 0;
}

// Computes a Step; gives a Fault, and where it is.
EXPORT int NAME(decoder_step)(void* decoder, const void* asked, int64_t* where) {
  Decoder* d = (Decoder*)decoder;
  const Step* step = (const Step*)asked;
  Fault fault = fault_of(*d, *step, where);
  if (fault) return fault;
  Run run = {*d, d->model, d->work, *step, step->tokens, 0, 0, false, false};
  for (int64_t t = 0; t < step->tokens; ++t) {
    d->work.adapter[t] = step->adapter[step->row[t]];
    run.adapted |= d->work.adapter[t] >= 0;
  }
  cut_rows(run);
  int64_t tasks = run.tiles * d->model.groups;
  run.apart = run.spans > 1 && tasks < 4 * d->work.threads && tasks * run.spans <= MOST_PARTS;
  gather(d->work.threads, [&](Team& team) { compute(team, run); });
  return NONE;
}
