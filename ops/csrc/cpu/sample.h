// Choosing a token from logits: penalties, least length, temperature, top-k, top-p, min-p, and a draw; in double precision.

#pragma once

#include <algorithm>
#include <float.h>
#include <math.h>

#include "../choice.h"
#include "doubles.h"
#include "memory.h"
#include "parallel.h"

namespace {

const int64_t BUCKETS = 1024;
const double NARROWEST = 1.0 / 16;  // of a bucket of scores
const double NO_SPREAD = 1e-290;    // scores as near to each other as that are not divided into buckets
const int64_t FEW = 128;            // tokens that are sorted

struct Ranked {
  double score;
  int32_t token;
};

// Buffers of one thread, for a vocabulary.
struct Draft {
  double *score, *weight;  // [V], filled up to whole vectors
  Ranked* heap;            // [V]
  int32_t* count;          // [V], 0 between rows

  static int64_t room(int64_t vocab) { return (vocab + 15) / 16 * 16; }
  static int64_t bytes(int64_t vocab) { return room(vocab) * (int64_t)(2 * sizeof(double) + sizeof(Ranked) + sizeof(int32_t)); }
  Draft(char* memory, int64_t vocab) {
    score = (double*)memory;
    weight = score + room(vocab);
    heap = (Ranked*)(weight + room(vocab));
    count = (int32_t*)(heap + room(vocab));
  }
};

// The largest logit, or what is no number where one is none.
INLINE float highest(const float* logits, int64_t vocab) {
  Vec most = set(-INFINITY), broken = {};
  vectors(vocab, [&](int64_t i, int64_t n) {
    Vec x = n == WIDTH ? load(logits + i) : load_part(logits + i, n, -INFINITY);
    most = larger(most, x);
    broken = x == x ? broken : set(1.0f);
  });
  return sum(broken) > 0.0f ? NAN : largest(most);
}

INLINE int32_t first_of(const float* logits, int64_t vocab, float value) {
  for (int64_t i = 0; i < vocab; ++i)
    if (logits[i] == value) return (int32_t)i;
  return -1;
}

// Logarithm of the sum of e^(logit - most).
INLINE double log_total(const float* logits, int64_t vocab, float most) {
  Doubles total = {};
  for (int64_t i = 0; i < vocab; i += PAIRED) {
    Doubles x = Doubles{} - 1000.0;
    for (int lane = 0; lane < PAIRED && i + lane < vocab; ++lane) x[lane] = (double)logits[i + lane] - (double)most;
    total += exp_below(x);
  }
  double all = 0.0;
  for (int lane = 0; lane < PAIRED; ++lane) all += total[lane];
  return log(all);
}

// Penalties of what was said, and the tokens that may not come yet; `count` is 0 again afterwards.
inline void penalise(const Choice& c, Draft& d) {
  const int32_t *answer = c.context + c.context_count - c.generated, *end = c.context + c.context_count;
  if (c.repetition != 1.0) {
    for (const int32_t* id = c.context; id < end; ++id)
      if (d.count[*id]++ == 0) d.score[*id] = d.score[*id] < 0 ? d.score[*id] * c.repetition : d.score[*id] / c.repetition;
    for (const int32_t* id = c.context; id < end; ++id) d.count[*id] = 0;
  }
  if (c.presence != 0.0 || c.frequency != 0.0) {
    for (const int32_t* id = answer; id < end; ++id) ++d.count[*id];
    for (const int32_t* id = answer; id < end; ++id) {
      if (d.count[*id]) d.score[*id] -= c.presence + c.frequency * d.count[*id];
      d.count[*id] = 0;
    }
  }
  for (int64_t i = 0; i < c.end_count; ++i) d.score[c.ends[i]] = -INFINITY;
}

// Excludes what is below the k-th highest score.
inline void keep_best(int64_t k, int64_t vocab, Draft& d) {
  if (k < 1 || k >= vocab) return;
  auto above = [](const Ranked& a, const Ranked& b) { return a.score > b.score; };
  for (int64_t i = 0; i < vocab; ++i) {
    if (i < k) {
      d.heap[i] = Ranked{d.score[i], (int32_t)i};
      if (i + 1 == k) std::make_heap(d.heap, d.heap + k, above);
    } else if (d.score[i] > d.heap[0].score) {
      std::pop_heap(d.heap, d.heap + k, above);
      d.heap[k - 1] = Ranked{d.score[i], (int32_t)i};
      std::push_heap(d.heap, d.heap + k, above);
    }
  }
  double least = d.heap[0].score;
  for (int64_t i = 0; i < vocab; ++i)
    if (d.score[i] < least) d.score[i] = -INFINITY;
}

INLINE int64_t bucket_of(double below) {
  return below < BUCKETS * NARROWEST ? (int64_t)(below / NARROWEST) : BUCKETS - 1;
}

// The first bucket at whose end the mass from the highest score on reaches what is needed; `above` becomes the mass before it.
inline int64_t edge_of(const double* mass, double needed, double& above) {
  int64_t edge = 0;
  while (edge + 1 < BUCKETS && above + mass[edge] < needed) above += mass[edge++];
  return edge;
}

// Of `count` tokens in the heap, in the order of the vocabulary, keeps those that the edge of the nucleus may part, and tells
// their number: the others above the edge stay in, those below it are excluded. Each call parts at least two scores.
inline int64_t narrow(double needed, int64_t count, double high, double low, double& above, Draft& d) {
  double mass[BUCKETS] = {}, scale = (BUCKETS - 1) / (high - low);
  auto bucket_in = [&](double score) { return std::min((int64_t)((high - score) * scale), BUCKETS - 1); };
  for (int64_t i = 0; i < count; ++i) mass[bucket_in(d.heap[i].score)] += d.weight[d.heap[i].token];
  int64_t edge = edge_of(mass, needed, above), left = 0;
  for (int64_t i = 0; i < count; ++i) {
    Ranked one = d.heap[i];
    int64_t bucket = bucket_in(one.score);
    d.score[one.token] = bucket > edge ? -INFINITY : one.score;
    d.heap[left] = one;  // no branches: which side a token is on cannot be foreseen
    left += bucket == edge;
  }
  return left;
}

// Excludes the least likely tokens that together have at most 1 - share of the probability, whose weights' sum is `total`; of
// two alike the first goes first.
inline void keep_nucleus(double share, int64_t vocab, double most, double total, Draft& d) {
  double mass[BUCKETS] = {}, above = 0.0, needed = share * total;
  for (int64_t i = 0; i < vocab; ++i)
    if (d.score[i] != -INFINITY) mass[bucket_of(most - d.score[i])] += d.weight[i];
  int64_t edge = edge_of(mass, needed, above), count = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    Ranked one = {d.score[i], (int32_t)i};
    int64_t bucket = bucket_of(most - one.score);
    d.score[i] = bucket > edge ? -INFINITY : one.score;
    d.heap[count] = one;
    count += (bucket == edge) & (one.score != -INFINITY);
  }
  double high = INFINITY, low = -INFINITY;
  while (count > FEW) {
    auto ends = std::minmax_element(d.heap, d.heap + count, [](const Ranked& a, const Ranked& b) { return a.score < b.score; });
    high = ends.second->score, low = ends.first->score;
    if (high - low < NO_SPREAD) break;
    count = narrow(needed, count, high, low, above, d);
  }
  if (count > FEW && high == low)
    std::reverse(d.heap, d.heap + count);
  else
    std::sort(d.heap, d.heap + count, [](const Ranked& a, const Ranked& b) {
      return a.score != b.score ? a.score > b.score : a.token > b.token;
    });
  for (int64_t i = 0; i < count; ++i) {
    if (above >= needed) d.score[d.heap[i].token] = -INFINITY;
    above += d.weight[d.heap[i].token];
  }
}

