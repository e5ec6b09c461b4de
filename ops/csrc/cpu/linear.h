// Products with packed weights, which lie in panels of 16 outputs (llmctl/infer/packed_linear.py); the layout is the same for every
// instruction set.
//
// float32 and bfloat16: [panel][in][16]. int8: [panel][in / 4][16][4]. int4: [panel][in / 8][16][4], where the low halves of
// four bytes are the codes + 8 of the first four of eight inputs and the high halves those of the others. Inputs of the
// integer kinds are filled up with codes 0 to a multiple of 32. Scales and zeros: [panel][group][16].
//
// Rows meet integer codes as integers: each stretch of 32 values is rounded to 8 bits in units of its largest one / 127.
// A row's result is then the same to the last bit whatever rows stand beside it.
//
// Rows are copied into tiles of up to HEIGHT rows; a weight passes through the nearest cache in chunks and meets all tiles
// of a band of rows there.

#pragma once

#include "linear_codes.h"
#include "linear_floats.h"

namespace {

const int64_t BAND = 256;  // rows of a pass over the weight
const int64_t GROUP = 8;   // panels that a thread takes at most: they share what the second cache holds of the rows
const int64_t LONG = 1 << 19;  // weights that a thread takes at most where it reads them from end to end
const int64_t NEAR = 1 << 18;  // bytes of rows that stay in the second cache however long a panel is

// Bytes of the buffer that `linear` needs for so many rows.
INLINE int64_t linear_scratch(int64_t rows, int64_t in) {
  return 4 * ((rows < BAND ? rows : BAND) + 16) * whole(in, STRETCH) + 1024;
}

// Runs one panel of a chunk of inputs over all tiles of a band.
template <class Rows, int H>
INLINE void tiles_of_panel(const Linear& w, const Rows& rows, int64_t panel, int64_t from, int64_t count, float* y,
                           int64_t y_row) {
  int64_t columns = w.out - panel * PANEL;
  if (columns > Rows::PANELS * PANEL) columns = Rows::PANELS * PANEL;
  typename Rows::Chunk chunk;
  rows.read(w, panel, from, count, &chunk);
  for (int64_t tile = 0; tile * H < rows.count; ++tile) {
    float* to = y + tile * H * y_row + panel * PANEL;
    int64_t high = rows.count - tile * H < H ? rows.count - tile * H : H;
    if (high == H && columns == Rows::PANELS * PANEL) {
      rows.template multiply<H>(w, chunk, panel, tile, from, count, to, y_row);
      continue;
    }
    // What passes the edge of y is computed beside it.
    alignas(64) float edge[H * Rows::PANELS * PANEL] = {};
    for (int64_t r = 0; r < high; ++r) memcpy(edge + r * Rows::PANELS * PANEL, to + r * y_row, (size_t)columns * 4);
    rows.template multiply<H>(w, chunk, panel, tile, from, count, edge, Rows::PANELS * PANEL);
    for (int64_t r = 0; r < high; ++r) memcpy(to + r * y_row, edge + r * Rows::PANELS * PANEL, (size_t)columns * 4);
  }
}

// This thread's share of the panels for a band of rows in tiles of H.
template <class Rows, int H>
__attribute__((noinline)) void panels_of_band(Team& team, const Linear& w, const Rows& rows, float* y, int64_t y_row) {
  int64_t panels = (w.out + PANEL - 1) / PANEL, fair = panels / (4 * team.threads);
  bool near = rows.count * w.in * Rows::BYTES <= NEAR;  // then weights are read from end to end
  int64_t most = near ? LONG / (w.in * PANEL) : GROUP;
  int64_t group = whole(fair < most ? fair : most, Rows::PANELS);
  if (group < Rows::PANELS) group = Rows::PANELS;
  for (int64_t first; (first = team.take() * group) < panels;) {
    int64_t end = first + group < panels ? first + group : panels;
    int64_t begin = first * PANEL, width = (end * PANEL < w.out ? end * PANEL : w.out) - begin;
    for (int64_t r = 0; r < rows.count; ++r) {
      float* to = y + r * y_row + begin;
      if (w.bias)
        memcpy(to, w.bias + begin, (size_t)width * sizeof(float));
      else
        memset(to, 0, (size_t)width * sizeof(float));
    }
    int64_t chunk = rows.inputs_of_chunk(w);
    int64_t block = near ? Rows::PANELS : end - first;
    for (int64_t start = first; start < end; start += block)
      for (int64_t from = 0; from < w.in; from += chunk)
        for (int64_t panel = start; panel < start + block && panel < end; panel += Rows::PANELS)
          tiles_of_panel<Rows, H>(w, rows, panel, from, w.in - from < chunk ? w.in - from : chunk, y, y_row);
  }
}

template <class Rows, int H>
struct Choose {
  static INLINE void run(Team& team, const Linear& w, const Rows& rows, float* y, int64_t y_row) {
    if (rows.height == H)
      panels_of_band<Rows, H>(team, w, rows, y, y_row);
    else
      Choose<Rows, H - 1>::run(team, w, rows, y, y_row);
  }
};
template <class Rows>
struct Choose<Rows, 0> {
  static INLINE void run(Team&, const Linear&, const Rows&, float*, int64_t) {}
};

template <class Rows>
INLINE void bands(Team& team, const Linear& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row,
                  void* scratch) {
  for (int64_t first = 0; first < rows; first += BAND) {
    int64_t count = rows - first < BAND ? rows - first : BAND;
    Rows band(count, w, scratch);
    band.fill(team, x + first * x_row, x_row, w.in);
    team.wait();
    Choose<Rows, Rows::HEIGHT>::run(team, w, band, y + first * y_row, y_row);
    team.wait();
  }
}

// y[rows, out] = x[rows, in] w + bias. Called by every thread of the team with the same arguments; ends with team.wait().
// scratch: linear_scratch(rows, in) bytes that the team shares.
inline void linear(Team& team, const Linear& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row,
                   void* scratch) {
  if (rows == 1 && w.kind == F32) {
    single<float>(team, w, x, y);
    team.wait();
  } else if (rows == 1 && w.kind == BF16) {
    single<uint16_t>(team, w, x, y);
    team.wait();
#if WIDTH > 4
  } else if (w.kind == INT8) {
    bands<CodeRows<INT8>>(team, w, x, rows, x_row, y, y_row, scratch);
  } else if (w.kind == INT4) {
    bands<CodeRows<INT4>>(team, w, x, rows, x_row, y, y_row, scratch);
#endif
  } else {
    bands<FloatRows>(team, w, x, rows, x_row, y, y_row, scratch);
  }
}

}  // namespace
