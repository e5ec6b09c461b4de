// Which experts a token goes to, and the order in which tokens are gathered for them.

#pragma once

#include <math.h>

#include "model.h"

namespace {

// Where each choice of a token lies among all choices, sorted by expert.
struct Routing {
  float* weight;    // [T, K]
  int32_t* expert;  // [T, K]
  int32_t* slot;    // [T, K]
  int32_t* token;   // [T * K]: of a slot
  int32_t* start;   // [experts + 1]: first slot of an expert
};

// Scores of a token become weights of its best experts; of two alike the first is better.
INLINE void route_token(const Model& m, const float* router, const float* x, int64_t t, float* score, Routing& to) {
  float most = -INFINITY, total = 0.0f;
  for (int64_t e = 0; e < m.experts; ++e) {
    Vec products = {};
    vectors(m.hidden, [&](int64_t i, int64_t n) { products += load_some(x + i, n) * load_some(router + e * m.hidden + i, n); });
    score[e] = sum(products);
    most = score[e] > most ? score[e] : most;
  }
  for (int64_t e = 0; e < m.experts; ++e) total += score[e] = expf(score[e] - most);
  float chosen = 0.0f;
  for (int64_t k = 0; k < m.top_k; ++k) {
    int64_t best = -1;
    for (int64_t e = 0; e < m.experts; ++e)
      if (score[e] >= 0.0f && (best < 0 || score[e] > score[best])) best = e;
    // Where scores are no numbers any expert will do: the result is none either.
    float weight = best < 0 ? NAN : score[best] / total;
    if (best < 0) best = k;
    score[best] = -1.0f;
    chosen += weight;
    to.weight[t * m.top_k + k] = weight;
    to.expert[t * m.top_k + k] = (int32_t)best;
  }
  if (m.renormalize)
    for (int64_t k = 0; k < m.top_k; ++k) to.weight[t * m.top_k + k] /= chosen;
}

// Sorts the choices of all tokens by expert.
INLINE void sort_choices(const Model& m, int64_t tokens, Routing& to) {
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
