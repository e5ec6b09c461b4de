// The sampler: penalties, excluded tokens, temperature, top-k, top-p, min-p, and a draw; in double precision.

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>

#include <algorithm>

#include "parallel.h"
#include "sampler_row.h"
#include "simd.h"
#include "simd_double.h"

namespace {

const int64_t BUCKETS = 1024;
const double BUCKET_WIDTH = 1.0 / 16;  // in scores
const double MIN_SPREAD = 1e-290;      // a smaller range of scores is not divided into buckets
const int64_t MAX_SORTED = 128;        // tokens that are sorted at once

struct Ranked {
  double score;
  int32_t token;
};

// Scratch of one thread.
struct SamplerScratch {
  double *score, *weight;  // [V], padded to whole vectors
  Ranked* heap;            // [V]
  int32_t* count;          // [V], 0 between rows

  static int64_t padded(int64_t vocab) { return (vocab + 15) / 16 * 16; }
  static int64_t bytes(int64_t vocab) {
    return padded(vocab) * (int64_t)(2 * sizeof(double) + sizeof(Ranked) + sizeof(int32_t));
  }
  SamplerScratch(char* memory, int64_t vocab) {
    score = (double*)memory;
    weight = score + padded(vocab);
    heap = (Ranked*)(weight + padded(vocab));
    count = (int32_t*)(heap + padded(vocab));
  }
};

// The largest logit; NaN if any is NaN.
INLINE float max_logit(const float* logits, int64_t vocab) {
  Vec max = broadcast(-INFINITY), nan = {};
  for_vectors(vocab, [&](int64_t i, int64_t n) {
    Vec x = n == WIDTH ? load(logits + i) : load_partial(logits + i, n, -INFINITY);
    max = vec_max(max, x);
    nan = x == x ? nan : broadcast(1.0f);
  });
  return reduce_sum(nan) > 0.0f ? NAN : reduce_max(max);
}

INLINE int32_t first_index(const float* logits, int64_t vocab, float value) {
  for (int64_t i = 0; i < vocab; ++i)
    if (logits[i] == value) return (int32_t)i;
  return -1;
}

// log(sum(exp(logit - max))).
INLINE double log_sum_exp_double(const float* logits, int64_t vocab, float max) {
  Doubles total = {};
  const int64_t whole = vocab / DOUBLES * DOUBLES;
  for (int64_t i = 0; i < whole; i += DOUBLES)
    total += exp_below(__builtin_convertvector(*(const UnalignedHalf*)(logits + i), Doubles) - (double)max);
  if (whole < vocab) {
    Doubles x = Doubles{} - 1000.0;
    for (int lane = 0; whole + lane < vocab; ++lane) x[lane] = (double)logits[whole + lane] - (double)max;
    total += exp_below(x);
  }
  double all = 0.0;
  for (int lane = 0; lane < DOUBLES; ++lane) all += total[lane];
  return log(all);
}

// Applies penalties and excludes tokens; `count` is zero before and after.
inline void apply_penalties(const SamplerRow& row, SamplerScratch& s) {
  const int32_t *answer = row.context + row.context_count - row.generated, *end = row.context + row.context_count;
  if (row.repetition != 1.0) {
    for (const int32_t* id = row.context; id < end; ++id)
      if (s.count[*id]++ == 0)
        s.score[*id] = s.score[*id] < 0 ? s.score[*id] * row.repetition : s.score[*id] / row.repetition;
    for (const int32_t* id = row.context; id < end; ++id) s.count[*id] = 0;
  }
  if (row.presence != 0.0 || row.frequency != 0.0) {
    for (const int32_t* id = answer; id < end; ++id) ++s.count[*id];
    for (const int32_t* id = answer; id < end; ++id) {
      if (s.count[*id]) s.score[*id] -= row.presence + row.frequency * s.count[*id];
      s.count[*id] = 0;
    }
  }
  for (int64_t i = 0; i < row.excluded_count; ++i) s.score[row.excluded[i]] = -INFINITY;
}

// Excludes the scores below the k-th highest.
inline void keep_top_k(int64_t k, int64_t vocab, SamplerScratch& s) {
  if (k < 1 || k >= vocab) return;
  auto above = [](const Ranked& a, const Ranked& b) { return a.score > b.score; };
  for (int64_t i = 0; i < vocab; ++i) {
    if (i < k) {
      s.heap[i] = Ranked{s.score[i], (int32_t)i};
      if (i + 1 == k) std::make_heap(s.heap, s.heap + k, above);
    } else if (s.score[i] > s.heap[0].score) {
      std::pop_heap(s.heap, s.heap + k, above);
      s.heap[k - 1] = Ranked{s.score[i], (int32_t)i};
      std::push_heap(s.heap, s.heap + k, above);
    }
  }
  double min_score = s.heap[0].score;
  for (int64_t i = 0; i < vocab; ++i)
    if (s.score[i] < min_score) s.score[i] = -INFINITY;
}

INLINE int64_t bucket_of(double below) {
  return below < BUCKETS * BUCKET_WIDTH ? (int64_t)(below / BUCKET_WIDTH) : BUCKETS - 1;
}

// The first bucket at which the cumulative mass reaches `needed`; the mass of the buckets before it is added to
// `above`.
inline int64_t find_edge(const double* mass, double needed, double& above) {
  int64_t edge = 0;
  while (edge + 1 < BUCKETS && above + mass[edge] < needed) above += mass[edge++];
  return edge;
}

// Refines the edge of the nucleus among the `count` tokens in the heap, which are in vocabulary order: the tokens of
// the edge bucket stay in the heap and are counted, those above are kept, those below excluded. Every call separates at
// least two different scores.
inline int64_t refine_edge(double needed, int64_t count, double high, double low, double& above, SamplerScratch& s) {
  double mass[BUCKETS] = {}, scale = (BUCKETS - 1) / (high - low);
  auto bucket_in = [&](double score) { return std::min((int64_t)((high - score) * scale), BUCKETS - 1); };
  for (int64_t i = 0; i < count; ++i) mass[bucket_in(s.heap[i].score)] += s.weight[s.heap[i].token];
  int64_t edge = find_edge(mass, needed, above), kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    Ranked ranked = s.heap[i];
    int64_t bucket = bucket_in(ranked.score);
    s.score[ranked.token] = bucket > edge ? -INFINITY : ranked.score;
    s.heap[kept] = ranked;  // branch-free: which side a token is on is unpredictable
    kept += bucket == edge;
  }
  return kept;
}

