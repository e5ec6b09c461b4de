// What of a step would leave the model, the cache or the step itself: looked for before anything is computed.

#pragma once

#include "decoder.h"

namespace {

enum Fault : int { NONE = 0, NO_MEMORY = 1, TOKENS, IDS, ROWS_OF, PLACES, SEEN, BLOCKS_OF, POSITIONS, ADAPTERS, WANTED };

// What of a step would be read or written past the end of something; `where` gets its index.
inline Fault fault_of(const Decoder& d, const Step& s, int64_t* where) {
  const Model& m = d.model;
  int64_t room = s.most_blocks * BLOCK;
  if (s.tokens < 1 || s.tokens > d.work.tokens || s.wanted_count < 0 || s.wanted_count > s.tokens) return TOKENS;
  for (int64_t t = 0; t < s.tokens; ++t) {
    *where = t;
    if (s.ids[t] < 0 || s.ids[t] >= m.vocab) return IDS;
    if (s.row[t] < 0 || s.row[t] >= s.rows) return ROWS_OF;
    if (s.place[t] < 0 || s.place[t] >= room) return PLACES;
    if (s.begin[t] < 0 || s.begin[t] >= s.end[t] || s.end[t] > room) return SEEN;
    if (m.positions && (s.position[t] < 0 || s.position[t] >= m.position_rows)) return POSITIONS;
    if ((m.turned || s.query_scale) && (s.position[t] < 0 || s.position[t] >= s.angle_rows)) return POSITIONS;
    if (m.halves && (s.second[t] < 0 || s.second[t] >= s.angle_rows)) return POSITIONS;
    // A tile reads all from the first place that a row of it sees to the last, so nothing between two neighbours may be
    // none. They see much the same: only what the one before did not see is looked up.
    bool follows = t > 0 && s.row[t - 1] == s.row[t], known = follows && s.begin[t] >= s.begin[t - 1];
    int64_t first = (known ? s.end[t - 1] - 1 : s.begin[t]) / BLOCK;
    int64_t last = ((follows && s.begin[t - 1] > s.end[t] ? s.begin[t - 1] : s.end[t]) - 1) / BLOCK;
    const int32_t* table = s.blocks + s.row[t] * s.most_blocks;
    for (int64_t b = first; b <= last; ++b)
      if (table[b] < 0 || table[b] >= d.cache.blocks) return BLOCKS_OF;
    if (table[s.place[t] / BLOCK] < 0 || table[s.place[t] / BLOCK] >= d.cache.blocks) return BLOCKS_OF;
  }
  for (int64_t r = 0; r < s.rows; ++r)
    if (*where = r, s.adapter[r] < -1 || s.adapter[r] >= m.adapters) return ADAPTERS;
  for (int64_t i = 0; i < s.wanted_count; ++i)
    if (*where = i, s.wanted[i] < (i ? s.wanted[i - 1] + 1 : 0) || s.wanted[i] >= s.tokens) return WANTED;
  return NONE;
}

}  // namespace
