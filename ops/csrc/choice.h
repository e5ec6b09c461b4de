// How a row of logits chooses a token, for the CPU and for GPUs (llmctl_ops/sampling.py has the same fields).

#pragma once

#include <stdint.h>

namespace {

// How one row chooses, and what it chose.
struct Choice {
  const int32_t* context;  // prompt and answer; the last `generated` are the answer
  const int32_t* ends;     // tokens that are excluded
  int64_t context_count, generated, end_count, top_k;
  double repetition, presence, frequency;  // penalties
  double temperature, top_p, min_p, draw;
  double logprob;  // of the token, before anything else than softmax
  int32_t sample, token, status;
};

enum Chosen : int32_t { CHOSEN = 0, NO_NUMBERS = 1, NOTHING_LEFT = 2, NO_SUCH_TOKEN = 3 };

}  // namespace
