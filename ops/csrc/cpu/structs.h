// The structs that callers fill: a packed weight, a model and a step. Plain C layout; the ctypes mirrors in
// llmctl_ops/structs.py have the same fields in the same order, and their sizes are compared when the library is
// loaded.
//
// Shape suffixes: T tokens of the step, R sequences, M blocks of a sequence, L tokens that get logits, V vocabulary.

#pragma once

#include <stdint.h>

namespace {

// JOINED: weights of other kinds for the same inputs, whose outputs follow each other: `data` are their structs, and all
// of the fields but `in`, `out` and `kind` are theirs. Linears of layers only.
enum WeightKind : int32_t { F32 = 0, BF16 = 1, F16 = 2, INT8 = 3, INT4 = 4, JOINED = 5 };

enum CacheKind : int32_t { CACHE_F32 = 0, CACHE_F16 = 1, CACHE_INT8 = 2 };

// A weight packed in panels (see linear.h for the layouts). A weight is (code + zero) * scale; `group` inputs share a
// scale, 0 = all inputs of an output share one.
struct Linear {
  const void* data;
  const void* scales;    // integer kinds only; float, or Half
  const void* zeros;     // as scales, or null
  const float* bias;     // or null
  const int32_t* order;  // [in]: input i of the weight is element order[i] of a row; null = i. Integer kinds only
  const float* factors;  // [in]: multiplied with the inputs of the weight; null = 1. Integer kinds only
  int64_t in, out, group;
  int32_t kind;  // WeightKind
  int32_t half;  // scales and zeros are Half
};

struct Norm {
  const float *weight, *bias;  // bias of a LayerNorm only; no weight = no norm
};

// A LoRA delta of a linear: y += (x a) b. Rows of a and b are padded with zeros to a multiple of 16.
struct LoraDelta {
  const float *a, *b;  // [in, padded rank], [rank, padded out]; null = none
  int64_t rank;
};

struct Layer {
  Norm norm, ffn_norm;
  Linear qkv, out;
  const Linear *up, *down;               // [experts]
  const float* router;                   // [experts, hidden]; null = dense feed-forward layer
  const float *q_norm, *k_norm;          // [head_dim]; null = none
  const LoraDelta *qkv_lora, *out_lora;  // [adapters]
  const LoraDelta *up_lora, *down_lora;  // [experts, adapters]
  float score_scale;
};

enum Activation : int32_t { SWIGLU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

struct Model {
  const Layer* layer;
  const void* embed;          // [V, embed_dim]; null = the outputs of embed_linear
  const float* positions;     // learned positions [position_rows, hidden]; null = none
  const float* alibi_slopes;  // [heads]; null = none
  Norm embed_norm, final_norm;
  Linear embed_linear;                   // [embed_dim, V]; no data = none
  Linear project_in, project_out, head;  // no data = none
  int64_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab, embed_dim, position_rows;
  int64_t rotary_dim;  // elements of a head that RoPE rotates
  int64_t experts, top_k, adapters;
  float eps, residual_scale;
  int32_t embed_kind, layer_norm, activation, norm_after, residual_after_norm;
  // embed_kind: F32, BF16 or F16
  int32_t rope_2d;  // the second half of the rotary elements has positions of its own
  int32_t renormalize, cache_kind;         // CacheKind
};

struct Step {
  const int32_t *ids, *sequence, *kv_position;  // [T]: token, row of block_tables, position in the KV sequence
  const int32_t *position, *second_position;    // [T]: for RoPE and learned positions; the second for rope_2d
  const int32_t *attend_begin, *attend_end;     // [T]: KV positions that the token attends to
  const int32_t *block_tables, *adapter, *logits_indices;  // [R, M], [R] (-1 = none), [L] ascending
  const float *cosine, *sine;                              // [angle_rows, pairs]
  const float* query_scale;                                // [angle_rows]; null = none
  float* logits;                                           // [L, V]
  int64_t tokens, sequences, max_blocks, logits_count, angle_rows;
};

}  // namespace
