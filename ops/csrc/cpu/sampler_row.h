// One row of the sampler: how its token is chosen, and the result. Shared by the CPU and CUDA samplers; the ctypes
// mirror is SamplerRow in llmctl_ops/structs.py.

#pragma once

#include <stdint.h>

namespace {

struct SamplerRow {
  const int32_t* context;   // prompt and answer; the last `generated` tokens are the answer
  const int32_t* excluded;  // tokens that may not be chosen
  int64_t context_count, generated, excluded_count, top_k;
  double repetition, presence, frequency;  // penalties
  double temperature, top_p, min_p, draw;
  double logprob;         // result: log-probability of the token in the softmax of the raw logits
  int32_t sample;         // draw a token; otherwise take the first of the highest scores
  int32_t token, status;  // results
};

enum SampleStatus : int32_t { CHOSEN = 0, NOT_FINITE = 1, ALL_EXCLUDED = 2, TOKEN_OUT_OF_RANGE = 3 };

}  // namespace