// weight = e^(score - most).
INLINE void weigh(int64_t vocab, double most, Draft& d) {
  for (int64_t i = vocab; i < Draft::room(vocab); ++i) d.score[i] = -INFINITY;
  for (int64_t i = 0; i < vocab; i += PAIRED)
    *(LooseDoubles*)(d.weight + i) = exp_below(*(LooseDoubles*)(d.score + i) - most);
}

// The sum of the weights in the order of tokens.
inline double sum_weights(int64_t vocab, const Draft& d) {
  double total = 0.0;
  for (int64_t i = 0; i < vocab; ++i) total += d.weight[i];
  return total;
}

// The first token whose weights up to and with it exceed the draw's part of all; NOTHING_LEFT where none is left.
inline Chosen draw_token(Choice& c, int64_t vocab, Draft& d) {
  double most = *std::max_element(d.score, d.score + vocab);
  if (!(most > -INFINITY)) return NOTHING_LEFT;
  if (!(most < INFINITY)) return NO_NUMBERS;
  // However low the temperature is, the highest score stays a number.
  for (int64_t i = 0; i < vocab; ++i) d.score[i] = (d.score[i] - most) / c.temperature;
  most = 0.0;
  keep_best(c.top_k, vocab, d);
  weigh(vocab, most, d);
  double total = sum_weights(vocab, d);
  if (c.top_p < 1.0) keep_nucleus(c.top_p, vocab, most, total, d);
  if (c.top_p < 1.0 || c.min_p > 0.0) {
    const double least = c.min_p > 0.0 ? most + log(c.min_p) : -DBL_MAX;
    for (int64_t i = 0; i < vocab; ++i) d.weight[i] = d.score[i] < least ? 0.0 : d.weight[i];
    total = sum_weights(vocab, d);
  }
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (d.weight[i] > 0.0) c.token = (int32_t)i;  // the last one stands where rounding leaves nothing above the draw
    sum += d.weight[i];
    if (sum > c.draw * total) break;
  }
  return CHOSEN;
}

