// Attention of one query a row, as each step of generation asks for it: bound by reading keys and values once.
//
// A key-value head and all query heads that read it are one task. With fewer tasks than threads the keys are cut into
// shares, whose results are joined by their maxima and sums.

#pragma once

#include "tiles.h"

namespace {

const int SPAN = 64;  // keys of a tile

// What a share of the keys gives for a group of query heads: for each head the scores of a tile, the mixed values, the
// maximum of its scores and the sum of their exponentials.
struct Share {
  float *scores, *mixed, *most, *total;

  static int64_t size(int64_t heads, int64_t width) { return heads * (SPAN + width + 2) / 16 * 16 + 16; }
  Share(float* memory, int64_t heads, int64_t width)
      : scores(memory), mixed(scores + heads * SPAN), most(mixed + heads * width), total(most + heads) {}
};

INLINE float dot(const float* a, const float* b, int64_t width) {
  Vec total = {};
  for (int64_t i = 0; i < width; i += WIDTH) total += load(a + i) * load(b + i);
  return sum(total);
}

// Scores of a group's heads at a tile of keys, in units of log 2; rows of SPAN, UNSEEN up to its end.
INLINE void single_scores(const Attention& a, const Head& h, int64_t b, int64_t n, int64_t group, int64_t key, int keys,
                          Share& share) {
  const float* q = a.q + b * h.q_row + n * a.width;
  for (int j = 0; j < SPAN; ++j) {
    bool seen = j < keys && h.first[key + j] <= a.past && a.past < h.last[key + j];
    for (int64_t g = 0; g < group; ++g) {
      float score = UNSEEN;
      if (seen) {
        score = dot(q + g * a.width, h.k + (key + j) * h.k_row, a.width) * a.scale;
        if (h.places) score += a.slopes[n + g] * h.places[key + j];
        score *= LOG2E;
      }
      share.scores[g * SPAN + j] = score;
    }
  }
}

// Turns the scores of a head into weights under the new maximum; scales what was summed under the old one.
INLINE void single_softmax(float* scores, float* mixed, float& most, float& total, int64_t width) {
  Vec peak = set(most);
  for (int j = 0; j < SPAN; j += WIDTH) peak = larger(peak, load(scores + j));
  float top = largest(peak), shrink = (exp2(set(most - top)))[0];
  Vec added = {};
  for (int j = 0; j < SPAN; j += WIDTH) {
    Vec s = load(scores + j), p = exp2(s - set(top));
    p = s <= set(0.5f * UNSEEN) ? Vec{} : p;
    added += p;
    store(scores + j, p);
  }
  if (shrink != 1.0f)
    for (int64_t i = 0; i < width; i += WIDTH) store(mixed + i, load(mixed + i) * set(shrink));
  most = top;
  total = total * shrink + sum(added);
}

INLINE void single_share(const Attention& a, int64_t b, int64_t k, int64_t begin, int64_t end, Share share) {
  int64_t group = a.heads / a.groups, n = k * group;
  Head h = head_of(a, b, n);
  memset(share.mixed, 0, (size_t)(group * a.width) * sizeof(float));
  for (int64_t g = 0; g < group; ++g) share.most[g] = UNSEEN, share.total[g] = 0.0f;
  Tile tile;
  for (int64_t key = begin; key < end; key += SPAN) {
    int keys = (int)(end - key < SPAN ? end - key : SPAN);
    if (!find_tile(h, end, key, a.past, 1, &tile, SPAN)) continue;
    single_scores(a, h, b, n, group, key, keys, share);
    for (int64_t g = 0; g < group; ++g)
      single_softmax(share.scores + g * SPAN, share.mixed + g * a.width, share.most[g], share.total[g], a.width);
    multiply(true, (int)group, (int)a.width, keys, share.scores, SPAN, 1, h.v + key * h.k_row, h.k_row, share.mixed,
             a.width);
  }
}

// Joins the shares of a group's head into its output.
INLINE void single_join(float* memory, int64_t step, int64_t shares, int64_t g, int64_t group, int64_t width,
                        float* out) {
  float most = UNSEEN, total = 0.0f;
  for (int64_t s = 0; s < shares; ++s) {
    float other = Share(memory + s * step, group, width).most[g];
    most = most < other || other != other ? other : most;
  }
  memset(out, 0, (size_t)width * sizeof(float));
  for (int64_t s = 0; s < shares; ++s) {
    Share share(memory + s * step, group, width);
    float factor = (exp2(set(share.most[g] - most)))[0];
    total += share.total[g] * factor;
    for (int64_t i = 0; i < width; i += WIDTH)
      store(out + i, load(out + i) + set(factor) * load(share.mixed + g * width + i));
  }
  Vec scale = set(total == 0.0f ? 0.0f : 1.0f / total);
  for (int64_t i = 0; i < width; i += WIDTH) store(out + i, load(out + i) * scale);
}

// For one query a row and a width that is a multiple of WIDTH.
inline int forward_single(const Attention& a, float* out) {
  int64_t owners = a.batch * a.groups, group = a.heads / a.groups, step = Share::size(group, a.width);
  int64_t threads = threads_for(owners * ((a.keys + 4 * SPAN - 1) / (4 * SPAN)));
  int64_t shares = owners == 0 || owners >= threads ? 1 : (threads + owners - 1) / owners;
  int64_t part = ((a.keys + shares - 1) / shares + SPAN - 1) / SPAN * SPAN;
  float* memory = aligned<float>(owners * shares * step);
  if (!memory) return 1;
  auto work = [&](int64_t task, int) {
    int64_t owner = task / shares, begin = task % shares * part;
    int64_t end = begin + part < a.keys ? begin + part : a.keys;
    single_share(a, owner / a.groups, owner % a.groups, begin, end, Share(memory + task * step, group, a.width));
  };
  // Waking other threads costs more than a short context does.
  if (a.batch * a.keys * a.heads * a.width < PIECE)
    for (int64_t task = 0; task < owners * shares; ++task) work(task, 0);
  else
    parallel(owners * shares, work);
  for (int64_t owner = 0; owner < owners; ++owner)
    for (int64_t g = 0; g < group; ++g)
      single_join(memory + owner * shares * step, step, shares, g, group, a.width,
                  out + (owner * group + g) * a.width);
  free(memory);
  return 0;
}

}  // namespace