// Top-p: excludes the least likely tokens that together have at most 1 - share of the probability; `total` is the sum
// of all weights. Of equal scores the first in the vocabulary is excluded first.
inline void keep_top_p(double share, int64_t vocab, double max, double total, SamplerScratch& s) {
  double mass[BUCKETS] = {}, above = 0.0, needed = share * total;
  for (int64_t i = 0; i < vocab; ++i)
    if (s.score[i] != -INFINITY) mass[bucket_of(max - s.score[i])] += s.weight[i];
  int64_t edge = find_edge(mass, needed, above), count = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    Ranked ranked = {s.score[i], (int32_t)i};
    int64_t bucket = bucket_of(max - ranked.score);
    s.score[i] = bucket > edge ? -INFINITY : ranked.score;
    s.heap[count] = ranked;
    count += (bucket == edge) & (ranked.score != -INFINITY);
  }
  double high = INFINITY, low = -INFINITY;
  while (count > MAX_SORTED) {
    auto ends =
        std::minmax_element(s.heap, s.heap + count, [](const Ranked& a, const Ranked& b) { return a.score < b.score; });
    high = ends.second->score, low = ends.first->score;
    if (high - low < MIN_SPREAD) break;
    count = refine_edge(needed, count, high, low, above, s);
  }
  if (count > MAX_SORTED && high == low)
    std::reverse(s.heap, s.heap + count);
  else
    std::sort(s.heap, s.heap + count, [](const Ranked& a, const Ranked& b) {
      return a.score != b.score ? a.score > b.score : a.token > b.token;
    });
  for (int64_t i = 0; i < count; ++i) {
    if (above >= needed) s.score[s.heap[i].token] = -INFINITY;
    above += s.weight[s.heap[i].token];
  }
}

// weight = e^(score - max).
INLINE void exp_scores(int64_t vocab, double max, SamplerScratch& s) {
  for (int64_t i = vocab; i < SamplerScratch::padded(vocab); ++i) s.score[i] = -INFINITY;
  for (int64_t i = 0; i < vocab; i += DOUBLES)
    *(UnalignedDoubles*)(s.weight + i) = exp_below(*(UnalignedDoubles*)(s.score + i) - max);
}

