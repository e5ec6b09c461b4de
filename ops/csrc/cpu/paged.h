// Attention over the paged cache: tiles of queries x 64 keys, for steps of generation and stretches of prompts alike.
//
// The queries of all heads that read a key-value head are rows of one tile, so that keys and values are read once for them.
// Keys are cut into spans at fixed places; each gives mixed values, a maximum and a sum, which are joined in order. What
// a row gives thus depends on nothing but its own query and keys: not on other rows, nor on how work was divided.

#pragma once

#include "cache.h"
#include "model.h"

namespace {

const int TILE_ROWS = 48, TILE_KEYS = 64;
const int64_t SPAN_KEYS = 512;
const float HIDDEN = -1e30f;  // score of a key that is not seen

// Rows [first, last) of a sequence's queries, counted over its tokens and the query heads of one key-value head.
struct Rows {
  int64_t sequence, token;  // its first token in the step
  int64_t first, last;
  int64_t low, high;  // the first place that any of them sees, and the one after the last
};

// What a span, or several that were joined, gives for a tile.
struct Mixed {
  float *mixed, *most, *total;  // [TILE_ROWS, wide], [TILE_ROWS], [TILE_ROWS]

  static int64_t size(int64_t wide) { return TILE_ROWS * (wide + 2); }
  Mixed(float* memory, int64_t wide) : mixed(memory), most(mixed + TILE_ROWS * wide), total(most + TILE_ROWS) {}
};

// Buffers of one thread.
struct Desk {
  float *query, *score;  // [TILE_ROWS, width], [TILE_ROWS, TILE_KEYS]
  float *sums;           // [TILE_ROWS, WIDTH]: the running sum of exponentials of each row, lane by lane
  float *span, *joined;  // Mixed
  float *slope;          // [TILE_ROWS], in units of log 2
  int32_t *begin, *end, *own;  // [TILE_ROWS]: what each row sees, and its place

