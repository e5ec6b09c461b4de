// A decoder and a step of it, as the caller's structures lay them out (llmctl_ops/decoder.py has the same fields in the same order).
//
// Letters: T tokens of the step, R sequences, M blocks of a sequence, L tokens whose logits are wanted, V vocabulary.

#pragma once

#include "linear.h"

namespace {

struct Norm {
  const float *weight, *bias;  // bias of a LayerNorm only; no weight = no norm
};

// A low-rank change of a linear: y += (x a) b. Rows of a are filled up to a multiple of 16, and so are those of b.
struct Change {
  const float *a, *b;  // [in, wide rank], [rank, wide out]; null = none
  int64_t rank;
};

struct Layer {
  Norm norm, ffn_norm;
  Linear qkv, out;
  const Linear *up, *down;        // [experts]
  const float *router;            // [experts, hidden]; null = one feed-forward layer
  const float *q_norm, *k_norm;   // [width]; null = none
  const Change *qkv_changes, *out_changes;  // [adapters]
  const Change *up_changes, *down_changes;  // [experts, adapters]
  float score_scale;
};

enum Activation : int32_t { SWIGLU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

struct Model {
  const Layer* layer;
  const void* embed;       // [V, embed_width]
  const float* positions;  // [position_rows, hidden]; null = none
  const float* slopes;     // [heads]; null = none
  Norm embed_norm, final_norm;
  Linear project_in, project_out, head;  // no data = none
  int64_t layers, hidden, heads, groups, width, ffn, vocab, embed_width, position_rows;
  int64_t turned;  // elements of a head that are turned
  int64_t experts, top_k, adapters;
  float eps, carry_scale;
  int32_t embed_bf16, layer_norm, activation, norm_after, carry_normed, halves, renormalize, cache_int8;
};

struct Step {
  const int32_t *ids, *row, *place, *position, *second, *begin, *end;  // [T]
  const int32_t *blocks, *adapter, *wanted;                           // [R, M], [R], [L]
  const float *cosine, *sine;   // [angle_rows, pairs]
  const float* query_scale;     // [angle_rows]; null = none
  float* logits;                // [L, V]
  int64_t tokens, rows, most_blocks, wanted_count, angle_rows;
};

}  // namespace
