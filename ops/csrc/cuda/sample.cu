// Choosing a token from logits on a GPU: penalties, excluded tokens, temperature, top-k, top-p, min-p, and a draw.
//
// A block of threads takes a row. All sums are in double precision and in a fixed order, so that a row's token does not depend
// on what else is chosen. What each step keeps is what csrc/cpu/sample.h keeps.

#include "../choice.h"
#include "launch.h"

namespace {

const int BITS = 4, PIVOTS = (1 << BITS) - 1;

// Buffers of a row.
struct Draft {
  double *score, *weight;  // [V]
  int32_t *seen, *said;    // [V]: how often a token stands in the context, in the answer

  __device__ Draft(char* memory, int64_t vocab) {
    score = (double*)memory;
    weight = score + vocab;
    seen = (int32_t*)(weight + vocab);
    said = seen + vocab;
  }
};

int64_t bytes_of_row(int64_t vocab) { return vocab * (int64_t)(2 * sizeof(double) + 2 * sizeof(int32_t)); }

template <typename Each>
__device__ void each(int64_t count, Each body) {
  for (int64_t i = threadIdx.x; i < count; i += THREADS) body(i);
  __syncthreads();
}

// A number whose order is that of the scores.
__device__ uint64_t rank_of(double score) {
  union { double number; uint64_t bits; } as = {score};
  return as.bits >> 63 ? ~as.bits : as.bits | (uint64_t)1 << 63;
}

// The largest bound such that the values of all whose rank reaches it sum to `need` or more; 0 where no bound does.
template <typename Rank, typename Value>
__device__ uint64_t bound_of(int64_t count, double need, Rank rank, Value value) {
  uint64_t bound = 0;
  for (int shift = 64 - BITS; shift >= 0; shift -= BITS) {
    double above[PIVOTS] = {};
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
      uint64_t mine = rank(i);
      if (mine < bound) continue;
      uint64_t step = (mine - bound) >> shift;
      double worth = value(i);
      for (int p = 0; p < PIVOTS; ++p)
        if (step > (uint64_t)p) above[p] += worth;
    }
    int steps = 0;
    for (int p = 0; p < PIVOTS; ++p)
      if (total_of(above[p]) >= need) steps = p + 1;
    bound += (uint64_t)steps << shift;
  }
  return bound;
}

__device__ void penalise(const Choice& c, int64_t vocab, Draft d) {
  each(vocab, [&](int64_t i) { d.seen[i] = d.said[i] = 0; });
  each(c.context_count, [&](int64_t i) {
    atomicAdd(d.seen + c.context[i], 1);
    if (i >= c.context_count - c.generated) atomicAdd(d.said + c.context[i], 1);
  });
  each(vocab, [&](int64_t i) {
    double s = d.score[i];
    if (d.seen[i] && c.repetition != 1.0) s = s < 0 ? s * c.repetition : s / c.repetition;
    if (d.said[i]) s -= c.presence + c.frequency * d.said[i];
    d.score[i] = s;
  });
}

// weight = e^score.
__device__ void weigh(int64_t vocab, Draft d) {
  each(vocab, [&](int64_t i) { d.weight[i] = exp(d.score[i]); });
}

template <typename Value>
__device__ double sum_over(int64_t count, Value value) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += value(i);
  return total_of(sum);
}

__device__ double best_score(int64_t vocab, Draft d) {
  double best = -INFINITY;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS) best = d.score[i] > best ? d.score[i] : best;
  return most_of(best);
}

// Excludes what is below the k-th highest score.
__device__ void keep_best(int64_t k, int64_t vocab, Draft d) {
  if (k < 1 || k >= vocab) return;
  auto rank = [&](int64_t i) { return rank_of(d.score[i]); };
  uint64_t least = bound_of(vocab, (double)k, rank, [](int64_t) { return 1.0; });
  each(vocab, [&](int64_t i) {
    if (rank(i) < least) d.score[i] = -INFINITY;
  });
}

// Excludes the least likely tokens that together have at most 1 - share of the probability; of two alike the first goes first.
__device__ void keep_nucleus(double share, int64_t vocab, Draft d) {
  auto rank = [&](int64_t i) { return rank_of(d.score[i]); };
  double need = share * sum_over(vocab, [&](int64_t i) { return d.weight[i]; });
  uint64_t edge = bound_of(vocab, need, rank, [&](int64_t i) { return d.weight[i]; });
  double above = sum_over(vocab, [&](int64_t i) { return rank(i) > edge ? d.weight[i] : 0.0; });
  double alike = sum_over(vocab, [&](int64_t i) { return rank(i) == edge ? 1.0 : 0.0; });
  double mass = sum_over(vocab, [&](int64_t i) { return rank(i) == edge ? d.weight[i] : 0.0; });
  double kept = mass > 0.0 ? ceil((need - above) / (mass / alike)) : alike;
  auto of_edge = [&](int64_t i) { return rank(i) == edge ? 1.0 : 0.0; };
  uint64_t first = 0;
  if (kept < alike) first = bound_of(vocab, kept < 1.0 ? 1.0 : kept, [](int64_t i) { return (uint64_t)i; }, of_edge);
  each(vocab, [&](int64_t i) {
    if (rank(i) < edge || (rank(i) == edge && (uint64_t)i < first)) d.score[i] = -INFINITY;
  });
}