// The sum of the weights, in vocabulary order.
inline double sum_weights(int64_t vocab, const SamplerScratch& s) {
  double total = 0.0;
  for (int64_t i = 0; i < vocab; ++i) total += s.weight[i];
  return total;
}

// Draws a token: the first at which the cumulative weight exceeds draw * total.
inline SampleStatus draw_token(SamplerRow& row, int64_t vocab, SamplerScratch& s) {
  double max = *std::max_element(s.score, s.score + vocab);
  if (!(max > -INFINITY)) return ALL_EXCLUDED;
  if (!(max < INFINITY)) return NOT_FINITE;
  // The highest score is subtracted first, so that it stays finite however low the temperature is.
  for (int64_t i = 0; i < vocab; ++i) s.score[i] = (s.score[i] - max) / row.temperature;
  max = 0.0;
  keep_top_k(row.top_k, vocab, s);
  exp_scores(vocab, max, s);
  double total = sum_weights(vocab, s);
  if (row.top_p < 1.0) keep_top_p(row.top_p, vocab, max, total, s);
  if (row.top_p < 1.0 || row.min_p > 0.0) {
    const double min_score = row.min_p > 0.0 ? max + log(row.min_p) : -DBL_MAX;
    for (int64_t i = 0; i < vocab; ++i) s.weight[i] = s.score[i] < min_score ? 0.0 : s.weight[i];
    total = sum_weights(vocab, s);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (s.weight[i] > 0.0)
      row.token = (int32_t)i;  // if rounding leaves nothing above the draw, the last possible token
    sum += s.weight[i];
    if (sum > row.draw * total) break;
  }
  return CHOSEN;
}

inline SampleStatus choose_token(SamplerRow& row, const float* logits, int64_t vocab, SamplerScratch s, bool logprobs) {
  for (int64_t i = 0; i < row.context_count; ++i)
    if (row.context[i] < 0 || row.context[i] >= vocab) return TOKEN_OUT_OF_RANGE;
  for (int64_t i = 0; i < row.excluded_count; ++i)
    if (row.excluded[i] < 0 || row.excluded[i] >= vocab) return TOKEN_OUT_OF_RANGE;
  float max = max_logit(logits, vocab);
  if (!(max > -INFINITY && max < INFINITY)) return NOT_FINITE;
  bool penalized = row.repetition != 1.0 || row.presence != 0.0 || row.frequency != 0.0;
  if (!row.sample && !penalized && !row.excluded_count) {
    row.token = first_index(logits, vocab, max);
  } else {
    for (int64_t i = 0; i < vocab; ++i) s.score[i] = logits[i];
    apply_penalties(row, s);
    if (row.sample) {
      SampleStatus result = draw_token(row, vocab, s);
      if (result) return result;
    } else {
      const double* best = std::max_element(s.score, s.score + vocab);
      if (!(*best > -INFINITY)) return ALL_EXCLUDED;
      row.token = (int32_t)(best - s.score);
    }
  }
  if (logprobs) row.logprob = ((double)logits[row.token] - (double)max) - log_sum_exp_double(logits, vocab, max);
  return CHOSEN;
}

}  // namespace

// Bytes of the scratch buffer that `choose` needs; it must be zero-filled.
EXPORT int NAME(choose_bytes)(int64_t vocab, int64_t* bytes) {
  *bytes = threads_for(INT64_MAX) * SamplerScratch::bytes(vocab);
  return 0;
}

// Chooses a token for each row of logits [rows, vocab]; every SamplerRow gets its own status. `bytes` is the size of
// `buffer`.
EXPORT int NAME(choose)(const float* logits, void* sampler_rows, int64_t rows, int64_t vocab, int32_t logprobs,
                        void* buffer, int64_t bytes) {
  int64_t each = SamplerScratch::bytes(vocab);
  auto sample = [&](int64_t i, int thread) {
    SamplerRow& row = ((SamplerRow*)sampler_rows)[i];
    row.status =
        choose_token(row, logits + i * vocab, vocab, SamplerScratch((char*)buffer + thread * each, vocab), logprobs);
  };
  // The runtime may use more threads than when the buffer was sized.
  if (rows * vocab < GRAIN || bytes < threads_for(rows) * each)
    for (int64_t row = 0; row < rows; ++row) sample(row, 0);
  else
    parallel(rows, sample);
  return 0;
}
