// Mixture of experts: top-k routing of tokens, and the order in which tokens are gathered per expert.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "simd.h"
#include "structs.h"

namespace {

// The experts of each token, and the slots of all (token, expert) pairs sorted by expert. K = experts per token.
struct Routing {
  float* weight;    // [T, K]
  int32_t* expert;  // [T, K]
  int32_t* slot;    // [T, K]
  int32_t* token;   // [T * K]: token of a slot
  int32_t* start;   // [experts + 1]: first slot of an expert
};

// Softmax over the router's scores of a token, then its top-k experts; the first of equal scores wins.
INLINE void route_token(const Model& m, const float* router, const float* x, int64_t t, float* score, Routing& to) {
  float max = -INFINITY, total = 0.0f;
  for (int64_t e = 0; e < m.experts; ++e) {
    Vec products = {};
    for_vectors(m.hidden,
                [&](int64_t i, int64_t n) { products += load_n(x + i, n) * load_n(router + e * m.hidden + i, n); });
    score[e] = reduce_sum(products);
    max = score[e] > max ? score[e] : max;
  }
  for (int64_t e = 0; e < m.experts; ++e) total += score[e] = expf(score[e] - max);
  float selected = 0.0f;
  for (int64_t k = 0; k < m.top_k; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < m.experts; ++e)
      if (score[e] >= 0.0f && (best < 0 || score[e] > score[best])) best = e;
    // If the scores are NaN any expert will do: the NaN weight makes the result NaN.
    float weight = best < 0 ? NAN : score[best] / total;
    if (best < 0) best = k;
    score[best] = -1.0f;
    selected += weight;
    to.weight[t * m.top_k + k] = weight;
    to.expert[t * m.top_k + k] = (int32_t)best;
  }
  if (m.renormalize)
    for (int64_t k = 0; k < m.top_k; ++k) to.weight[t * m.top_k + k] /= selected;
}

// Counting sort of all (token, expert) pairs by expert.
INLINE void sort_by_expert(const Model& m, int64_t tokens, Routing& to) {
  memset(to.start, 0, (size_t)(m.experts + 1) * sizeof(int32_t));
  for (int64_t i = 0; i < tokens * m.top_k; ++i) ++to.start[to.expert[i] + 1];
  for (int64_t e = 0; e < m.experts; ++e) to.start[e + 1] += to.start[e];
  for (int64_t i = 0; i < tokens * m.top_k; ++i) {
    int32_t slot = to.start[to.expert[i]]++;
    to.slot[i] = slot;
    to.token[slot] = (int32_t)(i / m.top_k);
  }
  for (int64_t e = m.experts; e > 0; --e) to.start[e] = to.start[e - 1];
  to.start[0] = 0;
}

}  // namespace
