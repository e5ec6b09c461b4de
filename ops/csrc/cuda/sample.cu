// The sampler on a GPU: penalties, excluded tokens, temperature, top-k, top-p, min-p, and a draw.
//
// One block of threads per row. All sums are in double precision and in a fixed order, so that the token of a row does
// not depend on the other rows. Every step keeps the same tokens as in csrc/cpu/sample.h.

#include <math.h>
#include <stdint.h>

#include "../cpu/sampler_row.h"
#include "launch.h"

namespace {

const int BITS = 4, PIVOTS = (1 << BITS) - 1;

// Scratch of one row.
struct RowScratch {
  double *score, *weight;    // [V]
  int32_t *seen, *answered;  // [V]: counts of a token in the context, and in the answer

  __device__ RowScratch(char* memory, int64_t vocab) {
    score = (double*)memory;
    weight = score + vocab;
    seen = (int32_t*)(weight + vocab);
    answered = seen + vocab;
  }
};

int64_t bytes_of_row(int64_t vocab) { return vocab * (int64_t)(2 * sizeof(double) + 2 * sizeof(int32_t)); }

template <typename Each>
__device__ void each(int64_t count, Each body) {
  for (int64_t i = threadIdx.x; i < count; i += THREADS) body(i);
  __syncthreads();
}

// An integer with the order of the scores.
__device__ uint64_t rank_of(double score) {
  union {
    double number;
    uint64_t bits;
  } as = {score};
  return as.bits >> 63 ? ~as.bits : as.bits | (uint64_t)1 << 63;
}

// The largest threshold such that the values of all ranks at or above it sum to `need` or more; 0 if there is none.
template <typename Rank, typename Value>
__device__ uint64_t rank_threshold(int64_t count, double need, Rank rank, Value value) {
  uint64_t bound = 0;
  for (int shift = 64 - BITS; shift >= 0; shift -= BITS) {
    double above[PIVOTS] = {};
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
      uint64_t own = rank(i);
      if (own < bound) continue;
      uint64_t step = (own - bound) >> shift;
      double amount = value(i);
      for (int p = 0; p < PIVOTS; ++p)
        if (step > (uint64_t)p) above[p] += amount;
    }
    int steps = 0;
    for (int p = 0; p < PIVOTS; ++p)
      if (reduce_sum(above[p]) >= need) steps = p + 1;
    bound += (uint64_t)steps << shift;
  }
  return bound;
}

__device__ void apply_penalties(const SamplerRow& row, int64_t vocab, RowScratch s) {
  each(vocab, [&](int64_t i) { s.seen[i] = s.answered[i] = 0; });
  each(row.context_count, [&](int64_t i) {
    atomicAdd(s.seen + row.context[i], 1);
    if (i >= row.context_count - row.generated) atomicAdd(s.answered + row.context[i], 1);
  });
  each(vocab, [&](int64_t i) {
    double score = s.score[i];
    if (s.seen[i] && row.repetition != 1.0) score = score < 0 ? score * row.repetition : score / row.repetition;
    if (s.answered[i]) score -= row.presence + row.frequency * s.answered[i];
    s.score[i] = score;
  });
}

// weight = e^score.
__device__ void exp_scores(int64_t vocab, RowScratch s) {
  each(vocab, [&](int64_t i) { s.weight[i] = exp(s.score[i]); });
}

template <typename Value>
__device__ double sum_over(int64_t count, Value value) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += value(i);
  return reduce_sum(sum);
}

__device__ double best_score(int64_t vocab, RowScratch s) {
  double best = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) best = s.score[i] > best ? s.score[i] : best;
  return reduce_max(best);
}

// Excludes the scores below the k-th highest.
__device__ void keep_top_k(int64_t k, int64_t vocab, RowScratch s) {
  if (k < 1 || k >= vocab) return;
  auto rank = [&](int64_t i) { return rank_of(s.score[i]); };
  uint64_t min_rank = rank_threshold(vocab, (double)k, rank, [](int64_t) { return 1.0; });
  each(vocab, [&](int64_t i) {
    if (rank(i) < min_rank) s.score[i] = -INFINITY;
  });
}

// Top-p: excludes the least likely tokens that together have at most 1 - share of the probability. Of equal scores the
// first in the vocabulary is excluded first.
__device__ void keep_top_p(double share, int64_t vocab, RowScratch s) {
  auto rank = [&](int64_t i) { return rank_of(s.score[i]); };
  double need = share * sum_over(vocab, [&](int64_t i) { return s.weight[i]; });
  uint64_t edge = rank_threshold(vocab, need, rank, [&](int64_t i) { return s.weight[i]; });
  double above = sum_over(vocab, [&](int64_t i) { return rank(i) > edge ? s.weight[i] : 0.0; });
  double ties = sum_over(vocab, [&](int64_t i) { return rank(i) == edge ? 1.0 : 0.0; });
  double mass = sum_over(vocab, [&](int64_t i) { return rank(i) == edge ? s.weight[i] : 0.0; });
  double kept = mass > 0.0 ? ceil((need - above) / (mass / ties)) : ties;
  auto of_edge = [&](int64_t i) { return rank(i) == edge ? 1.0 : 0.0; };
  uint64_t first = 0;
  if (kept < ties)
    first = rank_threshold(vocab, kept < 1.0 ? 1.0 : kept, [](int64_t i) { return (uint64_t)i; }, of_edge);
  each(vocab, [&](int64_t i) {
    if (rank(i) < edge || (rank(i) == edge && (uint64_t)i < first)) s.score[i] = -INFINITY;
  });
}