inline Chosen choose(Choice& c, const float* logits, int64_t vocab, Draft d, bool scored) {
  for (int64_t i = 0; i < c.context_count; ++i)
    if (c.context[i] < 0 || c.context[i] >= vocab) return NO_SUCH_TOKEN;
  for (int64_t i = 0; i < c.end_count; ++i)
    if (c.ends[i] < 0 || c.ends[i] >= vocab) return NO_SUCH_TOKEN;
  float most = highest(logits, vocab);
  if (!(most > -INFINITY && most < INFINITY)) return NO_NUMBERS;
  bool said = c.repetition != 1.0 || c.presence != 0.0 || c.frequency != 0.0;
  if (!c.sample && !said && !c.end_count) {
    c.token = first_of(logits, vocab, most);
  } else {
    for (int64_t i = 0; i < vocab; ++i) d.score[i] = logits[i];
    penalise(c, d);
    if (c.sample) {
      Chosen result = draw_token(c, vocab, d);
      if (result) return result;
    } else {
      const double* best = std::max_element(d.score, d.score + vocab);
      if (!(*best > -INFINITY)) return NOTHING_LEFT;
      c.token = (int32_t)(best - d.score);
    }
  }
  if (scored) c.logprob = ((double)logits[c.token] - (double)most) - log_total(logits, vocab, most);
  return CHOSEN;
}

}  // namespace

// Bytes of the buffer that `choose` needs, and how it begins: filled with zeros.
EXPORT int NAME(choose_bytes)(int64_t vocab, int64_t* bytes) {
  *bytes = threads_for(INT64_MAX) * Draft::bytes(vocab);
  return 0;
}

// Chooses for each row of logits [rows, vocab]; each gets a status of its own. `bytes` is the buffer's size.
EXPORT int NAME(choose)(const float* logits, void* choices, int64_t rows, int64_t vocab, int32_t scored, void* buffer,
                        int64_t bytes) {
  int64_t each = Draft::bytes(vocab);
  auto one = [&](int64_t row, int thread) {
    Choice& choice = ((Choice*)choices)[row];
    choice.status = choose(choice, logits + row * vocab, vocab, Draft((char*)buffer + thread * each, vocab), scored);
  };
  // The runtime may have been given more threads since.
  if (rows * vocab < PIECE || bytes < threads_for(rows) * each)
    for (int64_t row = 0; row < rows; ++row) one(row, 0);
  else
    parallel(rows, one);
  return 0;
}