// The first token whose weights up to and with it exceed the draw's part of all. Each thread sums a stretch of tokens.
__device__ int32_t drawn(double draw, int64_t vocab, Draft d) {
  __shared__ double sums[THREADS];
  __shared__ int owner;
  __shared__ double before, target;
  __shared__ int32_t token;
  int64_t stretch = (vocab + THREADS - 1) / THREADS, me = threadIdx.x;
  int64_t from = me * stretch, to = from + stretch < vocab ? from + stretch : vocab;
  double sum = 0.0;
  for (int64_t i = from; i < to; ++i) sum += d.weight[i];
  sums[me] = sum;
  __syncthreads();
  if (me == 0) {
    double all = 0.0, passed = 0.0;
    for (int t = 0; t < THREADS; ++t) all += sums[t];
    target = draw * all;
    owner = -1;
    for (int t = 0; t < THREADS; ++t) {
      if (sums[t] > 0.0) {
        owner = t;  // the last one stands where rounding leaves nothing above the draw
        before = passed;
      }
      passed += sums[t];
      if (passed > target) break;
    }
  }
  __syncthreads();
  if (me == owner) {
    double passed = before;
    for (int64_t i = from; i < to; ++i) {
      if (d.weight[i] > 0.0) token = (int32_t)i;
      passed += d.weight[i];
      if (passed > target) break;
    }
  }
  __syncthreads();
  int32_t found = token;
  __syncthreads();
  return found;
}

__device__ int32_t draw_token(const Choice& c, int64_t vocab, double most, Draft d) {
  // However low the temperature is, the highest score stays a number.
  each(vocab, [&](int64_t i) { d.score[i] = (d.score[i] - most) / c.temperature; });
  keep_best(c.top_k, vocab, d);
  weigh(vocab, d);
  if (c.top_p < 1.0) keep_nucleus(c.top_p, vocab, d);
  double least = c.min_p > 0.0 ? log(c.min_p) : -INFINITY;
  each(vocab, [&](int64_t i) {
    if (d.score[i] < least) d.score[i] = -INFINITY;
  });
  weigh(vocab, d);
  return drawn(c.draw, vocab, d);
}

// The first token with the highest score.
__device__ int32_t likeliest(int64_t vocab, double most, Draft d) {
  int64_t first = vocab;
  for (int64_t i = threadIdx.x; i < vocab; i += THREADS)
    if (d.score[i] == most && i < first) first = i;
  return (int32_t)joined(first, [](int64_t a, int64_t b) { return a < b ? a : b; });
}

__device__ int strangers(const int32_t* tokens, int64_t count, int64_t vocab) {
  int found = 0;
  for (int64_t i = threadIdx.x; i < count; i += THREADS) found |= tokens[i] < 0 || tokens[i] >= vocab;
  return most_of(found);
}

__device__ Chosen choose(const Choice& c, const float* logits, int64_t vocab, Draft d, bool scored, int32_t* token,
                         double* logprob) {
  if (strangers(c.context, c.context_count, vocab) || strangers(c.ends, c.end_count, vocab)) return NO_SUCH_TOKEN;
  int broken = 0;
  each(vocab, [&](int64_t i) {
    d.score[i] = logits[i];
    broken |= !(logits[i] < INFINITY);
  });
  double most = best_score(vocab, d);
  if (most_of(broken) || most == -INFINITY) return NO_NUMBERS;
  penalise(c, vocab, d);
  each(c.end_count, [&](int64_t i) { d.score[c.ends[i]] = -INFINITY; });
  double best = best_score(vocab, d);
  if (best == -INFINITY) return NOTHING_LEFT;
  if (c.sample && best == INFINITY) return NO_NUMBERS;
  *token = c.sample ? draw_token(c, vocab, best, d) : likeliest(vocab, best, d);
  if (scored)
    *logprob = (logits[*token] - most) - log(sum_over(vocab, [&](int64_t i) { return exp((double)logits[i] - most); }));
  return CHOSEN;
}

__global__ void __launch_bounds__(THREADS) choose_rows(const float* logits, Choice* choices, int64_t vocab, bool scored, char* buffer, int64_t bytes) {
  Choice& mine = choices[blockIdx.x];
  Choice c = mine;
  int32_t token = -1;
  double logprob = 0.0;
  Draft d(buffer + blockIdx.x * bytes, vocab);
  Chosen status = choose(c, logits + blockIdx.x * vocab, vocab, d, scored, &token, &logprob);
  if (threadIdx.x == 0) {
    mine.status = status;
    mine.token = token;
    mine.logprob = logprob;
  }
}

}  // namespace

// Bytes of the buffer that `choose` needs for so many rows.
EXPORT_CUDA int64_t llmctl_ops_cuda_choose_bytes(int64_t rows, int64_t vocab) { return rows * bytes_of_row(vocab); }

// Chooses for each row of logits [rows, vocab]; everything lies on the GPU, and so do the arrays that the choices point to.
EXPORT_CUDA int llmctl_ops_cuda_choose(const float* logits, void* choices, int64_t rows, int64_t vocab, int32_t scored,
                                       void* buffer, void* stream) {
  if (!rows) return 0;
  LAUNCH(choose_rows, (unsigned)rows, THREADS, stream, logits, (Choice*)choices, vocab, scored != 0, (char*)buffer,
         bytes_of_row(vocab));
  return LAUNCHED();
}