  static int64_t size(int64_t wide) {
    return TILE_ROWS * (wide + TILE_KEYS + WIDTH + 4) + 2 * Mixed::size(wide) + 64;
  }
  Desk(float* memory, int64_t wide) {
    query = memory;
    score = query + TILE_ROWS * wide;
    sums = score + TILE_ROWS * TILE_KEYS;
    span = sums + TILE_ROWS * WIDTH;
    joined = span + Mixed::size(wide);
    slope = joined + Mixed::size(wide);
    begin = (int32_t*)(slope + TILE_ROWS);
    end = begin + TILE_ROWS;
    own = end + TILE_ROWS;
  }
};

INLINE Vec widened(const float* p) { return load(p); }
INLINE Vec widened(const int8_t* p) {
#if WIDTH == 16
  Int whole_numbers = (Int)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
#elif WIDTH == 8
  Int whole_numbers = (Int)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  Int whole_numbers = {p[0], p[1], p[2], p[3]};
#endif
  return __builtin_convertvector(whole_numbers, Vec);
}

// Asks for what is read soon: blocks lie apart, and the processor does not see the next one coming. A line of the cache is
// asked for once.
template <class T>
INLINE void expect(const T* p, int64_t step) {
  if (step * (int64_t)sizeof(T) * WIDTH % 64 == 0) __builtin_prefetch(p, 0, 2);
}

// score[R, C vectors] = query[R, width] keys; the values of a block, which come next, lie behind its keys.
template <int R, int C, class T>
INLINE void score_micro(const float* query, int64_t width, const T* const* keys, float* score) {
  Vec total[R][C] = {};
  for (int64_t h = 0; h < width; ++h) {
    Vec right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      right[c] = widened(keys[c] + h * BLOCK);
      expect(keys[c] + (width + h) * BLOCK, h);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec left = set(query[r * width + h]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(score + r * TILE_KEYS + c * WIDTH, total[r][c]);
}

// mixed[R, C vectors] += weight[R, count] values; `next` are the keys that come next.
template <int R, int C, class T>
INLINE void mix_micro(const float* weight, int count, const T* const* values, const T* const* next, int64_t wide,
                      float* mixed) {
  Vec total[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) total[r][c] = load(mixed + r * wide + c * WIDTH);
  for (int j = 0; j < count; ++j) {
    const T *value = values[j / BLOCK] + j % BLOCK * wide, *later = next[j / BLOCK] + j % BLOCK * wide;
    Vec right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      right[c] = widened(value + c * WIDTH);
      expect(later + c * WIDTH, c);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec left = set(weight[r * TILE_KEYS + j]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[r][c] += left * right[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(mixed + r * wide + c * WIDTH, total[r][c]);
}

// As many vectors side by side as there are registers for; how many does not change a sum's order.
#if WIDTH == 16
const int SIDE = 4;
#else
const int SIDE = 2;
#endif

template <int R, class T>
__attribute__((noinline)) void score_strip(const float* query, int64_t width, const T* const* blocks, int count,
                                           float* score) {
  int vectors = (count + WIDTH - 1) / WIDTH;
  const T* keys[TILE_KEYS / WIDTH];
  for (int v = 0; v < vectors; ++v) keys[v] = blocks[v * WIDTH / BLOCK] + v * WIDTH % BLOCK;
  int v = 0;
  for (; v + SIDE <= vectors; v += SIDE) score_micro<R, SIDE, T>(query, width, keys + v, score + v * WIDTH);
  for (; v < vectors; ++v) score_micro<R, 1, T>(query, width, keys + v, score + v * WIDTH);
}

template <int R, class T>
__attribute__((noinline)) void mix_strip(const float* weight, int count, const T* const* blocks, const T* const* next,
                                         int64_t wide, float* mixed) {
  const T *values[TILE_KEYS / BLOCK], *later[TILE_KEYS / BLOCK];
  int64_t i = 0;
  auto columns = [&](int64_t side) {
    for (int b = 0; b * BLOCK < count; ++b) values[b] = blocks[b] + i, later[b] = next[b] + i;
    i += side * WIDTH;
  };
  while (i + SIDE * WIDTH <= wide) {
    float* to = mixed + i;
    columns(SIDE);
    mix_micro<R, SIDE, T>(weight, count, values, later, wide, to);
  }
  while (i < wide) {
    float* to = mixed + i;
    columns(1);
    mix_micro<R, 1, T>(weight, count, values, later, wide, to);
  }
}

// Calls body<R>(r) for strips of at most 6 of `rows` rows.
#define STRIPS(rows, call)                        \
  {                                               \
    int r = 0;                                    \
    for (; r + 6 <= (rows); r += 6) call(6);      \
    switch ((rows) - r) {                         \
      case 1: call(1); break;                     \
      case 2: call(2); break;                     \
      case 3: call(3); break;                     \
      case 4: call(4); break;                     \
      case 5: call(5); break;                     \
      default: break;                             \
    }                                             \
  }

struct Paged {
  const Model* model;
  const Step* step;
  Cache cache;
  int64_t layer;
  const float* qkv;  // [T, qkv_row]
  float* out;        // [T, out_row]
  int64_t qkv_row, out_row;
  float scale;

  int64_t group() const { return model->heads / model->groups; }
};

// Scales queries into the desk and notes what each row sees.
INLINE void take_queries(const Paged& p, const Rows& rows, int64_t k, Desk& desk) {
  int64_t width = p.model->width, group = p.group();
  for (int64_t row = rows.first; row < rows.last; ++row) {
    int64_t t = rows.token + row / group, head = k * group + row % group, r = row - rows.first;
    const float* from = p.qkv + t * p.qkv_row + head * width;
    float* to = desk.query + r * width;
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * (p.scale * LOG2E);
    desk.begin[r] = p.step->begin[t];
    desk.end[r] = p.step->end[t];
    desk.own[r] = p.step->place[t];
    desk.slope[r] = p.model->slopes ? p.model->slopes[head] * LOG2E : 0.0f;
  }
}

// Turns the scores of a row at `count` keys from a place on into weights under the new maximum; scales what was summed.
INLINE void soften(const Desk& desk, int r, int64_t place, int count, const float* key_scales, const float* value_scales,
                   bool sloped, Mixed& span, int64_t wide) {
  float* score = desk.score + r * TILE_KEYS;
  Int lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
  bool whole = desk.begin[r] <= place && desk.end[r] >= place + count && count % WIDTH == 0;
  int32_t last = desk.end[r] < place + count ? desk.end[r] : (int32_t)(place + count);
  Vec peak = set(span.most[r]);
  for (int j = 0; j < count; j += WIDTH) {
    Vec s = load(score + j);
    if (key_scales) s *= load(key_scales + j);
    Int at = lanes + set_int((int32_t)place + j);
    if (sloped) s += set(desk.slope[r]) * __builtin_convertvector(at - set_int(desk.own[r]), Vec);
    if (!whole) {
      s = at >= set_int(desk.begin[r]) ? s : set(HIDDEN);
      s = at < set_int(last) ? s : set(HIDDEN);
    }
    peak = larger(peak, s);
    store(score + j, s);
  }
  float top = largest(peak), shrink = exp2(set(span.most[r] - top))[0];
  Vec total = load(desk.sums + r * WIDTH) * set(shrink);
  for (int j = 0; j < count; j += WIDTH) {
    Vec s = load(score + j), weight = exp2(s - set(top));
    if (!whole) weight = s <= set(0.5f * HIDDEN) ? Vec{} : weight;
    total += weight;
    store(score + j, value_scales ? weight * load(value_scales + j) : weight);
  }
  store(desk.sums + r * WIDTH, total);
  if (shrink != 1.0f)
    for (int64_t i = 0; i < wide; i += WIDTH)
      store(span.mixed + r * wide + i, load(span.mixed + r * wide + i) * set(shrink));
  span.most[r] = top;
}

// The keys in [from, to) of one span, for the rows whose queries are on the desk.
template <class T>
inline void mix_span(const Paged& p, const Rows& rows, int64_t k, int64_t from, int64_t to, Desk& desk, Mixed span) {
  int count = (int)(rows.last - rows.first);
  int64_t width = p.model->width, wide = p.cache.wide();
  memset(span.mixed, 0, (size_t)(count * wide) * sizeof(float));
  memset(desk.sums, 0, (size_t)(count * WIDTH) * sizeof(float));
  for (int r = 0; r < count; ++r) span.most[r] = HIDDEN;
  const int32_t* table = p.step->blocks + rows.sequence * p.step->most_blocks;
  alignas(64) float key_scales[TILE_KEYS], value_scales[TILE_KEYS];
  for (int64_t place = from / TILE_KEYS * TILE_KEYS; place < to; place += TILE_KEYS) {
    // Blocks before the first key that is seen may be gone; what lies past the last one is another's or nobody's.
    int64_t start = place < from ? from / BLOCK * BLOCK : place;
    int keys = (int)(place + TILE_KEYS < to ? place + TILE_KEYS - start : to - start);
    const T *of_keys[TILE_KEYS / BLOCK], *of_values[TILE_KEYS / BLOCK], *next[TILE_KEYS / BLOCK];
    for (int b = 0; b * BLOCK < keys; ++b) {
      char* unit = p.cache.at(p.layer, table[start / BLOCK + b], k);
      int64_t later = place + TILE_KEYS + b * BLOCK;
      next[b] = later < to ? (const T*)p.cache.at(p.layer, table[later / BLOCK], k) : (const T*)unit;
      of_keys[b] = (const T*)unit;
      of_values[b] = (const T*)unit + BLOCK * width;
      if (p.cache.narrow) {
        const float* scales = p.cache.scales(unit);
        memcpy(key_scales + b * BLOCK, scales, BLOCK * sizeof(float));
        memcpy(value_scales + b * BLOCK, scales + BLOCK, BLOCK * sizeof(float));
      }
    }
#define SCORE(R) score_strip<R, T>(desk.query + r * width, width, of_keys, keys, desk.score + r * TILE_KEYS)
    STRIPS(count, SCORE)
#undef SCORE
    for (int r = 0; r < count; ++r)
      soften(desk, r, start, keys, p.cache.narrow ? key_scales : nullptr, p.cache.narrow ? value_scales : nullptr,
             p.model->slopes != nullptr, span, wide);
#define MIX(R) mix_strip<R, T>(desk.score + r * TILE_KEYS, keys, of_values, next, wide, span.mixed + r * wide)
    STRIPS(count, MIX)
#undef MIX
  }
  for (int r = 0; r < count; ++r) span.total[r] = sum(load(desk.sums + r * WIDTH));
}

// Adds a span to those before it.
INLINE void join_span(Mixed joined, Mixed span, int count, int64_t wide) {
  for (int r = 0; r < count; ++r) {
    float before = joined.most[r], most = before < span.most[r] || span.most[r] != span.most[r] ? span.most[r] : before;
    float kept = exp2(set(before - most))[0], added = exp2(set(span.most[r] - most))[0];
    for (int64_t i = r * wide; i < (r + 1) * wide; i += WIDTH)
      store(joined.mixed + i, load(joined.mixed + i) * set(kept) + load(span.mixed + i) * set(added));
    joined.total[r] = joined.total[r] * kept + span.total[r] * added;
    joined.most[r] = most;
  }
}

// Writes the rows of a tile, divided by their sums; a row that sees nothing is 0.
INLINE void finish_rows(const Paged& p, const Rows& rows, int64_t k, Mixed joined) {
  int64_t width = p.model->width, wide = p.cache.wide(), group = p.group();
  for (int64_t row = rows.first; row < rows.last; ++row) {
    int64_t r = row - rows.first;
    float* to = p.out + (rows.token + row / group) * p.out_row + (k * group + row % group) * width;
    Vec factor = set(joined.total[r] == 0.0f ? 0.0f : 1.0f / joined.total[r]);
    vectors(width, [&](int64_t i, int64_t n) {
      store_some(to + i, load_some(joined.mixed + r * wide + i, n) * factor, n);
    });
  }
}

INLINE void mix_any(const Paged& p, const Rows& rows, int64_t k, int64_t s, Desk& desk, Mixed span) {
  int64_t from = s * SPAN_KEYS, to = from + SPAN_KEYS;
  from = from < rows.low ? rows.low : from;
  to = to > rows.high ? rows.high : to;
  if (p.cache.narrow)
    mix_span<int8_t>(p, rows, k, from, to, desk, span);
  else
    mix_span<float>(p, rows, k, from, to, desk, span);
}

INLINE int64_t first_span(const Rows& rows) { return rows.low / SPAN_KEYS; }
INLINE int64_t past_span(const Rows& rows) { return (rows.high + SPAN_KEYS - 1) / SPAN_KEYS; }

// A tile for one key-value head, span after span.
inline void attend_rows(const Paged& p, const Rows& rows, int64_t k, Desk& desk) {
  int64_t wide = p.cache.wide();
  int count = (int)(rows.last - rows.first);
  take_queries(p, rows, k, desk);
  Mixed joined(desk.joined, wide), span(desk.span, wide);
  for (int64_t s = first_span(rows); s < past_span(rows); ++s) {
    bool first = s == first_span(rows);
    mix_any(p, rows, k, s, desk, first ? joined : span);
    if (!first) join_span(joined, span, count, wide);
  }
  finish_rows(p, rows, k, joined);
}

}  // namespace
