// The exported functions of a decoder.

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "decoder.h"
#include "kv_cache.h"
#include "memory.h"
#include "model_check.h"
#include "parallel.h"
#include "step_check.h"
#include "structs.h"
#include "team.h"
#include "workspace.h"

// Opens a decoder for steps of at most `tokens` tokens; the arrays of the Model must outlive it. 0 = done, 1 = no
// memory, else a ModelStatus.
EXPORT int NAME(decoder_open)(const void* described, int64_t tokens, void** opened) {
  const Model* model = (const Model*)described;
  if (ModelStatus status = check_model(*model, tokens)) return status;
  Decoder* d = (Decoder*)calloc(1, sizeof(Decoder));
  if (!d) return NO_MEMORY;
  d->model = *model;
  d->cache = KVCache{nullptr, 0, model->kv_heads, model->head_dim, model->layers, model->cache_kind};
  int64_t threads = threads_for(INT64_MAX);
  Arena arena = {nullptr, 0};
  lay_out(d->model, tokens, threads, d->work, arena);
  arena = {d->memory = aligned<char>(arena.used), 0};
  if (!d->memory) return free(d), NO_MEMORY;
  lay_out(d->model, tokens, threads, d->work, arena);
  *opened = d;
  return STEP_OK;
}

EXPORT int NAME(decoder_close)(void* decoder) {
  Decoder* d = (Decoder*)decoder;
  free(d->blocks);
  free(d->memory);
  free(d);
  return 0;
}

// Bytes of a cache block over all layers.
EXPORT int NAME(decoder_block_bytes)(const void* decoder, int64_t* bytes) {
  const Decoder* d = (const Decoder*)decoder;
  *bytes = d->cache.block_bytes() * d->cache.layers;
  return 0;
}

// Allocates an empty cache of `blocks` blocks. 0 = done, 1 = no memory. The system commits memory when a block is
// written.
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
  return STEP_OK;
}

// Copies a block; 1 = an index is out of range.
EXPORT int NAME(decoder_copy)(void* decoder, int64_t source, int64_t target) {
  Decoder* d = (Decoder*)decoder;
  if (source < 0 || source >= d->cache.blocks || target < 0 || target >= d->cache.blocks) return 1;
  for (int64_t layer = 0; layer < d->cache.layers; ++layer)
    memcpy(d->cache.head(layer, target, 0), d->cache.head(layer, source, 0), (size_t)d->cache.block_bytes());
  return 0;
}

// Writes keys and values [layers, 2, positions, kv_heads, head_dim] to the KV positions from 0 on of a sequence with
// these blocks; 1 = a block is out of range.
EXPORT int NAME(decoder_put)(void* decoder, const int32_t* blocks, const float* pairs, int64_t positions) {
  Decoder* d = (Decoder*)decoder;
  const KVCache& cache = d->cache;
  for (int64_t b = 0; b * BLOCK < positions; ++b)
    if (blocks[b] < 0 || blocks[b] >= cache.blocks) return 1;
  int64_t row = cache.kv_heads * cache.head_dim;
  for (int64_t layer = 0; layer < cache.layers; ++layer)
    for (int64_t position = 0; position < positions; ++position)
      for (int64_t k = 0; k < cache.kv_heads; ++k) {
        const float* key = pairs + (layer * 2 * positions + position) * row + k * cache.head_dim;
        store_kv(cache, cache.head(layer, blocks[position / BLOCK], k), position % BLOCK, key, key + positions * row);
      }
  return 0;
}

// Computes a Step. Returns a StepStatus; `where` gets the index of the token, sequence or logits row that is wrong.
EXPORT int NAME(decoder_step)(void* decoder, const void* described, int64_t* where) {
  Decoder* d = (Decoder*)decoder;
  const Step* step = (const Step*)described;
  StepStatus status = check_step(*d, *step, where);
  if (status) return status;
  StepRun run = {*d, d->model, d->work, *step, step->tokens, 0, 0, false, false};
  for (int64_t t = 0; t < step->tokens; ++t) {
    d->work.adapter[t] = step->adapter[step->sequence[t]];
    run.has_lora |= d->work.adapter[t] >= 0;
  }
  make_query_tiles(run);
  int64_t tasks = run.tiles * d->model.kv_heads;
  run.split_kv = run.splits > 1 && tasks < 4 * d->work.threads && tasks * run.splits <= MAX_PARTIALS;
  d->team_size.run(d->work.threads, [&](Team& team) { compute(team, run); });
  return STEP_OK;
}
