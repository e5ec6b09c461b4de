// Checks a model before a decoder is made of it: that its numbers are possible and its linears fit them. What pointers
// point to is the caller's to check.

#pragma once

#include <stdint.h>

#include "packed_weight.h"
#include "structs.h"

namespace {

// What is wrong with a model; llmctl_ops/decoder.py has a message for each. Statuses of steps are below.
enum ModelStatus : int {
  MODEL_OK = 0,
  BAD_SIZE = 32,
  BAD_HEADS,
  BAD_ROTARY,
  BAD_ROUTING,
  BAD_LINEAR,
  BAD_PART,
  BAD_NUMBER
};

// Sizes up to these cannot overflow the sums of buffers.
const int64_t MAX_SIZE = 1 << 26, MAX_WIDTH = 1 << 28, MAX_COUNT = 1 << 20, MAX_TOP_K = 1 << 10;

inline bool within(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

inline bool finite(float value) { return value - value == 0.0f; }

inline bool fits(const Linear& w, int64_t in, int64_t out) {
  bool codes = has_codes(w);
  return w.data && w.in == in && w.out == out && within(w.kind, F32, INT4) && (!codes || w.scales) &&
         (codes || (!w.order && !w.factors)) && within(w.group, 0, INT32_MAX) && w.group % 32 == 0;
}

// A linear of a layer, which may be joined.
inline bool fits_layer(const Linear& w, int64_t in, int64_t out) {
  if (w.kind != JOINED) return fits(w, in, out);
  if (!w.data || w.in != in || w.out != out) return false;
  int64_t left = out;
  for (const Linear* part = (const Linear*)w.data; left > 0; left -= (part++)->out)
    if (!within(part->out, 1, left) || !fits(*part, in, part->out)) return false;
  return true;
}

inline bool fits(const LoraDelta* deltas, int64_t count) {
  for (int64_t i = 0; deltas && i < count; ++i)
    if (deltas[i].a && (!deltas[i].b || !within(deltas[i].rank, 1, MAX_SIZE))) return false;
  return true;
}

inline ModelStatus check_layer(const Model& m, const Layer& layer) {
  int64_t width = m.heads * m.head_dim, up = m.activation == SWIGLU ? 2 * m.ffn : m.ffn;
  int64_t experts = m.experts ? m.experts : 1;
  if (!layer.norm.weight || !layer.ffn_norm.weight || !layer.up || !layer.down || !layer.router != !m.experts)
    return BAD_PART;
  if (!finite(layer.score_scale)) return BAD_NUMBER;
  if (!fits_layer(layer.qkv, m.hidden, width + 2 * m.kv_heads * m.head_dim) || !fits_layer(layer.out, width, m.hidden))
    return BAD_LINEAR;
  for (int64_t e = 0; e < experts; ++e)
    if (!fits_layer(layer.up[e], m.hidden, up) || !fits_layer(layer.down[e], m.ffn, m.hidden)) return BAD_LINEAR;
  if (!fits(layer.qkv_lora, m.adapters) || !fits(layer.out_lora, m.adapters) ||
      !fits(layer.up_lora, m.adapters * experts) || !fits(layer.down_lora, m.adapters * experts))
    return BAD_PART;
  return MODEL_OK;
}

// The first thing that is impossible in a model for steps of `tokens` tokens.
inline ModelStatus check_model(const Model& m, int64_t tokens) {
  const int64_t sizes[] = {m.hidden, m.heads, m.kv_heads, m.head_dim, m.ffn, m.embed_dim};
  for (int64_t size : sizes)
    if (!within(size, 1, MAX_SIZE)) return BAD_SIZE;
  if (!within(tokens, 1, MAX_COUNT) || !within(m.vocab, 1, INT32_MAX) || !within(m.layers, 1, MAX_COUNT) ||
      !within(m.adapters, 0, MAX_COUNT) || !within(m.position_rows, 0, INT32_MAX) || !within(m.experts, 0, MAX_COUNT))
    return BAD_SIZE;
  if (m.heads % m.kv_heads || 3 * m.heads * m.head_dim > MAX_WIDTH) return BAD_HEADS;
  if (!within(m.rotary_dim, 0, m.head_dim) || m.rotary_dim % (m.rope_2d ? 4 : 2)) return BAD_ROTARY;
  if (m.experts && !within(m.top_k, 1, m.experts < MAX_TOP_K ? m.experts : MAX_TOP_K)) return BAD_ROUTING;
  if (!m.layer || !m.embed == !m.embed_linear.data || !m.positions != !m.position_rows) return BAD_PART;
  if (!finite(m.eps) || !finite(m.residual_scale) || !within(m.activation, SWIGLU, RELU) ||
      !within(m.cache_kind, CACHE_F32, CACHE_INT8) ||
      !within(m.embed_kind, F32, F16))
    return BAD_NUMBER;
  if (m.embed_linear.data &&
      (!fits(m.embed_linear, m.embed_dim, m.vocab) || m.embed_linear.order || m.embed_linear.factors))
    return BAD_LINEAR;
  bool in = m.project_in.data, out = m.project_out.data;
  if ((!in && m.embed_dim != m.hidden) || (in && !fits(m.project_in, m.embed_dim, m.hidden)) ||
      (out && !fits(m.project_out, m.hidden, m.embed_dim)) || !fits(m.head, out ? m.embed_dim : m.hidden, m.vocab))
    return BAD_LINEAR;
  for (int64_t i = 0; i < m.layers; ++i)
    if (ModelStatus status = check_layer(m, m.layer[i])) return status;
  return MODEL_OK;
}

}  // namespace