// The first token at which the cumulative weight exceeds draw * total. Each thread sums a range of tokens.
__device__ int32_t draw_index(double draw, int64_t vocab, RowScratch s) {
  __shared__ double sums[THREADS];
  __shared__ int owner;
  __shared__ double before, target;
  __shared__ int32_t token;
  int64_t range = (vocab + THREADS - 1) / THREADS, me = threadIdx.x;
  int64_t from = me * range, to = from + range < vocab ? from + range : vocab;
  double sum = 0.0;
  for (int64_t i = from; i < to; ++i) sum += s.weight[i];
  sums[me] = sum;
  __syncthreads();
  if (me == 0) {
    double all = 0.0, cumulative = 0.0;
    for (int t = 0; t < THREADS; ++t) all += sums[t];
    target = draw * all;
    owner = -1;
    for (int t = 0; t < THREADS; ++t) {
      if (sums[t] > 0.0) {
        owner = t;  // if rounding leaves nothing above the draw, the last possible token
        before = cumulative;
      }
      cumulative += sums[t];
      if (cumulative > target) break;
    }
  }
  __syncthreads();
  if (me == owner) {
    double cumulative = before;
    for (int64_t i = from; i < to; ++i) {
      if (s.weight[i] > 0.0) token = (int32_t)i;
      cumulative += s.weight[i];
      if (cumulative > target) break;
    }
  }
  __syncthreads();
  int32_t found = token;
  __syncthreads();
  return found;
}

__device__ int32_t draw_token(const SamplerRow& row, int64_t vocab, double max_logit, RowScratch s) {
  // The highest score is subtracted first, so that it stays finite however low the temperature is.
  each(vocab, [&](int64_t i) { s.score[i] = (s.score[i] - max_logit) / row.temperature; });
  keep_top_k(row.top_k, vocab, s);
  exp_scores(vocab, s);
  if (row.top_p < 1.0) keep_top_p(row.top_p, vocab, s);
  double min_score = row.min_p > 0.0 ? log(row.min_p) : -INFINITY;
  each(vocab, [&](int64_t i) {
    if (s.score[i] < min_score) s.score[i] = -INFINITY;
  });
  exp_scores(vocab, s);
  return draw_index(row.draw, vocab, s);
}

// The first token with the highest score.
__device__ int32_t arg_max(int64_t vocab, double max_logit, RowScratch s) {
  int64_t first = vocab;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS)
    if (s.score[i] == max_logit && i < first) first = i;
  return (int32_t)reduce(first, [](int64_t a, int64_t b) { return a < b ? a : b; });
}

__device__ int out_of_range(const int32_t* tokens, int64_t count, int64_t vocab) {
  int found = 0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) found |= tokens[i] < 0 || tokens[i] >= vocab;
  return reduce_max(found);
}

__device__ SampleStatus choose(const SamplerRow& row, const float* logits, int64_t vocab, RowScratch s, bool logprobs,
                               int32_t* token, double* logprob) {
  if (out_of_range(row.context, row.context_count, vocab) || out_of_range(row.excluded, row.excluded_count, vocab))
    return TOKEN_OUT_OF_RANGE;
  int bad = 0;
  each(vocab, [&](int64_t i) {
    s.score[i] = logits[i];
    bad |= !(logits[i] < INFINITY);
  });
  double max_logit = best_score(vocab, s);
  if (reduce_max(bad) || max_logit == -INFINITY) return NOT_FINITE;
  apply_penalties(row, vocab, s);
  each(row.excluded_count, [&](int64_t i) { s.score[row.excluded[i]] = -INFINITY; });
  double best = best_score(vocab, s);
  if (best == -INFINITY) return ALL_EXCLUDED;
  if (row.sample && best == INFINITY) return NOT_FINITE;
  *token = row.sample ? draw_token(row, vocab, best, s) : arg_max(vocab, best, s);
  if (logprobs)
    *logprob = (logits[*token] - max_logit) -
               log(sum_over(vocab, [&](int64_t i) { return exp((double)logits[i] - max_logit); }));
  return CHOSEN;
}

__global__ void __launch_bounds__(THREADS)
    choose_rows(const float* logits, SamplerRow* rows, int64_t vocab, bool logprobs, char* buffer, int64_t bytes) {
  SamplerRow& own = rows[blockIdx.x];
  SamplerRow row = own;
  int32_t token = -1;
  double logprob = 0.0;
  RowScratch s(buffer + blockIdx.x * bytes, vocab);
  SampleStatus status = choose(row, logits + blockIdx.x * vocab, vocab, s, logprobs, &token, &logprob);
  if (threadIdx.x == 0) {
    own.status = status;
    own.token = token;
    own.logprob = logprob;
  }
}

}  // namespace

// sizeof(SamplerRow); the loader compares it with its ctypes mirror.
EXPORT_CUDA int64_t llmctl_ops_cuda_row_size() { return sizeof(SamplerRow); }

// Bytes of the scratch buffer that `choose` needs for a number of rows.
EXPORT_CUDA int64_t llmctl_ops_cuda_choose_bytes(int64_t rows, int64_t vocab) { return rows * bytes_of_row(vocab); }

// Chooses a token for each row of logits [rows, vocab]. All arrays are on the GPU, also those that the sampler rows
// point to. Returns a CUDA error code.
EXPORT_CUDA int llmctl_ops_cuda_choose(const float* logits, void* sampler_rows, int64_t rows, int64_t vocab,
                                       int32_t logprobs, void* buffer, void* stream) {
  if (!rows) return 0;
  LAUNCH(choose_rows, (unsigned)rows, THREADS, stream, logits, (SamplerRow*)sampler_rows, vocab, logprobs != 0,
         (char*)buffer, bytes_of_row(vocab));
  return LAUNCHED();
}
